"""How much memory there is, and giving back what compiled programs hold of it.

XLA keeps every program it compiles. One takes tens to hundreds of memory maps, of which Linux
grants a process 65,530 by default; at the limit the process dies of SIGSEGV, whatever memory is
free.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

GROUPS, LIMITS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
MAPS = Path("/proc/self/maps")
LIMIT = Path("/proc/sys/vm/max_map_count")
# The programs of one arm or study must fit beside those that are kept.
SHARE_KEPT = 1 / 8


def make_room() -> None:
    """Forget the compiled programs if they hold much of what the system grants.

    To be called between arms: what an arm needs again is compiled again, or comes from the
    compilation cache on disk. Where the system does not say how much is held, nothing is kept.
    """
    if sys.platform == "linux" and _held() < SHARE_KEPT:
        return
    import jax

    jax.clear_caches()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; without it, pages stay
        if trim is not None:
            trim(0)


def _held() -> float:
    """The share of the memory maps granted to this process that it has."""
    with MAPS.open("rb") as maps:
        return sum(1 for _ in maps) / int(LIMIT.read_text())


def ran_out(error: BaseException | None) -> bool:
    """Whether an exception says that memory ran out, as Python or as XLA says it."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def granted() -> int:
    """Bytes of memory that this process may have: the machine's, or less in a container or job.

    Who takes more there is killed without a word.
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _limits():
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(found)


def _limits() -> Iterator[Path]:
    """The files that limit the control group of this process, and the groups above it."""
    if not GROUPS.exists():
        return
    for line in GROUPS.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        folder, name = LIMITS, "memory.max"
        if controllers:  # the first version of control groups, which has a tree for each kind
            folder, name = LIMITS / "memory", "memory.limit_in_bytes"
        if controllers in ("", "memory"):
            here = Path(group)
            yield from (folder / str(up).lstrip("/") / name for up in (here, *here.parents))
