"""Networks as pure functions of plain nested dicts: Flax NNX ends here.

    net = network("mlp", input_shape=(28, 28), classes=10)
    params, state = jax.vmap(net.init)(jax.random.split(jax.random.key(0), 5))   # five seeds
    logits, state = jax.vmap(net.apply, in_axes=(0, 0, None))(params, state, x)

`jax.vmap` maps every keyword argument, so bind the static ones first:

    step = lambda params, state, x, key: net.apply(params, state, x, train=True, key=key)

`params` holds what the optimiser moves and `state` the rest (batch-norm statistics; empty for most
models). Both are nested dicts of arrays with string keys, so they pass through jit, vmap, grad,
Optax and a checkpoint unchanged, and a compiled step pays nothing for the module that traced it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Key, Shaped

from models.registry import Model, build
from spectral_jax.features import Head
from spectral_jax.nnx import Pool, point_of, values_at
from spectral_jax.weights import Block

Tree = dict[str, Any]


@runtime_checkable
class Apply(Protocol):
    """``apply(params, state, x, *, train=False, key=None) -> (logits, new_state)``.

    Networks with dropout=None are given ``dropout=`` as well in training.
    """

    def __call__(
        self,
        params: Tree,
        state: Tree,
        x: Shaped[Array, "b ..."],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b *positions c"], Tree]: ...


class Tapped(Protocol):
    """`Apply`, with what flows at ``points`` as a third result: see `spectral_jax.nnx.tap`."""

    def __call__(
        self,
        params: Tree,
        state: Tree,
        x: Shaped[Array, "b ..."],
        *,
        points: Sequence[str],
        pool: Pool | None = "mean",
        train: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b *positions c"], Tree, dict[str, Array]]: ...


def _no_parts(*_: Any, **__: Any) -> Any:
    raise ValueError("this network is a function without parts: there is nothing to tap")


class Functional(NamedTuple):
    """A built model: pure functions, and its initial parameters and state."""

    apply: Apply
    params: Tree
    state: Tree
    tapped: Tapped


class Network(NamedTuple):
    """A model before any seed is drawn; every field is static.

    init: key -> (params, state), which `jax.vmap` maps over keys.
    blocks: what `layout` calls; models without a graph reading raise there, not when described.
    tapped: `apply` with what flows inside; raises ValueError for points there are not.
    representations: points to tap, of the first hidden layer to the last, which the head reads;
      none of a network that is not written in NNX.
    """

    init: Callable[[Key[Array, ""]], tuple[Tree, Tree]]
    apply: Apply
    blocks: Callable[[], tuple[Block, ...]]
    tapped: Tapped = _no_parts
    representations: tuple[str, ...] = ()

    def features(
        self,
        params: Tree,
        state: Tree,
        x: Shaped[Array, "b ..."],
        *,
        points: Sequence[str],
        pool: Pool | None = "mean",
    ) -> dict[str, Array]:
        """What flows at the points in evaluation.

        Raises:
            ValueError: there are no such points, or the network is not written in NNX.
        """
        return self.tapped(params, state, x, points=points, pool=pool)[2]

    def head(self, params: Tree) -> Head:
        """The last layer, which makes the outputs of the last representation.

        Raises:
            ValueError: the network has no representations.
        """
        if not self.representations:
            _no_parts()
        layer = params
        for name in self.representations[-1].partition(":")[0].split("/"):
            layer = layer.get(name, layer)  # the last name may be that of a method
        if "embedding" in layer:
            return Head(layer["embedding"].T)
        return Head(layer["kernel"], layer.get("bias"))

    @property
    def layout(self) -> tuple[Block, ...]:
        """The blocks of the network's graph, for `spectral_jax.weights.graph_weights`.

        Raises:
            ValueError: the model has no graph reading (attention, pre-activation norms).
        """
        return self.blocks()


def network(name: str, *, input_shape: tuple[int, ...], classes: int, **options: Any) -> Network:
    """Describe model `name` as pure functions; computes nothing.

    Raises:
        ValueError: as `models.build`.
    """

    def create(key: Key[Array, ""]) -> Model:
        rngs = nnx.Rngs(key)
        return build(name, input_shape=input_shape, classes=classes, rngs=rngs, **options)

    @jax.jit
    def init(key: Key[Array, ""]) -> tuple[Tree, Tree]:
        made = functional(create(key))
        return made.params, made.state

    abstract = nnx.eval_shape(lambda: create(jax.random.key(0)))
    pure = functional(abstract)
    return Network(init, pure.apply, abstract.layout, pure.tapped, abstract.representations)


def init(
    name: str,
    key: Key[Array, ""],
    *,
    input_shape: tuple[int, ...],
    classes: int,
    **options: Any,
) -> tuple[Tree, Tree]:
    """Draw (params, state) of model `name`; works under `jax.vmap` over keys."""
    return network(name, input_shape=input_shape, classes=classes, **options).init(key)


def functional(model: Model) -> Functional:
    """Split a model into a pure function and its plain trees.

    `apply` holds under jit, vmap and grad. With ``train=True`` it normalises by the batch, returns
    the updated statistics and draws dropout masks from `key`; otherwise it is deterministic and
    returns `state` unchanged. What else it is given goes to the model, as `dropout` does.
    """
    graphdef, params, state = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]

    def apply(params, state, x, **options):
        return tapped(params, state, x, points=(), **options)[:2]

    def tapped(params, state, x, *, points, pool="mean", train=False, key=None, **given):
        merged = nnx.merge(graphdef, nnx.restore_int_paths(params), nnx.restore_int_paths(state))
        parsed = {text: point_of(merged, text) for text in points}
        rngs = None if key is None else nnx.Rngs(dropout=key)
        logits, found = values_at(merged, parsed, x, pool=pool, train=train, rngs=rngs, **given)
        kept = nnx.state(merged, nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate)))
        return logits, plain_tree(kept), found

    return Functional(apply, plain_tree(params), plain_tree(state), tapped)


def plain_tree(state: Any) -> Tree:
    """An NNX state as nested dicts with string keys."""
    return _string_keys(nnx.to_pure_dict(state))


def _string_keys(tree: Any) -> Any:
    # NNX names the items of a list by integers, which a checkpoint turns into strings.
    if not isinstance(tree, dict):
        return tree
    return {str(key): _string_keys(value) for key, value in tree.items()}
