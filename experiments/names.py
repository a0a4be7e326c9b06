"""Suggestions for a name that was typed wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """`"; did you mean 'mnist'?"` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def offered(name: str, known: Iterable[str]) -> str:
    """`did_you_mean`, or where nothing is close all that there is.

    >>> offered("penlty", ["penalty", "data"]), offered("x", ["a", "b"]), offered("x", [])
    ("; did you mean 'penalty'?", '; there are: a, b', '')
    """
    known = list(known)
    listed = f"; there are: {', '.join(known)}" if known else ""
    return did_you_mean(name, known) or listed
