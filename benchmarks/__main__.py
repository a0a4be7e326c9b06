"""The command line of the measurements: `python -m benchmarks --help`."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks import SUITES
from spectral_jax._environment import set_defaults

COMMAND = "python -m benchmarks"
RESULTS = Path(__file__).parent / "RESULTS.md"
EXAMPLES = f"""\
examples:
  {COMMAND} list                what there is to measure
  {COMMAND} fiedler             measure it, and write it into benchmarks/RESULTS.md
  {COMMAND} fiedler --smoke     tiny sizes, in seconds; writes nothing

Exit codes: 0 done, 2 usage, 3 measured, but a target was missed.
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=COMMAND, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", choices=["list", *SUITES])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; writes nothing")
    options = parser.parse_args(arguments)
    if options.suite == "list":
        print("\n".join(f"{name:<10} {what}" for name, what in SUITES.items()))
        return 0
    return measure(options.suite, smoke=options.smoke)


def measure(suite: str, *, smoke: bool) -> int:
    # Read when the libraries load. The peers' BLAS and the LAPACK that jaxlib borrows from SciPy
    # get one thread each; `harness.one_core` then holds whole comparisons to one core.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    set_defaults()
    if smoke:
        # Nothing is measured that depends on it, and programs compile twice as fast.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0"
    from benchmarks import harness

    provenance = harness.Provenance(f"{COMMAND} {suite}" + smoke * " --smoke")
    tables = []
    for table in importlib.import_module(f"benchmarks.{suite}").tables(smoke):
        print(harness.markdown(table), flush=True)
        tables.append(table)
    section = harness.section(suite, SUITES[suite], tables, provenance)
    if smoke:
        return 0
    harness.update(RESULTS, suite, section)
    print(f"written to {RESULTS.name}", file=sys.stderr)
    return 3 if any(harness.missed(table) for table in tables) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
