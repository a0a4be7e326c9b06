"""``spectral-jax compress``: a checkpoint in, a smaller one and a table out."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spectral_jax._door.arguments import add_reading_options, glob_and_kind
from spectral_jax._door.table import align, number, or_null, wrapped
from spectral_jax._door.target import check_target
from spectral_jax.compress.engine import NOT_NOISE, Compressed, compress

SHOWN = ("sigma", "edge", "spikes", "ks", "rank", "error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    option = parser.add_argument
    option("path", metavar="PATH", help="a checkpoint: file or folder")
    option(
        "--rank",
        default="mp",
        metavar="RULE",
        help="mp (above the Marchenko-Pastur edge), gd (the threshold of Gavish and Donoho), "
        "energy or energy=0.95 (share of the squares), or a number (default: %(default)s)",
    )
    option(
        "--gate",
        type=float,
        metavar="KS",
        help="copy layers whose bulk is farther from noise than this distance, 0 to 1 "
        f"(default: {NOT_NOISE} for mp and gd, which cut into signal there; else 1, off)",
    )
    option("--out", required=True, metavar="NEW", help="the file to write: NAME.safetensors")
    option("--force", action="store_true", help="overwrite it")
    add_reading_options(parser)
    option("--json", action="store_true", help="one JSON object on stdout")


def run(options: argparse.Namespace) -> int:
    """Do as asked; what is wrong with the input is raised, and said by `cli.main`."""
    from spectral_jax.checkpoints import open_checkpoint, save_safetensors

    out = Path(options.out)
    if out.suffix not in ("", ".safetensors"):
        named = out.with_suffix(".safetensors")
        raise ValueError(f"--out {out}: the file is written as safetensors: call it {named}")
    check_target(options.out, inputs=[options.path], force=options.force)
    with open_checkpoint(options.path, step=options.step) as checkpoint:
        result = compress(
            checkpoint,
            rank=options.rank,
            gate=options.gate,
            layers=options.layers,
            framework=options.framework,
            kinds=dict(map(glob_and_kind, options.kind)),
            label=Path(options.path).name,
        )
    ranks = {row["layer"]: row["rank"] for row in result.rows if row["outcome"] == "factored"}
    metadata = {"spectral_jax.compress": json.dumps({"rank": options.rank, "ranks": ranks})}
    save_safetensors(out, result.tensors, metadata=metadata, force=options.force)
    totals = _totals(result)
    if options.json:
        print(json.dumps(_document(result, totals), indent=2, allow_nan=False))
    else:
        print("\n".join(_table(result.rows)))
        print("", _summary(result.rows, totals), sep="\n")
    if warning := _signal_cut(result.rows, options.rank):
        print(warning, file=sys.stderr)
    print(f"written: {out}", file=sys.stderr)
    return 0


def _totals(result: Compressed) -> dict[str, int]:
    """Parameters of the whole network, also of what no layer covers."""
    after = sum(tensor.size for tensor in result.tensors.values())
    saved = sum(row["parameters_before"] - row["parameters_after"] for row in result.rows)
    return {"parameters_before": after + saved, "parameters_after": after}


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    heading = ["outcome", "layer", "kind", "shape", *SHOWN, "parameters", "after", "reason"]
    return align(
        [
            heading,
            *(
                [row["outcome"], row["layer"], row["kind"], f"{row['m']}x{row['n']}"]
                + [number(row[name]) for name in SHOWN]
                + [str(row["parameters_before"]), str(row["parameters_after"]), row["reason"]]
                for row in rows
            ),
        ]
    )


def _summary(rows: Sequence[Mapping[str, Any]], totals: Mapping[str, int]) -> str:
    factored = [row for row in rows if row["outcome"] == "factored"]
    before, after = totals["parameters_before"], totals["parameters_after"]
    text = (
        f"{len(factored)} of {len(rows)} layers factored: {before} parameters before, {after} "
        f"after ({100 * (after / before - 1):+.1f} %)."
    )
    if not factored:
        return wrapped(
            f"{text} The new file is a copy: --rank energy=0.95 cuts by the norm that is lost, "
            "whatever the bulk."
        )
    worst = max(factored, key=lambda row: row["error"])
    text += (
        f" Up to {100 * worst['error']:.0f} % of a layer's norm is gone ({worst['layer']}). What "
        "that does to the accuracy the weights do not say: measure it before and after."
    )
    return wrapped(text)


def _signal_cut(rows: Sequence[Mapping[str, Any]], rank: str) -> str:
    """What to say of layers cut at an edge that is not there, as a wide gate lets them be."""
    factored = [row for row in rows if row["outcome"] == "factored"]
    doubtful = sum(row["ks"] > NOT_NOISE for row in factored)
    if not doubtful or rank not in ("mp", "gd"):
        return ""
    return wrapped(
        f"warning: in {doubtful} of {len(factored)} factored layers the bulk is not noise, or too "
        f"small to tell (ks above {NOT_NOISE}): the cut takes signal. Without --gate these are "
        "copied; --rank energy cuts less."
    )


def _document(result: Compressed, totals: Mapping[str, int]) -> dict[str, Any]:
    return {
        "layers": [{name: or_null(value) for name, value in row.items()} for row in result.rows],
        **totals,
        "skipped": [each._asdict() for each in result.skipped],
    }
