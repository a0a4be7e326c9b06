"""What a comparison of groups came to: numbers, tables and sentences."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.report.comparison import (
    Across,
    Against,
    Ranged,
    across_tasks,
    against_baseline,
    differences,
    in_deviations,
    pairs_needed,
)
from experiments.report.statistics import Estimate, estimate, interval
from experiments.report.tables import Table, cell, number
from experiments.runs.files import cannot_write_is_one_line, make_directory, plain
from experiments.sweep.groups import Group, Tasks
from experiments.sweep.space import short

TOLD = 0.75  # a probability of improvement that is worth having, and takes many pairs to be seen
FORMATS = ("csv", "md", "tex", "html")
SHARES = ("accuracy", "error")  # metrics that are told in percent, and differences in points
STYLES = {"better": "bold green", "worse": "bold red", "not separated": "yellow"}
LONGEST_STEM = 120  # a value may be a path or a list
UNFIT = r"[^\w.-]+"  # for a folder's name

Scores = Float[np.ndarray, " seeds"]


@dataclass(frozen=True)
class Comparison:
    """Groups against a baseline, on one or several tasks.

    Attributes:
        by: the key whose values the groups are.
        metric: what is compared, and ``higher`` whether more of it is better.
        tasks: the groups that competed, by task.
        scores: by task and group, the metric by seed; a group that lost every trial is left out.
        seeds: by task, those of the scores: the pairs.
        finals: where the chosen settings were trained again on these fresh seeds, by task. Empty:
            the scores are those that chose the settings, and nothing is claimed.
        notes: what a reader should know of how the groups were tuned.
    """

    by: str
    baseline: str
    metric: str
    higher: bool
    tasks: Tasks
    scores: Mapping[str, Mapping[str, Scores]]
    seeds: Mapping[str, list[int]]
    finals: Mapping[str, Sequence[Path]]
    notes: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Eight digits for what is compared and for all runs that its numbers are of."""
        groups = [group for groups in self.tasks.values() for group in groups.values()]
        runs = {group.sweep.directory.name for group in groups}
        again = {path.name for paths in self.finals.values() for path in paths}
        asked = [self.by, self.baseline, self.metric, self.higher, self.seeds]
        text = json.dumps([*asked, sorted(runs), sorted(again)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def stem(self) -> str:
        """A folder's name that no other comparison has: nothing is overwritten."""
        words = f"comparison-{self.by}-{self.baseline}-{self.metric}"
        return f"{re.sub(UNFIT, '-', words)[:LONGEST_STEM]}-{self.key}"

    @property
    def scale(self) -> float:
        """What brings the metric to its unit."""
        return scale_of(self.metric)

    @property
    def unit(self) -> str:
        """Of a difference."""
        return " points" if self.scale == 100 else ""

    @property
    def column(self) -> str:
        """What the table calls the metric."""
        return f"{self.metric} (%)" if self.scale == 100 else self.metric

    @cached_property
    def pairs(self) -> dict[tuple[str, str], Scores]:
        """By task and group the differences to the baseline, more is better, in the unit."""
        return {
            (task, group): differences(*map(self._signed, (values, scores[self.baseline])))
            for task, scores in self.scores.items()
            for group, values in scores.items()
            if group != self.baseline
        }

    @cached_property
    def against(self) -> dict[tuple[str, str], Against]:
        """By task and group how it compares to the baseline."""
        return against_baseline(self.pairs)

    @cached_property
    def scaled(self) -> dict[str, dict[str, Scores]]:
        """By group and task the runs on the scale of all tasks (`in_deviations`).

        Of groups that all tasks have. A task on which nothing varies has no scale: it is left out.
        """
        shared = set.intersection(*(set(scores) for scores in self.scores.values()))
        groups = [group for group in self.ordered(next(iter(self.tasks))) if group in shared]
        scaled = in_deviations(
            {g: [self._signed(scores[g]) for scores in self.scores.values()] for g in groups},
            baseline=self.baseline,
        )
        return {
            group: {
                name: task
                for name, task in zip(self.scores, tasks, strict=True)
                if not np.isnan(task).any()
            }
            for group, tasks in scaled.items()
        }

    @cached_property
    def across(self) -> dict[str, Across]:
        """Over the tasks that have a scale; empty of fewer than two, or of fewer than two seeds."""
        scores = {group: [*tasks.values()] for group, tasks in self.scaled.items()}
        if len(scores[self.baseline]) < 2 or min(map(len, self.seeds.values())) < 2:
            return {}
        return across_tasks(scores, baseline=self.baseline)

    @cached_property
    def table(self) -> Table:
        """A row for each group on each task, the baseline first."""
        rows = [self._row(task, group) for task, group in self._places()]
        better = [place for place, row in enumerate(rows) if row.get("verdict") == "better"]
        bold = [(place, self.column) for place in better]
        return Table(self._caption(), rows, styles=STYLES, bold=bold)

    @property
    def across_table(self) -> Table:
        """A row for each group over all tasks; no rows where there are not several."""
        rows = [
            {
                self.by: group,
                "interquartile mean": _bracketed(found.middle),
                f"minus {self.baseline}": "" if group == self.baseline else _bracketed(found.gain),
            }
            for group, found in self.across.items()
        ]
        caption = (
            f"Over {', '.join(self.scaled[self.baseline])}: the mean of the middle half of all "
            "runs, with its 95 % interval (bootstrap over seeds). A run is told by how much its "
            f"{self.metric} is better than {self.baseline}'s mean on the same task, in standard "
            "deviations over seeds."
        )
        return Table(caption, rows)

    @property
    def chosen(self) -> Table:
        """What was chosen for each group, and whether more trials might find better."""
        rows = [
            {
                **self._named(task, group),
                "chosen": _setting(one, self.by),
                one.sweep.plan.objective: f"{one.best.score:.4g}" if one.best else "all lost",
                "as good": str(len(one.best.tied)) if one.best else "",
                "at the edge": ", ".join(one.best.at_edge) if one.best else "",
                "tried": str(one.budget),
            }
            for task, group in self._places()
            for one in [self.tasks[task][group]]
        ]
        caption = (
            "The best mean validation score over the tuning seeds. As good: so many other settings "
            "are within a standard error of it. At the edge: keys of which the least or the "
            "greatest value that was tried is chosen, so that a better one may lie outside."
        )
        return Table(caption, rows)

    def ordered(self, task: str) -> list[str]:
        """The groups of a task, the baseline first."""
        return sorted(self.tasks[task], key=lambda group: group != self.baseline)

    def learned(self) -> list[str]:
        """What came out, in sentences."""
        if not self.finals:
            return [
                "These are tuning scores, which flatter the settings that they have chosen: "
                "nothing is claimed. With --finals 8 the winners are trained again on fresh seeds."
            ]
        return [sentence for task in self.tasks for sentence in self._told(task)]

    def caveats(self) -> list[str]:
        """What limits it, in sentences."""
        few = min(map(len, self.seeds.values()))
        needed = pairs_needed(TOLD)
        pairs = (
            f"{few} pairs: it takes {needed} to tell a probability of improvement of {TOLD:g} "
            "from a half at a power of 80 %"
        )
        return [*self.notes, *([pairs] if few < needed else [])]

    def rows(self) -> list[dict[str, Any]]:
        """The table's numbers for programs, as they were measured: an accuracy is at most 1.

        None where there is no number. ``scores`` are by ``seeds``.
        """
        return [plain(self._numbers(task, group)) for task, group in self._places()]

    def turned(self, better: Any) -> Any:
        """A number of which more is better, as the metric has it, and the other way round."""
        return better if self.higher else -better

    def page(self, folder: str | Path, *, formats: Collection[str] = FORMATS) -> Path:
        """Write ``table.csv``, and as asked ``table.md``, ``table.tex``, ``page.html`` and figures.

        The table of the first is one of numbers (`rows`), of the others one to be read. Returns the
        folder.
        """
        folder = Path(folder)
        with cannot_write_is_one_line(folder):
            make_directory(folder)
            self.table.write(folder / "table", suffixes={*formats} - {"csv"})
            (folder / "table.csv").write_text(self._csv(), encoding="utf-8", newline="")
            if "html" in formats:
                from experiments.sweep import comparison_page  # imports matplotlib: a second

                comparison_page.write(self, folder)
        return folder

    def _signed(self, values: Scores) -> Scores:
        return self.scale * self.turned(np.asarray(values, float))

    def _places(self) -> Iterator[tuple[str, str]]:
        yield from ((task, group) for task in self.tasks for group in self.ordered(task))

    def _named(self, task: str, group: str) -> dict[str, str]:
        return {**({"task": task} if len(self.tasks) > 1 else {}), self.by: group}

    def _row(self, task: str, group: str) -> dict[str, str]:
        scores, found = self.scores[task].get(group), self.against.get((task, group))
        row = {
            **self._named(task, group),
            "setting": _setting(self.tasks[task][group], self.by),
            self.column: cell(scores, scale=self.scale) if scores is not None else "all lost",
        }
        if found is not None:
            row[f"minus {self.baseline}{self.unit and ' (points)'}"] = self._difference(found)
        if found is not None and self.finals:
            row["p"] = _p_value(found)
            row["P(better)"] = _bracketed(found.improves)
            row["verdict"] = found.verdict
        known = 0 if scores is None else int(np.isfinite(scores).sum())
        total = len(self.seeds[task])
        return {**row, "seeds": str(total) if known == total else f"{known} of {total}"}

    def _numbers(self, task: str, group: str) -> dict[str, Any]:
        scores, found = self.scores[task].get(group), self.against.get((task, group))
        own = estimate(np.full(1, np.nan) if scores is None else scores)
        numbers = {
            "task": task,
            self.by: group,
            "setting": _setting(self.tasks[task][group], self.by),
            "seeds": self.seeds[task],
            "scores": scores,
            **_spread(self.metric, own.mean, *interval(own, 0.95)),
        }
        if found is not None:
            turned = self._turned(found.difference)
            ends = (each / self.scale for each in (turned.mean, *interval(turned, 0.95)))
            numbers |= _spread("difference", *ends)
        if found is not None and self.finals:
            numbers |= {"p": min(1.0, 2 * found.p), **_spread("P(better)", *found.improves)}
            numbers["verdict"] = found.verdict
        return numbers

    def _csv(self) -> str:
        """The numbers, one a cell; those of single seeds are left out."""
        rows = [
            {name: "" if value is None else str(value) for name, value in row.items()
             if not isinstance(value, list)}
            for row in self.rows()
        ]  # fmt: skip
        return Table("", rows).csv()

    def _turned(self, difference: Estimate) -> Estimate:
        """With the metric's sign, in which less may be better."""
        return difference._replace(mean=self.turned(difference.mean))

    def _difference(self, found: Against) -> str:
        turned = self._turned(found.difference)
        if not turned.n:
            return "all lost"
        low, high = interval(turned, 0.95)
        return number(turned.mean, (high - low) / 2)

    def _told(self, task: str) -> Iterator[str]:
        place = f" on {task}" if len(self.tasks) > 1 else ""
        rivals = {group: one for (where, group), one in self.against.items() if where == task}
        for group, one in rivals.items():
            if one.verdict != "not separated":
                gain = f"{self._difference(one)}{self.unit} of {self.metric}"
                yield f"{group} is {one.verdict} than {self.baseline}{place}: {gain}."
        rest = {group: one for group, one in rivals.items() if one.verdict == "not separated"}
        if rest:
            told = f"Not told apart from {self.baseline}{place}: {', '.join(rest)}"
            visible = max(one.visible for one in rest.values())
            reach = f"; so many seeds mostly tell differences from {visible:.2g}{self.unit} on"
            yield f"{told}{reach if 0 < visible < math.inf else ''}."

    def _caption(self) -> str:
        if not self.finals:
            return (
                f"Tuning scores: {self.metric} on the seeds that chose the settings, which "
                "flatters them: mean and 95 % interval (Student's t). Nothing is claimed."
            )
        return (
            f"{self.metric} of the chosen settings, trained again on fresh seeds: mean and 95 % "
            f"interval (Student's t). Differences to {self.baseline} are of pairs with the same "
            f"seed; p is of their sign, after Holm's correction for all {len(self.against)}; "
            "P(better) is the probability that a run is better than the baseline's of the same "
            "seed, a tie counted half, with Agresti and Coull's 95 % interval. Bold: better than "
            f"{self.baseline}."
        )


def scale_of(metric: str) -> float:
    """What brings a metric to its unit: shares are told in percent."""
    return 100.0 if metric.rpartition("/")[2] in SHARES else 1.0


def _setting(group: Group, by: str) -> str:
    """The chosen values, as a command line takes them; those of the data are the task's."""
    chosen = group.best.setting.items() if group.best else ()
    return " ".join(
        f"{key}={short(value)}"
        for key, value in chosen
        if key != by and not key.startswith("data.")
    )


def _spread(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name} low": low, f"{name} high": high}


def _bracketed(found: Ranged) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _p_value(found: Against) -> str:
    p = min(1.0, 2 * found.p)
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
