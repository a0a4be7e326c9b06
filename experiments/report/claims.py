"""Claims: what a paper, released code or we ourselves say, as data, declared before it is run.

A claim says beforehand how it will be judged (`verdicts`): its type, its unit of replication, the
smallest effect that matters, how many seeds it may take, and whether it is one of the paper's
primary questions or a control. The hash of all claims of a paper is printed with their verdicts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.errors import UserError
from experiments.names import did_you_mean
from experiments.report.evidence import Evidence
from experiments.report.results import Need
from experiments.runs.files import read_json, write_json

Origin = Literal["published", "released code", "our reference", "our question"]
Kind = Literal["deterministic", "stochastic", "direction"]


@dataclass(frozen=True)
class Claim:
    """One statement that can be checked.

    Attributes:
        origin: who says it. ``published`` quotes the words in ``citation``; ``our reference`` is a
            number of ours, with the ``command`` that makes it again; what no source says is
            ``our question``, however much it is in the spirit of a paper.
        type: how it is judged. ``deterministic``: ``value`` within ``tolerance``, the rounding of
            the source. ``stochastic``: ``value`` within ``smallest_effect``, both errors counted.
            ``direction``: the sign of a difference. None: the source does not say enough
            (``reason``).
        evidence: what it needs of the results; None for what is not measured in any preset.
        spread, reference_n: standard deviation of the reference over its replications, and how
            many there were; a spread of 0 is an exact number, None is not known.
        direction: the sign, +1 or -1, that the evidence should have.
        smallest_effect: d, the least difference that anybody would care about, in ``unit``.
        replication: what one number of the evidence stands for, where it is not a seed.
        largest_n: replications after which it is left undecided.
        family: ``primary`` claims are corrected for their number (Holm); a ``control`` shows an
            estimate, no verdict.
        difference: in what the protocol differs from the source's.
        cost: what measuring it takes, told where it was not.
    """

    id: str
    text: str
    source: str
    origin: Origin
    type: Kind | None = None
    evidence: Evidence | None = None
    value: float | None = None
    tolerance: float | None = None
    spread: float | None = None
    reference_n: int = 0
    direction: Literal[-1, 0, 1] = 0
    smallest_effect: float | None = None
    unit: str = ""
    replication: str = "seeds"
    largest_n: int = 0
    family: Literal["primary", "control"] = "primary"
    citation: str = ""
    command: str = ""
    difference: str = ""
    cost: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        for wrong, remedy in _rules(self):
            if wrong:
                raise UserError(f"claim {self.id!r}: {remedy}")


def check(claims: Sequence[Claim], known: Mapping[str, Collection[str] | None]) -> None:
    """Refuse what cannot be meant, in one line that names the claim.

    Args:
        known: the arms by protocol of all presets together; None for a study, whose arms only a
            run can tell. A study called ``loop`` may have protocols ``loop/<anything>``.
    """
    for id, count in Counter(claim.id for claim in claims).items():
        if count > 1:
            raise UserError(f"claim {id!r} is declared {count} times: give each an id of its own")
    for claim in claims:
        for need in sorted(claim.evidence.needs()) if claim.evidence else ():
            _check_name(claim, need, known)


@dataclass(frozen=True)
class Declaration:
    """The claims as they are now, against those of the first run.

    ``changes`` is one line for each claim that was added, removed or edited since.
    """

    sha256: str
    changes: tuple[str, ...]


def declare(claims: Sequence[Claim], path: Path) -> Declaration:
    """Keep the claims in ``path`` if they are the first there; else say what changed since.

    The hash does not depend on the order of the claims.
    """
    now = {claim.id: _plain(claim) for claim in claims}
    sha256 = hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()
    first = read_json(path, remedy="remove it to declare the claims anew").get("claims")
    if first is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"sha256": sha256, "claims": now})
    return Declaration(sha256, tuple(_changes(now if first is None else first, now)))


def _check_name(claim: Claim, need: Need, known: Mapping[str, Collection[str] | None]) -> None:
    study = need.protocol.partition("/")[0]
    if known.get(study, ()) is None:
        return
    if need.protocol not in known:
        close = did_you_mean(need.protocol, known)
        raise UserError(f"claim {claim.id!r}: no preset has a protocol {need.protocol!r}{close}")
    arms = known[need.protocol]
    if arms is not None and need.arm not in arms:
        raise UserError(
            f"claim {claim.id!r}: no preset has an arm {need.arm!r} in protocol "
            f"{need.protocol!r}{did_you_mean(need.arm, arms)}"
        )


def _rules(claim: Claim) -> list[tuple[bool, str]]:
    """Each: whether a rule is broken, and what to do about it."""
    judged = claim.type in ("stochastic", "direction")
    deterministic = claim.type == "deterministic"
    return [
        (claim.origin == "published" and not claim.citation,
         "published claims quote their source: give citation=, the words"),
        (claim.origin == "our reference" and not claim.command,
         "a reference of ours is told with command=, what makes it again"),
        (claim.type is None and not claim.reason,
         "give type=, or reason= why the source does not say enough"),
        (claim.type in ("deterministic", "stochastic") and claim.value is None,
         f"a {claim.type} number needs value="),
        (deterministic != (claim.tolerance is not None),
         "tolerance=, the rounding of the source, belongs to type 'deterministic' and no other"),
        (deterministic and claim.family == "control", "a deterministic number cannot be a control"),
        ((claim.type == "direction") != (claim.direction != 0),
         "direction=, +1 or -1, belongs to type 'direction' and no other"),
        (judged and not (claim.smallest_effect or 0) > 0,
         "give smallest_effect=, the least difference that matters, above 0"),
        (judged and claim.largest_n < 2, "give largest_n=, the most replications it may take"),
        (bool(claim.spread) and claim.reference_n < 2,
         "a spread needs reference_n=, the replications it was taken over"),
    ]  # fmt: skip


def _changes(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = [f"{id}: added" for id in sorted(now.keys() - first.keys())]
    lines += [f"{id}: removed" for id in sorted(first.keys() - now.keys())]
    for id in sorted(now.keys() & first.keys()):
        fields = [name for name in now[id] if now[id][name] != first[id].get(name)]
        if fields:
            told = (
                f"{name} was {json.dumps(first[id].get(name))}, is {json.dumps(now[id][name])}"
                for name in fields
            )
            lines.append(f"{id}: {'; '.join(told)}")
    return lines


def _plain(value: Any) -> Any:
    """Nested dataclasses as JSON values that say of what kind each is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
