"""Other people's trained networks keep their published errors in our modules."""

import os
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest

import models
from experiments.data import DATASETS, cifar10, files
from models.pretrained import PRETRAINED, keras_resnet8, load_pretrained, torch_resnet
from spectral_jax.weights import matrices

REAL = os.environ.get("SPECTRAL_JAX_DATA")
IMAGES = 1000
# Of the first thousand test images; of all 10,000 they get 827, 737 and 1279 wrong.
WRONG = {"resnet20_cifar10": 85, "resnet32_cifar10": 72, "resnet8_cifar10": 119}
every_network = pytest.mark.parametrize("name", PRETRAINED)


def file_of(name):
    path = Path(REAL or "") / "pretrained" / f"{name}.npz"
    if not REAL or not path.is_file():
        pytest.skip(f"{name}.npz is not in SPECTRAL_JAX_DATA")
    return path


@cache
def test_images():
    """The test batch, read in place: nothing is written to the cache."""
    source = DATASETS["cifar10"].source
    file = next(file for file in source.files if file.name == cifar10.TEST)
    path = files.find(source, file)
    if path is None:
        pytest.skip("CIFAR-10 is not in SPECTRAL_JAX_DATA")
    return cifar10.parse_batch(files.checked("cifar10", file, path)[0], file.name)


test_images.__test__ = False


@every_network
@pytest.mark.slow
def test_a_thousand_images_are_classified_as_by_the_original(name):
    trained, (images, labels) = load_pretrained(name, file_of(name)), test_images()
    x = (images[:IMAGES].astype(np.float32) - trained.shift) * trained.scale
    logits, _ = jax.jit(trained.network.apply)(trained.params, trained.state, x)
    assert np.sum(np.argmax(logits, axis=1) != labels[:IMAGES]) == WRONG[name]
    assert WRONG[name] / IMAGES == pytest.approx(trained.test_error, abs=0.01)


@every_network
def test_every_kernel_keeps_its_singular_values(name):
    """Channels are reordered at most; what a spectrum is read from is the trained matrix."""
    path = file_of(name)
    ours = matrices(load_pretrained(name, path).params, conv="flattened")
    with np.load(path, allow_pickle=False) as arrays:
        theirs = [tensor for tensor in dict(arrays).values() if tensor.ndim > 1]
    if name != "resnet8_cifar10":
        theirs = [np.moveaxis(tensor, 0, -1) for tensor in theirs]

    def spectra(kernels):
        flat = (np.reshape(kernel, (-1, kernel.shape[-1])) for kernel in kernels)
        return sorted((np.linalg.svd(k, compute_uv=False) for k in flat), key=lambda s: s.tolist())

    mine = spectra([np.asarray(view.matrix) for view in ours.values()])
    assert len(mine) == len(theirs)
    for left, right in zip(mine, spectra(theirs), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


# Files in the layouts of the sources, without the data


def torch_like(depth=8, seed=0, prefix="module."):
    """Random tensors under the names and shapes of akamaster's ResNet of this depth."""
    rng, widths = np.random.default_rng(seed), (16, 32, 64)
    tensors = {"conv1.weight": (16, 3, 3, 3), "linear.weight": (10, 64), "linear.bias": (10,)}
    norms = {"bn1": 16}
    inputs = 16
    for stage, width in enumerate(widths, 1):
        for k in range((depth - 2) // 6):
            block = f"layer{stage}.{k}"
            tensors[f"{block}.conv1.weight"] = (width, inputs, 3, 3)
            tensors[f"{block}.conv2.weight"] = (width, width, 3, 3)
            norms |= {f"{block}.bn1": width, f"{block}.bn2": width}
            inputs = width
    for norm, width in norms.items():
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{leaf}"] = (width,)
    return {
        prefix + name: rng.uniform(0.1, 1, shape).astype(np.float32)
        for name, shape in tensors.items()
    }


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_names_of_torch_become_ours(prefix):
    leaves = torch_resnet(torch_like(14, prefix=prefix))
    net = models.network("resnet", input_shape=(32, 32, 3), classes=10, depth=14)
    trees = jax.eval_shape(net.init, jax.random.key(0))
    expected = {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(trees)[0]
    }
    assert {name: leaf.shape for name, leaf in leaves.items()} == expected


def test_new_channels_come_after_those_carried_on():
    """Torch: 8 new, 16 carried, 8 new; then 16 new, those 32, 16 new."""
    tensors = torch_like(prefix="")
    for stage, width in ((2, 32), (3, 64)):
        tensors[f"layer{stage}.0.bn2.bias"] = np.arange(width, dtype=np.float32)
    leaves = torch_resnet(tensors)
    second = [*range(8, 24), *range(8), *range(24, 32)]
    third = [16 + channel for channel in second] + [*range(16), *range(48, 64)]
    assert leaves["blocks/1/norm2/bias"].tolist() == second
    assert leaves["blocks/2/norm2/bias"].tolist() == third
    head = tensors["linear.weight"].T
    np.testing.assert_array_equal(leaves["head/kernel"], head[third])
    into_third = tensors["layer3.0.conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(leaves["blocks/2/conv1/kernel"], into_third[:, :, second])


def test_a_bias_before_a_norm_and_its_epsilon_move_into_the_statistics():
    name = "batch_normalization/batch_normalization"
    rng = np.random.default_rng(0)
    with np.load(file_of("resnet8_cifar10"), allow_pickle=False) as arrays:
        tensors = dict(arrays)
    bias, x = rng.normal(size=16), rng.normal(size=(5, 16))
    tensors["conv2d/conv2d/bias"] = bias
    leaves = keras_resnet8(tensors)
    gamma, beta, mean, variance = (
        tensors[f"{name}/{leaf}"] for leaf in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    keras = gamma * (x + bias - mean) / np.sqrt(variance + 1e-3) + beta
    scale, shift, our_mean, our_variance = (
        leaves[f"stem_norm/{leaf}"] for leaf in ("scale", "bias", "mean", "var")
    )
    ours = scale * (x - our_mean) / np.sqrt(our_variance + 1e-5) + shift
    np.testing.assert_allclose(ours, keras, rtol=1e-5)


# Misuse


def test_an_unknown_network_gets_a_suggestion(tmp_path):
    with pytest.raises(ValueError, match="'resnet20_cifar': did you mean 'resnet20_cifar10'"):
        load_pretrained("resnet20_cifar", tmp_path / "x.npz")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="x.npz"):
        load_pretrained("resnet20_cifar10", tmp_path / "x.npz")


@pytest.mark.parametrize(
    "name, tensors, message",
    [
        ("resnet20_cifar10", torch_like(8), r"blocks/1/conv1/kernel has shape \(3, 3, 16, 32\)"),
        ("resnet8_cifar10", torch_like(8), "has no tensor 'conv2d/conv2d/kernel'"),
        ("resnet20_cifar10", {"dense/kernel": np.ones(3)}, "has no tensor 'stem/kernel'"),
        (
            "resnet20_cifar10",
            torch_like(20) | {"module.linear.bias": np.ones(100, np.float32)},
            r"head/bias has shape \(100,\), expected \(10,\)",
        ),
    ],
)
def test_a_file_of_another_network_is_refused(name, tensors, message, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, **tensors)
    with pytest.raises(ValueError, match=message):
        load_pretrained(name, path)
