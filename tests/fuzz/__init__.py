"""Seeded fuzzers of every format, of configurations and of command lines.

    python -m tests.fuzz --minutes 10
    python -m tests.fuzz --seed 3 --target torch --only 1234      one input again

An input is a small valid file, damaged: it must end in a result or in one line and exit code 2, in
ten seconds and a gigabyte, without running code, and without reading or writing elsewhere. Linux
only, for it says what memory a process took.
"""
