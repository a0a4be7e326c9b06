"""What stands out in a layer, how urgent it is, and all layers in one paragraph.

A verdict is a reading of the numbers in a row, not a fact about the network: the thresholds stand
here, and the row keeps the numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

DISTINCT = 3.0  # standard deviations from a random matrix that are not chance
COLLAPSED = 0.5  # share of the possible rank below which directions are dead
DOMINATED = 1.5  # stable rank of a layer that is little more than one direction
REFUTED = 0.1  # p_value below which Clauset, Shalizi and Newman rule a power law out
HEAVY = 2.0  # exponent below which a power law has no mean: WeightWatcher's "over-trained"
# The alpha_z of noise spreads by 1 + WIDER / min(m, n), by 1 where slices are pooled. Measured over
# 2000: 1.37 for 8, 1.29 for 10, 1.15 for 20, 1.03 for 64; 0.98 for nine slices of 3 and of 16.
WIDER = 3.0
FEW = 8  # eigenvalues below which a tail cannot be read
FEW_A_SLICE = 3  # eigenvalues of a slice below which its null is not to be trusted


class Verdict(NamedTuple):
    """A word for the table, its meaning, and how early it is listed (0 needs attention first)."""

    word: str
    urgency: int
    meaning: str


VERDICTS = {
    verdict.word: verdict
    for verdict in (
        Verdict("not finite", 0, "weights are NaN or infinite"),
        Verdict("zero", 0, "all weights are zero"),
        Verdict("collapsed", 1, "less than half of the possible rank is used"),
        Verdict("one direction", 2, "over two thirds of the squared norm lie in one direction"),
        Verdict("like random", 3, "not told apart from a random matrix of the same shape"),
        Verdict(
            "very heavy", 4, "alpha_ks is below 2 by two standard errors, tail heavier than chance"
        ),
        Verdict(
            "flat", 5, "upper half of the eigenvalues more equal than chance, as if orthogonal"
        ),
        Verdict("structured", 6, "tail heavier than chance, and nothing else stands out"),
        Verdict("too small", 7, "too few eigenvalues to read a tail"),
        Verdict("not judged", 7, "what a verdict needs was not asked for, or is not known"),
    )
}


def judge(row: Row) -> tuple[str, str]:
    """The verdict on one layer and the numbers behind it."""
    largest = row["possible_rank"]
    if not row["finite"]:
        return "not finite", "NaN or infinity among the weights"
    if row["rank"] == 0:
        return "zero", "no eigenvalue above zero"
    if row["rank"] < COLLAPSED * largest:
        return "collapsed", f"rank {row['rank']} of {largest}"
    if largest < FEW:
        return "too small", f"{largest} eigenvalues"
    if row["slices"] > 1 and min(row["m"], row["n"]) < FEW_A_SLICE:
        return "too small", f"{min(row['m'], row['n'])} eigenvalues a slice: try --conv flattened"
    if row.get("stable_rank", math.inf) < DOMINATED:
        return "one direction", f"stable rank {row['stable_rank']:.2f}"
    z, alpha = row.get("alpha_z"), row.get("alpha_ks", math.inf)
    if z is None:
        return "not judged", ""
    hill, null = row["alpha_hill"], row["alpha_null"]
    if math.isnan(hill):
        return "flat", "the upper half of the eigenvalues is one number"
    if not math.isfinite(z):
        return "not judged", "of the product of two factors no random counterpart is known"
    against = f"alpha_hill {hill:.2f}, random {null:.2f}, alpha_z {z:+.1f}"
    if abs(z) <= DISTINCT:
        return "like random", against
    if z > 0:
        return "flat", against
    if alpha + 2 * row.get("sigma", 0.0) >= HEAVY:
        return "structured", against
    if row.get("p_value", math.nan) < REFUTED:
        return "structured", f"{against}; no power law, p_value {row['p_value']:.2g}"
    return "very heavy", f"alpha_ks {alpha:.2f} ± {row['sigma']:.2f}; {against}"


def by_urgency(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with what needs attention first; equals by how far they are from random."""

    def key(row: Row) -> tuple[int, float]:
        z = row.get("alpha_z")
        return VERDICTS[row["verdict"]].urgency, z if z is not None and math.isfinite(z) else 0.0

    return sorted(rows, key=key)


def against_chance(rows: Sequence[Row]) -> list[Row]:
    """The rows whose alpha_z may be read."""
    return [
        row
        for row in rows
        if row["verdict"] != "too small" and math.isfinite(row.get("alpha_z", math.nan))
    ]


def summarise(rows: Sequence[dict[str, Any]], *, skipped: int, share: float) -> list[str]:
    """The sentences of a paragraph: what was read, what stands out, and how sure that is.

    ``share`` is that of the analysed tensors in all numbers that can be read from the source.
    """
    read = _count(sum(row["parameters"] for row in rows))
    parts = [
        f"{_layers(len(rows))}, {read} weights ({100 * share:.3g} % of the numbers that can be "
        "read)."
    ]
    if skipped:
        tensors = "1 tensor was" if skipped == 1 else f"{skipped} tensors were"
        parts.append(f"{tensors} left out (why: --skipped, in Python attrs['skipped']).")
    for verdict in sorted(VERDICTS.values(), key=lambda verdict: verdict.urgency):
        if found := [row for row in rows if row["verdict"] == verdict.word]:
            parts.append(_finding(verdict, found, len(rows)))
    return [*parts, *_certainty(rows)]


def _finding(verdict: Verdict, found: Sequence[dict[str, Any]], layers: int) -> str:
    names = ", ".join(row["layer"] for row in by_urgency(found)[:3])
    rest = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"{verdict.word.capitalize()} ({verdict.meaning}): {len(found)} of {layers}, {names}{rest}."
    )


def _certainty(rows: Sequence[Row]) -> list[str]:
    judged = against_chance(rows)
    parts = []
    if judged:
        chance = sum(map(_chance, judged))
        parts.append(
            f"A layer is told apart beyond {DISTINCT:g} standard deviations of random matrices of "
            f"its shape; of {len(judged)} Gaussian ones, {chance:.2g} would pass that by chance."
        )
    short = [row for row in rows if row.get("fit") == "ok" and row["tail"] < 50]
    if short:
        worst = max(row["sigma"] for row in short)
        parts.append(
            f"In {_layers(len(short))} alpha_ks rests on fewer than 50 eigenvalues (standard error "
            f"up to {worst:.2f}): do not rank layers by it."
        )
    return parts


def _chance(row: Row) -> float:
    """How often noise of this shape is told apart, as measured."""
    wider = 1 + WIDER / min(row["m"], row["n"]) if row["slices"] == 1 else 1.0
    return math.erfc(DISTINCT / wider / math.sqrt(2))


def _layers(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"


def _count(number: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6), ("thousand", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
