"""Seeing in a lowered program whether LAPACK calls of it could wait for each other for ever.

jaxlib to 0.11.0 blocks a thread of XLA's CPU pool for each LAPACK call on a batch of matrices until
other threads of the pool have done the parts: as many such calls at once as there are threads, and
nobody is left (docs/method-selection.md).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax

from spectral_jax.linalg.lapack import cpu_threads, splits_batches

PAGE = "docs/method-selection.md, 'Several LAPACK calls in one program'"


def may_deadlock(lower: Callable[..., jax.stages.Lowered], *arguments: Any) -> bool:
    """Whether the program that ``lower(*arguments)`` gives could hang on this CPU and jaxlib.

    Lowered only where it could matter: that takes seconds. One thread, or one call, does not hang.
    """
    threads = cpu_threads()
    if jax.default_backend() != "cpu" or not splits_batches() or threads == 1:
        return False
    return batches_at_once(lower(*arguments)) >= threads


def batches_at_once(lowered: jax.stages.Lowered) -> int:
    """How many LAPACK calls on batches a program lowered for a CPU may make at the same time.

    That is, of those that have the same number of calls before them in the flow of data: none of
    them waits for another. It may be more than one in fact never sees at once, but not fewer.
    """
    module: Any = lowered.compiler_ir(dialect="stablehlo")
    functions = {op.attributes["sym_name"].value: op for op in module.body.operations}

    def within(operation: Any) -> int:
        """Those of an operation: its own, or those of what it calls, or of its branches or loop."""
        if operation.name == "stablehlo.custom_call":
            return int(_is_batch(operation))
        if operation.name == "func.call":
            operation = functions[operation.attributes["callee"].value]
        blocks = [block for region in operation.regions for block in region.blocks]
        return max(map(of_block, blocks), default=0)

    def of_block(block: Any) -> int:
        before: dict[Any, int] = {}
        side_by_side: Counter[int] = Counter()
        for view in block.operations:
            operation = view.operation
            calls = within(operation)
            depth = max((before.get(value, 0) for value in operation.operands), default=0)
            side_by_side[depth] += calls
            before.update((value, depth + (calls > 0)) for value in operation.results)
        return max(side_by_side.values(), default=0)

    return within(functions["main"].operation)


def _is_batch(call: Any) -> bool:
    if not call.attributes["call_target_name"].value.startswith("lapack_"):
        return False
    shape = call.operands[0].type.shape
    return math.prod(shape[:-2]) > 1
