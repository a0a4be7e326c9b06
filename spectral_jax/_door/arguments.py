"""The options that say how a checkpoint is read."""

import argparse


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Declare which step and layers of a checkpoint are read, and by whose conventions."""
    option = parser.add_argument
    step = "of a folder of steps, this one (default: the newest)"
    option("--step", type=int, metavar="N", help=step)
    option("--layers", action="append", default=[], metavar="GLOB", help="only these; repeatable")
    option("--framework", default="auto", help="torch, flax, keras, haiku or tf: whose names")
    kind = "overrule a guess, as in 'layers/*=stacked' or '*.proj=dense'; repeatable"
    option("--kind", action="append", default=[], metavar="GLOB=KIND", help=kind)


def glob_and_kind(word: str) -> tuple[str, str]:
    """The two sides of ``GLOB=KIND``."""
    pattern, equals, kind = word.rpartition("=")
    if not equals:
        raise ValueError(f"--kind {word!r} is not GLOB=KIND, as in '*.proj=dense'")
    return pattern, kind
