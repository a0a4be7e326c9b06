"""The studies of this paper that are training loops of their own."""

from __future__ import annotations

from experiments.papers.paper import Study

STUDIES: tuple[Study, ...] = ()
