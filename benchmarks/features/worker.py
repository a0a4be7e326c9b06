"""What needs a process of its own: the peak of memory, and several devices.

    python -m benchmarks.features.worker stream ROWS COLUMNS
    python -m benchmarks.features.worker shard ROWS COLUMNS

Each prints its numbers as JSON.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

BATCH, DEVICES = 4096, 4
CLASSES = 10


def stream(n: int, p: int) -> dict[str, float]:
    """Richness of so many rows, a batch of which is there at a time."""
    import numpy as np

    from spectral_jax import features

    rng = np.random.default_rng(0)
    head = features.Head(rng.standard_normal((p, CLASSES)).astype("float32"))
    began = time.perf_counter()
    m = features.zero(p)
    for start in range(0, n, BATCH):
        rows = rng.standard_normal((min(BATCH, n - start), p), np.float32)
        m = features.update(m, rows)
    value = float(features.richness(m, head=head).value)
    seconds = time.perf_counter() - began
    return {"peak": _peak(), "seconds": seconds, "value": value}


def _peak() -> int:
    """Bytes, on Linux. Not ``ru_maxrss``, which begins at what the starting process held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def shard(n: int, p: int) -> dict[str, float]:
    """Sharded moments beside those of all rows: how far apart, and what passes between devices."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    import jax
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from spectral_jax import features

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n // DEVICES * DEVICES, p))
    head = features.Head(rng.standard_normal((p, CLASSES)))
    mesh = jax.make_mesh((DEVICES,), ("rows",))
    x = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("rows")))

    def local(rows):
        m = features.zero(p)
        for part in jax.numpy.array_split(rows, 2):
            m = features.update(m, part)
        return features.psum(m, "rows")

    specs = dict(in_specs=PartitionSpec("rows"), out_specs=PartitionSpec())
    pooled = jax.jit(jax.shard_map(local, mesh=mesh, **specs)).lower(x).compile()
    reduced = re.findall(r"= (.*) all-reduce(?:-start)?\(", pooled.as_text())
    matrices = [shape for shape in reduced if f"[{p},{p}]" in shape]
    values = [float(features.richness(m, head=head).value) for m in (pooled(x), features.of(rows))]
    return {
        "apart": abs(values[0] - values[1]),
        "matrices": len(matrices),
        "collectives": len(reduced),
    }


TASKS: dict[str, Callable[[int, int], dict[str, float]]] = {"stream": stream, "shard": shard}

if __name__ == "__main__":
    task, *sizes = sys.argv[1:]
    print(json.dumps(TASKS[task](*map(int, sizes))))
