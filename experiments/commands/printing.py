"""What a command prints on stdout: rows, for a person or a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def print_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print rows on stdout: aligned columns, or one JSON array."""
    from experiments.report.tables import Table

    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(Table("", rows).text(), end="")
