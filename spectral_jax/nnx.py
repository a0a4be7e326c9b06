"""Flax NNX modules as the pure functions that curvature takes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from flax import nnx
from jaxtyping import Array, PyTree

from spectral_jax._choices import check_choice


def from_nnx(
    module: nnx.Module, mode: Literal["eval", "train"] = "eval"
) -> tuple["PureModule", PyTree]:
    """``(model, params)`` of a module: ``model(params, inputs)`` is ``module(inputs)``.

    ``params`` is a nested dict of the module's ``nnx.Param`` arrays. Everything else, such as the
    running statistics of batch norm, is held by ``model`` at its present values. The module itself
    is left as it is. In mode "eval" dropout is off and batch norm uses its running statistics; in
    mode "train" the losses of examples depend on each other and have no curvature of a mean
    (`curvature.check` refuses them).

    ``model`` is static: programs compiled for it serve all parameters, but not another ``from_nnx``
    of the module.

    >>> import jax.numpy as jnp
    >>> model, params = from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    >>> sorted(params), model(params, jnp.zeros((5, 2))).shape
    (['bias', 'kernel'], (5, 3))
    """
    check_choice(("eval", "train"), mode=mode)
    module = nnx.clone(module)
    if mode == "eval":
        module.eval()
    else:
        module.train()
    definition, *states = nnx.split(module, nnx.Param, ...)
    return PureModule(definition, *states), nnx.to_pure_dict(states[0])


@dataclasses.dataclass(frozen=True, eq=False)
class PureModule:
    """A module without its parameters, to call with them; see `from_nnx`."""

    definition: Any
    variables: Any
    others: Any

    def __call__(self, params: PyTree, inputs: Any) -> Array:
        """The outputs of the module with these parameters."""
        state = nnx.clone(self.variables)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self.definition, state, self.others, copy=True)(inputs)
