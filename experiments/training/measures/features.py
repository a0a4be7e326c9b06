"""What a network has learned: how many features it uses, how well, and for what."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import ExperimentConfig
from experiments.training.program import TrainState
from experiments.training.representations import Numbers, Seen, measured, refuse_without_parts
from experiments.training.task import Data
from models import Network
from models.moving import MOMENTS
from spectral_jax import features


def measure(config: ExperimentConfig, network: Network):
    """``features/richness`` and the other numbers of `learned`, and spectra for figures."""
    refuse_without_parts("features", network)
    return partial(_both, network)


def _both(network: Network, state: TrainState, data: Mapping[str, Data]):
    numbers, arrays = measured("features", learned, network, state, data)
    if MOMENTS in state.model_state:
        heads = jax.vmap(network.head)(state.params)
        found = _of_batches(state.model_state[MOMENTS], heads)
        numbers |= {f"features/batches/{metric}": value for metric, value in found.items()}
    return numbers, arrays


@jax.jit
def _of_batches(m: features.FeatureMoments, head: features.Head) -> Numbers:
    """Of the moments that training batches have left, for every trial; NaN before the first."""

    def one(trial: tuple[features.FeatureMoments, features.Head]) -> Numbers:
        m, head = trial
        numbers = {
            "richness": features.richness(m, head=head).value,
            "effective_dimension": features.effective_dimension(m),
        }
        some = features.effective_rows(m) > 0
        return {name: jnp.where(some, value, jnp.nan) for name, value in numbers.items()}

    return jax.lax.map(one, (m, head))


def learned(seen: Seen) -> tuple[Numbers, Numbers]:
    """The numbers of the penultimate features; their spectrum, and what each direction is good for.

    Numbers of a layer before have names that end with the layer, as in ``richness/layers/1``. What
    it is compared with are the outputs of the network, and it need not hold all of those.
    """
    *before, (_, last) = seen.layers.items()
    numbers, arrays = _of_last(last, seen._replace(layers={}))
    for name, rows in before:
        found = _of_one_before(rows, seen.weights, seen.outputs)
        numbers |= {f"{metric}/{name}": value for metric, value in found.items()}
    return numbers, arrays


@jax.jit
def _of_last(rows: jax.Array, seen: Seen) -> tuple[Numbers, Numbers]:
    classes = seen.outputs.shape[1]
    m = features.of(rows, labels=seen.labels, classes=classes, weights=seen.weights, fourth=True)
    found = features.diagonalize(m, head=seen.head)
    good, used = found.cumulative_quality, found.cumulative_utilisation
    assert good is not None and used is not None
    # Centred one-hot labels span one direction less than there are classes.
    needed = min(classes - 1, len(good)) - 1
    numbers = _of_any(rows, m, weights=seen.weights, head=seen.head) | {
        "richness/corrected": features.richness(m, head=seen.head, corrected=True).value,
        "quality": good[needed],
        "utilisation": used[needed],
        "directions": found.reach(),
    }
    resolved = jnp.where(found.eigenvalues > found.floor, found.eigenvalues, jnp.nan)
    return numbers, {"eigenvalues": resolved, "quality": good, "utilisation": used}


@jax.jit
def _of_one_before(rows: jax.Array, weights: jax.Array, outputs: jax.Array) -> Numbers:
    return _of_any(rows, features.of(rows, weights=weights), weights=weights, outputs=outputs)


def _of_any(rows: jax.Array, m: features.FeatureMoments, **used_for: Any) -> Numbers:
    literal, centred = (
        features.richness(rows, order=order, **used_for) for order in ("literal", "centre-first")
    )
    values, units = features.spectrum(m), features.unit_activity(m)
    return {
        "richness": literal.value,
        "richness/centre_first": centred.value,
        "degenerate": literal.degenerate,
        "few_rows": literal.few_rows,
        "effective_dimension": features.effective_dimension(values),
        "participation": features.effective_dimension(values, kind="participation"),
        "top_share": values.top_share,
        "dead_units": jnp.mean(units.dead),
        "dormant_units": jnp.mean(units.dormant),
    }
