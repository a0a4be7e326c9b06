"""Sweeps that die, lose their disk or their workers, and must end as if nothing had happened.

    python -m tests.faults points                  # a quarter of an hour at most
    python -m tests.faults soak --kills 200        # an hour or so; --executor slurm:2,cluster=local

`points` forks a toy sweep, whose blocks train in microseconds, for every write, fsync, rename and
link that it makes, here and in worker processes, with and without halving. `soak` kills, halts and
spoils a real one at random. `tests/test_faults.py` runs a cut of both: of `points` with all tests,
of `soak` with `pytest -m slow`.
"""
