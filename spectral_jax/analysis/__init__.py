"""What the spectra of a network's weights say, layer by layer, and how sure that is.

    analyze(params)                          # a pandas table, a row per layer
    analyze("model.safetensors").attrs["summary"]

The command ``spectral-jax analyze`` prints the same. `COLUMNS` says what each column means.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from spectral_jax import weights
from spectral_jax._door.source import Arrays
from spectral_jax.analysis.columns import COLUMNS, DEFAULT, Column, names
from spectral_jax.analysis.engine import Analysis, analyze_layers, check_groups

if TYPE_CHECKING:
    import pandas

__all__ = ["COLUMNS", "Analysis", "Column", "analyse", "analyze", "analyze_layers"]

analyse = analyze_layers  # its former name, for code that was written with it


def analyze(
    params: Any,
    *,
    metrics: Sequence[str] = DEFAULT,
    layers: Sequence[str] = (),
    conv: weights.Conv = "positions",
    framework: weights.Framework | Literal["auto"] = "auto",
    kinds: Mapping[str, str] | None = None,
) -> "pandas.DataFrame":
    """A row per layer, in the network's order, with the columns of `COLUMNS`.

    ``attrs["summary"]`` is the gist in a paragraph, ``attrs["skipped"]`` what was left out and why.

    Args:
      params: a pytree, a mapping of names to arrays, an open checkpoint, or the path of one.
      metrics: groups of columns: norms, hill, ks, farms, alternatives, goodness; or ``["all"]``.
      layers: shell patterns of the names to keep.
      conv: a convolution as a matrix per kernel position (``positions``), as one (``flattened``)
        or as its channel graph (``channels``).
      framework: whose conventions to read shapes by: torch, flax, keras, haiku, tf.
      kinds: kind by shell pattern of the name, where the guess is wrong.

    Runs on the host and moves one layer at a time there: not for use inside ``jit``.
    Raises ``ValueError`` for an unknown option, patterns that match nothing or a network without a
    matrix, ``CheckpointError`` for a bad file, ``ImportError`` without pandas.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError("analyze needs pandas: pip install 'spectral-jax[tables]'") from error
    options = dict(metrics=metrics, layers=layers, conv=conv, framework=framework, kinds=kinds)
    analysis = _analyse(params, options)
    table = pandas.DataFrame(analysis.rows, columns=names(check_groups(metrics)))
    table.attrs["summary"] = analysis.summary
    table.attrs["skipped"] = [each._asdict() for each in analysis.skipped]
    return table


def _analyse(params: Any, options: dict[str, Any]) -> Analysis:
    if not hasattr(params, "__fspath__") and not isinstance(params, str):
        return analyze_layers(params if hasattr(params, "read") else Arrays(params), **options)
    from spectral_jax.checkpoints import open_checkpoint

    with open_checkpoint(params) as checkpoint:
        return analyze_layers(checkpoint, **options)
