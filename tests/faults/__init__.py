"""Sweeps that die, lose their disk or their workers, and must end as if nothing had happened.

    python -m tests.faults points --executor local        # at every write, fsync, rename and link
    python -m tests.faults soak --kills 200 --executor processes:2

`points` forks a toy sweep, whose blocks train in microseconds, for every operation on the disk that
it makes. `soak` kills and disturbs a real one at random. `tests/test_faults.py` runs cuts of both.
"""
