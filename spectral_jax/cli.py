"""The ``spectral-jax`` command. Data goes to stdout, everything else to stderr."""

import argparse
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from spectral_jax import __version__
from spectral_jax._environment import set_defaults

EXAMPLES = {
    "analyze": """\
  spectral-jax analyze model.safetensors             what each layer's spectrum says
  spectral-jax analyze first.npz --compare last.npz  two checkpoints side by side
  spectral-jax analyze model.pt --report out.html    a page with figures
  spectral-jax analyze model.pt --metrics all --json every metric as one JSON object
""",
    "compress": """\
  spectral-jax compress model.pt --rank mp --out small.safetensors
                                                     layers cut at the noise, as two factors
  spectral-jax compress model.pt --rank energy=0.99 --out small.safetensors
                                                     1 % of each layer's squared norm left out
""",
    "data": """\
  spectral-jax data table.csv --figure spectrum.png  how many directions a table has, and how sure
  spectral-jax data table.csv --missing pairwise     the same of a table with empty cells
""",
    "drift": """\
  spectral-jax drift reference.npz batch.npz         whether features moved: exit code 3 if they did
  spectral-jax drift reference.npz batch.npy --level 0.001 --json
                                                     one false alarm in 1000, as a JSON object
""",
    "doctor": """\
  spectral-jax doctor                                what will be slow on this machine, and the fix
  spectral-jax doctor --json                         the same as one JSON object
""",
}

FAILED, BAD_INPUT, MISSING, INTERRUPTED = 1, 2, 4, 130


class _Parser(argparse.ArgumentParser):
    """Examples come first in the help, and a wrong word costs one line."""

    def format_help(self) -> str:
        examples = EXAMPLES.get(self.prog.split()[-1], "".join(EXAMPLES.values()))
        return f"examples:\n{examples}\n{super().format_help()}"

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"spectral-jax: {message}; see {self.prog} --help\n")

    def unknown(self, word: str, known: Sequence[str]) -> NoReturn:
        near = difflib.get_close_matches(word, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known)}"
        if word in known:
            hint = "it stands behind the command"
        self.error(f"unknown {word!r}: {hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong usage or a bad file.

    3 is an alarm of ``drift``, 4 a checkpoint, table or other file that is not there, 1 too little
    memory, 130 an interruption; each but the alarm is one line on stderr.
    """
    try:
        options = _parsed(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # while libraries are imported
        code, message = INTERRUPTED, "interrupted"
    else:
        code, message = _run(options)
    if message:
        from spectral_jax.checkpoints import as_line

        print(f"spectral-jax: {as_line(message)}", file=sys.stderr)
    return code


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    set_defaults()  # before NumPy starts threads of its own
    from spectral_jax.analysis import command as analyze
    from spectral_jax.analysis import data, drift
    from spectral_jax.compress import command as compress

    parser = _Parser(prog="spectral-jax", description="Spectra of neural networks from a shell.")
    parser.add_argument("--version", action="version", version=f"spectral-jax {__version__}")
    commands = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    doctor = commands.add_parser("doctor", help="versions, devices, threads and findings")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.set_defaults(run=_doctor)

    analyzer = commands.add_parser("analyze", help="spectra of the weights in a checkpoint")
    analyze.add_arguments(analyzer)
    analyzer.set_defaults(run=analyze.run)

    compressor = commands.add_parser("compress", help="layers of a checkpoint as two thinner ones")
    compress.add_arguments(compressor)
    compressor.set_defaults(run=compress.run)

    table = commands.add_parser("data", help="the spectrum of a table of numbers")
    data.add_arguments(table)
    table.set_defaults(run=data.run, what="table")

    watcher = commands.add_parser("drift", help="whether features are those of a reference")
    drift.add_arguments(watcher)
    watcher.set_defaults(run=drift.run, what="file")

    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        parser.unknown(words[0], list(commands.choices))
    options, unknown = parser.parse_known_args(words)
    if unknown:
        command = commands.choices[options.command]
        command.unknown(unknown[0], re.findall(r"--[a-z]+", command.format_usage()))
    return options


def _run(options: argparse.Namespace) -> tuple[int, str]:
    """The exit code, and what to say on stderr if the command failed."""
    if sys.stderr is None:  # print would take stdout for it
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        return BAD_INPUT, "stdout is closed: send it to a file, or to /dev/null"
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files and layers may hold what the terminal's encoding does not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = options.run(options)
        sys.stdout.flush()  # a reader that has gone is found here, not when the interpreter ends
        return code, ""
    except BrokenPipeError:  # the reader of stdout, say `head`, has seen enough
        sys.stdout = open(os.devnull, "w")
        return 0, ""
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted"
    except FileNotFoundError as error:
        what = getattr(options, "what", "checkpoint")
        return MISSING, f"{error.filename or error}: there is no such {what}"
    except (ValueError, OSError, ImportError) as error:
        return BAD_INPUT, str(error)
    except MemoryError as error:
        return FAILED, f"{options.path}: not enough memory: {error}"
    finally:
        _let_go_of_stdout()


def _let_go_of_stdout() -> None:
    """What a full disk does not take now would fail once more when the interpreter ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")


def _doctor(options: argparse.Namespace) -> int:
    from spectral_jax._doctor import examine, render

    report = examine()
    print(json.dumps(report, indent=2) if options.json else render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
