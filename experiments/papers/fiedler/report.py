"""From finished runs to the page: verdicts, tables, figures. Trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from experiments import report
from experiments.claims import Judged
from experiments.papers.fiedler import evidence, pictures
from experiments.report import cell, origin, tally
from experiments.reproduction import Runs, final
from experiments.runs import Run, provenance


def write_report(
    runs: Runs, preset: str, *, root: Path, command: str, as_json: bool = False
) -> int:
    """Write ``<root>/reports/fiedler-<preset>/``: the page, its tables (.csv, .md), its figures."""
    folder = root / "reports" / f"fiedler-{preset}"
    claims = evidence.judged_claims(runs, command=command)
    rows = result_rows(runs)
    return report.write_report(
        folder,
        f"Fiedler regularisation: preset {preset}",
        summary=answer(claims, runs),
        claims=claims,
        sections=pictures.sections(runs, rows, folder / "figures"),
        results=rows,
        provenance={"command": command, **_provenance(runs)},
        as_json=as_json,
    )


def result_rows(runs: Runs) -> list[dict[str, str]]:
    """One row per trained arm: what a paper's table would hold."""
    columns = {
        "test accuracy (%)": evidence.accuracy,
        "train accuracy (%)": lambda run: evidence.accuracy(run, "train"),
        "lambda_2": lambda run: final(run, "spectra/lambda_2"),
        "nu_2": lambda run: final(run, "spectra/nu_2"),
        "participation ratio": lambda run: final(run, "spectra/lambda_2/participation_ratio"),
        "weights < 0.001 (%)": lambda run: 100 * final(run, "spectra/small_weights"),
        "penalty / loss": lambda run: _if_recorded(run, "spectra/penalty/loss_ratio"),
        "penalty / loss gradient": lambda run: _if_recorded(run, "spectra/penalty/gradient_ratio"),
    }
    return [
        {
            "protocol": protocol,
            "arm": arm,
            **{name: cell(measure(run)) for name, measure in columns.items()},
            "seeds": str(len(final(run, "test/accuracy"))),
            "diverged": str(len(run.summary["diverged_seeds"])),
            "collapsed": str(len(run.summary["collapsed_seeds"])),
        }
        for protocol, arms in runs.items()
        for arm, run in arms.items()
    ]


def answer(claims: list[Judged], runs: Runs) -> str:
    """The page's first paragraph (HTML): what a reader who reads nothing else should know."""
    lines = [tally(claims)]
    main: Mapping[str, Run] = runs.get("mnist") or runs.get("digits") or {}
    if {"fiedler", "none"} <= set(main):
        gain = evidence.accuracy(main["fiedler"]) - evidence.accuracy(main["none"])
        lines.append(
            "At the released strength (delta = 0.01) Fiedler regularisation changes test accuracy "
            f"by {cell(gain)} percentage points against no penalty, paired by seed."
        )
    tuned = evidence.tuned_arms(runs.get("fair", {}))
    spectral = [name for name in evidence.SPECTRAL if name in tuned]
    if spectral:
        baseline = evidence.best_baseline(tuned)
        best = max(spectral, key=lambda n: np.nanmean(evidence.accuracy(tuned[n], "validation")))
        gain = evidence.accuracy(tuned[best]) - evidence.accuracy(tuned[baseline])
        lines.append(
            f"Tuned alike on few, noisy samples, the best spectral method "
            f"({evidence.SPECTRAL[best]}) differs from the best ordinary one ({baseline}) "
            f"by {cell(gain)} points."
        )
    return " ".join(escape(line) for line in lines)


def _provenance(runs: Runs) -> dict[str, str]:
    """The runs' own origin where there are runs, else this process's."""
    first = next((run for arms in runs.values() for run in arms.values()), None)
    facts = first.provenance if first else provenance.session()
    return {**origin(facts), "seeds trained": str(facts.get("seed_axis", ""))}


def _if_recorded(run: Run, metric: str) -> np.ndarray:
    return final(run, metric) if metric in run.history() else np.array([np.nan])
