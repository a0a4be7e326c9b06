"""Convolutions, inside loops and branches too, are in the form that XLA on a CPU is fast at."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, PartitionSpec

from spectral_jax.linalg import SymmetricOperator, convolutions, eigsh
from spectral_jax.linalg.convolutions import CONVOLUTION, Form, fast_convolutions

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)
IMAGES, KERNEL = jax.random.normal(KEY, (3, 6, 5, 4)), jax.random.normal(KEY, (3, 2, 4, 8))
PLAIN = dict(window_strides=(1, 1), padding="SAME")
CASES = {
    "plain": PLAIN,
    "strided": dict(window_strides=(2, 1), padding="VALID"),
    "dilated": dict(window_strides=(1, 1), padding=((2, 1), (0, 3)), rhs_dilation=(2, 1)),
    "transposed": dict(window_strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
    "grouped": PLAIN | dict(feature_group_count=2),
}
LAYOUTS = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWNC", "IHWO", "CNHW")]


def convolution(images, kernel, layout=LAYOUTS[0], **options):
    return jax.lax.conv_general_dilated(images, kernel, dimension_numbers=layout, **options)


def slopes(images, kernel, **options):
    """Both derivatives of a function of the convolution, which are convolutions themselves."""
    return jax.grad(lambda x, k: jnp.sum(jnp.sin(convolution(x, k, **options))), (0, 1))(
        images, kernel
    )


def slow_ones(program):
    """The convolutions in an order of axes other than the fast one, in all inner programs too."""
    fast = jax.make_jaxpr(partial(convolution, **PLAIN))(IMAGES, KERNEL).eqns[-1].params
    found = []
    for operation in program.eqns:
        order = operation.params.get("dimension_numbers")
        if operation.primitive is CONVOLUTION and order != fast["dimension_numbers"]:
            found.append(operation)
        for inner in jaxprs_in_params(operation.params):
            found += slow_ones(inner)
    return found


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_numbers_are_those_of_the_function(options):
    kernel = KERNEL[:, :, :2] if "feature_group_count" in options else KERNEL
    function = partial(slopes, **options)
    ours, plain = (jax.jit(f)(IMAGES, kernel) for f in (fast_convolutions(function), function))
    for mine, theirs in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids="".join)
def test_any_order_of_axes_is_brought_into_the_fast_one_and_back(layout):
    images = IMAGES.transpose(["NHWC".index(c) for c in layout[0]])
    kernel = KERNEL.transpose(["HWIO".index(c) for c in layout[1]])
    function = partial(convolution, layout=layout, **PLAIN)
    found = jax.jit(fast_convolutions(function))(images, kernel)
    np.testing.assert_allclose(found, function(images, kernel), rtol=1e-5, atol=1e-5)
    assert not slow_ones(jax.make_jaxpr(fast_convolutions(function))(images, kernel))


FORMS = {
    # images, kernel, options, and the form expected of the convolution itself
    "one channel": ((3, 9, 8, 1), (5, 5, 1, 6), {}, dict(at_once=4)),
    "eight channels": ((3, 9, 7, 6), (3, 2, 6, 8), {}, dict(at_once=2)),
    "sixteen channels": ((3, 9, 7, 16), (3, 2, 16, 16), {}, {}),
    "few, strided": ((3, 9, 8, 3), (3, 3, 3, 5), dict(window_strides=(2, 3)), dict(at_once=4)),
    "few, padded": ((3, 5, 6, 3), (3, 3, 3, 4), dict(padding=((0, 1), (2, 0))), dict(at_once=4)),
    "few, cropped": ((3, 5, 9, 3), (3, 3, 3, 4), dict(padding=((0, 1), (-2, 0))), dict(at_once=4)),
    "large": ((4, 16, 16, 32), (3, 2, 32, 20), {}, dict(spread=True)),
    "large, strided": (
        (4, 16, 16, 32), (3, 3, 32, 20), dict(window_strides=(1, 2)), dict(spread=True),
    ),
    "kernel larger": ((3, 2, 2, 20), (3, 3, 20, 24), dict(padding="SAME"), dict(pad_first=True)),
    "kernel larger, spread": (
        (3, 2, 2, 4), (3, 3, 4, 5), dict(lhs_dilation=(2, 2), padding=((1, 2), (2, 1))),
        dict(pad_first=True),
    ),
    "nothing left": ((3, 2, 2, 4), (3, 3, 4, 5), {}, {}),
    "one pixel": ((3, 9, 9, 4), (1, 1, 4, 5), {}, {}),
    "one column": ((3, 9, 3, 4), (3, 3, 4, 5), {}, {}),
    "many channels": ((3, 9, 9, 17), (3, 3, 17, 5), {}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("images", "kernel", "options", "form"), FORMS.values(), ids=FORMS)
@jax.enable_x64(True)
def test_the_form_changes_and_the_numbers_stay(images, kernel, options, form, monkeypatch):
    monkeypatch.setattr(convolutions, "LIBRARY_IS_SERIAL", True)
    monkeypatch.setattr(convolutions, "cpu_threads", lambda: 2)
    monkeypatch.setattr(convolutions, "IMAGES_LARGE", 2**16)
    images, kernel = (jax.random.normal(KEY, shape, jnp.float64) for shape in (images, kernel))
    options = dict(window_strides=(1, 1), padding="VALID") | options
    function = partial(convolution, **options)
    (found,) = jax.make_jaxpr(function)(images, kernel).eqns
    formed = Form.of(*(each.aval for each in found.invars), found.params)
    assert formed == Form(formed.width, **form)
    for each in (function, lambda x, k: slopes(x, k, **options)):
        both = (jax.jit(f)(images, kernel) for f in (fast_convolutions(each), each))
        ours, plain = map(jax.tree.leaves, both)
        for mine, theirs in zip(ours, plain, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    ("serial", "threads", "padding", "expected"),
    [
        (False, 8, "VALID", (4, False)),
        (True, 1, "VALID", (4, True)),
        (True, 1, "SAME", (4, False)),
        (True, 2, "SAME", (4, True)),
        (True, 8, "VALID", (2, True)),
    ],
)
def test_the_form_is_the_fast_one_of_the_release_and_the_threads(
    serial, threads, padding, expected, monkeypatch
):
    """A library on one thread is left aside where Eigen's threads are faster together."""
    monkeypatch.setattr(convolutions, "LIBRARY_IS_SERIAL", serial)
    monkeypatch.setattr(convolutions, "cpu_threads", lambda: threads)

    def form(images, kernel):
        function = partial(convolution, window_strides=(1, 1), padding=padding)
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (images, kernel))
        (found,) = jax.make_jaxpr(function)(*shapes).eqns
        return Form.of(*(each.aval for each in found.invars), found.params)

    few, many = form((9, 28, 28, 1), (5, 5, 1, 6)), form((99, 28, 28, 20), (5, 5, 20, 50))
    assert (few.at_once, many.spread) == expected


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.complex64])
def test_every_dtype_passes(dtype):
    for images, kernel, padding in (
        ((3, 9, 8, 1), (5, 5, 1, 6), "VALID"),
        ((3, 2, 2, 20), (3, 3, 20, 24), "SAME"),
    ):
        images, kernel = (jax.random.normal(KEY, shape).astype(dtype) for shape in (images, kernel))
        function = partial(convolution, window_strides=(1, 1), padding=padding)
        found, plain = (jax.jit(f)(images, kernel) for f in (fast_convolutions(function), function))
        assert found.dtype == plain.dtype
        close = 8 * float(jnp.finfo(dtype).eps) * float(jnp.abs(plain).max())
        np.testing.assert_allclose(
            np.asarray(found, complex), np.asarray(plain, complex), atol=close
        )


def test_a_batch_of_unknown_size_passes():
    def function(images, kernel):
        return fast_convolutions(partial(convolution, **PLAIN))(images, kernel)

    (batch,) = jax.export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, 9, 8, 1), jnp.float32)
    kernel = jax.ShapeDtypeStruct((5, 5, 1, 6), jnp.float32)
    exported = jax.export.export(jax.jit(function))(images, kernel)
    found = exported.call(jnp.ones((2, *images.shape[1:])), jnp.ones(kernel.shape))
    assert float(found.max()) == 25.0


def of_a_loop(images, kernel):
    return jax.lax.fori_loop(0, 2, lambda _, k: k - slopes(images, k, **PLAIN)[1] / 99, kernel)


def of_a_branch(images, kernel):
    return jax.lax.cond(kernel.sum() > 0, partial(slopes, **PLAIN), lambda *x: x, images, kernel)


def of_a_scan_within_a_scan(images, kernel):
    def outer(k, _):
        return jax.lax.scan(lambda k, x: (k - slopes(x[None], k, **PLAIN)[1] / 99, None), k, images)

    return jax.lax.scan(outer, kernel, None, length=2)[0]


def with_checkpoints(images, kernel):
    return jax.grad(lambda k: jnp.sum(jax.checkpoint(partial(convolution, **PLAIN))(images, k)**2))(
        kernel
    )  # fmt: skip


def of_a_curvature(images, kernel):
    return jax.jvp(lambda k: slopes(images, k, **PLAIN)[1], (kernel,), (kernel,))[1]


@pytest.mark.parametrize(
    "function",
    [of_a_loop, of_a_branch, of_a_scan_within_a_scan, with_checkpoints, of_a_curvature],
)
@pytest.mark.parametrize("mapped", [False, True])
def test_inside_loops_branches_and_calls(function, mapped):
    function = jax.vmap(function, in_axes=(0, None)) if mapped else function
    images = jnp.stack([IMAGES, 2 * IMAGES]) if mapped else IMAGES
    ours = fast_convolutions(function)
    assert slow_ones(jax.make_jaxpr(function)(images, KERNEL))
    left = slow_ones(jax.make_jaxpr(ours)(images, KERNEL))
    assert not [each for each in left if each.params["batch_group_count"] == 1]
    found, expected = (jax.tree.leaves(jax.jit(f)(images, KERNEL)) for f in (ours, function))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_kernels_side_by_side_are_groups_that_are_taken_apart():
    kernels = jnp.stack([KERNEL, -KERNEL, 2 * KERNEL])
    function = jax.vmap(partial(slopes, **PLAIN), in_axes=(None, 0))
    ours = fast_convolutions(function)
    assert groups(jax.make_jaxpr(function)(IMAGES, kernels)) > {1}
    assert groups(jax.make_jaxpr(ours)(IMAGES, kernels)) == {1}
    both = (jax.jit(f)(IMAGES, kernels) for f in (ours, function))
    for mine, theirs in zip(*both, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def groups(program):
    called = [e for e in program.eqns if e.primitive is CONVOLUTION]
    return {e.params["feature_group_count"] for e in called}


def test_what_is_wrapped_can_be_differentiated_and_mapped():
    def total(kernel):
        return jnp.sum(fast_convolutions(of_a_curvature)(IMAGES, kernel))

    def plain(kernel):
        return jnp.sum(of_a_curvature(IMAGES, kernel))

    slope, expected = (jax.jit(jax.grad(each))(KERNEL) for each in (total, plain))
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-3)
    kernels = jnp.stack([KERNEL, -KERNEL])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(total))(kernels), jax.jit(jax.vmap(plain))(kernels), rtol=1e-3, atol=1e-3
    )


def test_products_of_operators_are_fast_in_the_loops_of_solvers():
    def product(data, x):
        images, kernel = data
        tangent = x.reshape(kernel.shape)
        return jax.jvp(lambda k: slopes(images, k, **PLAIN)[1], (kernel,), (tangent,))[1].ravel()

    op = SymmetricOperator(product, (IMAGES, KERNEL), KERNEL.size)
    solved = jax.make_jaxpr(lambda op: eigsh(op, 2, which="LA"))(op)
    assert not slow_ones(solved)


def test_inside_of_shard_map_it_works_and_around_it_leaves_the_body():
    mesh = jax.make_mesh((3,), ("n",), (AxisType.Auto,), devices=jax.devices()[:3])
    rows = PartitionSpec("n")

    def spread(function):
        return jax.shard_map(
            lambda x, k: jax.lax.psum(function(x, k), "n"), mesh=mesh,
            in_specs=(rows, PartitionSpec()), out_specs=PartitionSpec(), check_vma=False,
        )  # fmt: skip

    def slope(images, kernel):
        return slopes(images, kernel, **PLAIN)[1]

    inside, around = spread(fast_convolutions(slope)), fast_convolutions(spread(slope))
    expected = slope(IMAGES, KERNEL)
    for found in (inside, around):
        np.testing.assert_allclose(jax.jit(found)(IMAGES, KERNEL), expected, rtol=1e-4, atol=1e-4)
    assert not slow_ones(jax.make_jaxpr(inside)(IMAGES, KERNEL))
    assert slow_ones(jax.make_jaxpr(around)(IMAGES, KERNEL))


def test_trees_keys_and_functions_without_convolutions_pass_unchanged():
    def function(tree, key):
        return {"a": jax.nn.relu(tree["x"]) + jax.random.normal(key), "none": None, "key": key}

    x = {"x": jnp.arange(-2.0, 2.0)}
    found, expected = fast_convolutions(function)(x, KEY), function(x, KEY)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    np.testing.assert_array_equal(found["a"], expected["a"])
    assert found["key"] == KEY
