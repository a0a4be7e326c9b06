"""The groups of nodes of a network's graph, noted while a forward pass is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias


class Kernel(NamedTuple):
    """A leaf of parameters and how many of its axes are window, inputs and outputs, in order."""

    path: str
    window: int
    inputs: int
    outputs: int


Taken: TypeAlias = tuple[int, str | None, bool]
"""What is read: a node, the batch-norm between, and whether zeros are behind its units."""


class Edge(NamedTuple):
    """From a node to a node, by a kernel or (None) as it is."""

    kernel: Kernel | None
    source: int
    target: int
    positions: int = 1


class Graph:
    """Nodes by number: those of inputs, one per kernel, one per sum."""

    def __init__(self, *, fold_norms: bool) -> None:
        self.fold_norms = fold_norms
        self.edges: list[Edge] = []
        self._nodes = 0
        self._made_by_kernel: set[int] = set()
        self._readers: dict[int, set[int | None]] = {}
        self._norms: dict[int, set[str | None]] = {}
        self._padded: set[int] = set()

    def node(self) -> int:
        """Number a new node."""
        self._nodes += 1
        return self._nodes - 1

    def kernel(self, kernel: Kernel, taken: Taken, positions: int) -> int:
        """Note a kernel that reads ``taken``, and return the node of its outputs."""
        target = self.node()
        self._made_by_kernel.add(target)
        self.take(taken, target)
        self.edges.append(Edge(kernel, taken[0], target, positions))
        return target

    def sum(self, terms: Sequence[Taken]) -> int:
        """Note a sum of groups, unit by unit, and return its node."""
        target = self.node()
        for taken in terms:
            self.take(taken, target)
            self.edges.append(Edge(None, taken[0], target))
        return target

    def take(self, taken: Taken, reader: int | None) -> None:
        """Note that a node reads another; None is whoever reads the network's outputs."""
        source, norm, padded = taken
        self._readers.setdefault(source, set()).add(reader)
        self._norms.setdefault(source, set()).add(norm)
        if padded:
            self._padded.add(source)

    def norms(self) -> dict[int, str]:
        """The batch-norm behind each kernel.

        Raises ``ValueError`` where it scales less, or other things, than the outputs of a kernel.
        """
        found: dict[int, str] = {}
        for node, seen in self._norms.items():
            names = {norm for norm in seen if norm is not None}
            if not names:
                continue
            if len(seen) > 1 or node not in self._made_by_kernel:
                raise ValueError(
                    f"the batch-norm {min(names)!r} scales what a kernel reads and not what one "
                    "writes, and cannot be folded; pass fold_norms=False to leave norms out"
                )
            (found[node],) = names
        return found

    def groups(self) -> list[int]:
        """The group of each node.

        A node that nothing reads but one sum is merged with the sum: its units and those of the sum
        could be told apart only by an identity edge. Any other keeps a group of its own.
        """
        root = list(range(self._nodes))
        made = {edge.target for edge in self.edges}
        for kernel, source, target, _ in reversed(self.edges):
            summed = kernel is None and self._readers[source] == {target}
            if summed and source in made - self._padded:
                root[source] = root[target]
        order: dict[int, int] = {}
        return [order.setdefault(node, len(order)) for node in root]
