"""WeightWatcher 0.7.7, in a Python of its own: it pins what we do not, and imports torch.

`SPECTRAL_JAX_WEIGHTWATCHER` names that Python; without it, the one that runs the benchmarks is
asked. Where it has no WeightWatcher, the peer is reported as not installed.
"""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

VARIABLE = "SPECTRAL_JAX_WEIGHTWATCHER"
SCRIPT = """
import json, sys, time
import weightwatcher
before = time.process_time()
table = weightwatcher.WeightWatcher().analyze(model=sys.argv[1], **json.loads(sys.argv[2]))
seconds = time.process_time() - before
rows = json.loads(table.to_json(orient="records"))
print("RESULT " + json.dumps({"cpu": seconds, "rows": rows}))
"""


def command(folder: Path, **options: Any) -> list[str]:
    """What a person would type to analyse the safetensors file in `folder`."""
    return [_python(), "-c", SCRIPT, str(folder), json.dumps(options)]


@lru_cache
def version() -> str | None:
    """Its version, or None if it is not there."""
    code = "import importlib.metadata as m; print(m.version('weightwatcher'))"
    done = subprocess.run([_python(), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or None


def analyse(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The rows of its table."""
    done = subprocess.run(command(folder, **options), capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))["rows"]


def _python() -> str:
    return os.environ.get(VARIABLE, sys.executable)
