"""What a command runs: the arms that `EXPERIMENT --preset --arm key=value` means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config import ExperimentConfig, apply_overrides, load_yaml
from experiments.errors import UserError
from experiments.names import offered
from experiments.papers import load as load_paper

COMMAND = "python -m experiments"
DEFAULT_PRESET = "smoke"
CONFIG_FILES = (".yaml", ".yml")


def choose(
    experiment: str, *, preset: str | None, arm: str | None, settings: Sequence[str]
) -> Mapping[str, ExperimentConfig]:
    """The configurations by arm, with settings applied; `UserError` (2) for what there is not."""
    if experiment.endswith(CONFIG_FILES):
        if arm or preset:
            raise UserError("a configuration file has no presets and arms: leave out the option")
        config = apply_overrides(load_yaml(experiment), settings)
        return {config.name: config}
    name, _, protocol = experiment.partition("/")
    paper, preset = load_paper(name), preset or DEFAULT_PRESET
    protocols = lookup(paper.protocols, preset, "preset")
    if not protocol and len(protocols) > 1:
        offered = ", ".join(f"{name}/{known}" for known in protocols)
        raise UserError(f"{name} has several protocols in preset {preset}; choose one: {offered}")
    protocol = protocol or next(iter(protocols))
    elsewhere = [other for other, known in paper.protocols.items() if protocol in known]
    if elsewhere and protocol not in protocols:
        asked = " or ".join(f"--preset {other}" for other in elsewhere)
        raise UserError(f"{name}/{protocol} is not in preset {preset}: pass {asked}")
    lookup(protocols, protocol, f"protocol in preset {preset} of {name}:")
    arms = paper.arms(preset, settings)[protocol]
    return {arm: lookup(arms, arm, "arm")} if arm else arms


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """An entry of a table; `UserError` (2) with the nearest name, or all of them."""
    if name not in table:
        hint = offered(name, table)
        raise UserError(f"no {what} {name!r}{hint}")
    return table[name]
