"""The data sets there are. A new one is a file beside this one, and a line here."""

from experiments.data.base import Spec
from experiments.data.cifar10 import CIFAR10, CIFAR16
from experiments.data.digits import DIGITS, DIGITS2
from experiments.data.idx import FASHION_MNIST, MNIST, MNIST2, MNIST7, MNIST10K
from experiments.data.tcga import TCGA
from experiments.data.tcga_brca import TCGA_BRCA
from experiments.data.tinyshakespeare import TINY_SHAKESPEARE

# The names are written out for the keys of runs: what is read of another data set is not in them.
DATASETS: dict[str, Spec] = {
    "digits": DIGITS,
    "digits2": DIGITS2,
    "mnist": MNIST,
    "fashion_mnist": FASHION_MNIST,
    "mnist2": MNIST2,
    "mnist7": MNIST7,
    "mnist10k": MNIST10K,
    "cifar10": CIFAR10,
    "cifar16": CIFAR16,
    "tcga": TCGA,
    "tcga_brca": TCGA_BRCA,
    "tinyshakespeare": TINY_SHAKESPEARE,
}
