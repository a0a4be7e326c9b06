"""The data sets there are. A new one is a file beside this one, and a line here."""

from experiments.data.base import Spec
from experiments.data.cifar10 import CIFAR10, CIFAR16
from experiments.data.digits import DIGITS
from experiments.data.idx import FASHION_MNIST, MNIST, MNIST7
from experiments.data.tcga import TCGA
from experiments.data.tcga_brca import TCGA_BRCA
from experiments.data.tinyshakespeare import TINY_SHAKESPEARE

_SPECS = (DIGITS, MNIST, FASHION_MNIST, MNIST7, CIFAR10, CIFAR16, TCGA, TCGA_BRCA, TINY_SHAKESPEARE)

DATASETS: dict[str, Spec] = {spec.name: spec for spec in _SPECS}
