"""`python -m experiments` whose workers give a block away after seconds, not after a minute.

python -m tests.faults.impatient sweep ...
"""

import sys

from experiments import __main__ as experiments
from experiments.sweep.executors import processes, worker

STALLED = 5.0


def command_of_worker(*arguments):
    words = COMMAND(*arguments)
    return [__spec__.name if word == "experiments" else word for word in words]


COMMAND = processes.worker_command

if __name__ == "__main__":
    experiments.stop_on_signals()
    processes.worker_command, worker.STALLED = command_of_worker, STALLED
    sys.exit(experiments.main())
