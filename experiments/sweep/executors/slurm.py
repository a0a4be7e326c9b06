"""Workers as jobs of a Slurm cluster, through submitit."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from experiments.errors import DONE, FAILED, UserError, one_line
from experiments.runs.environment import passed_on, set_defaults
from experiments.runs.interruption import meaning, stop_on_signals
from experiments.sweep.executors.crew import Crew, Worker
from experiments.sweep.executors.worker import worker

DEFAULTS = {"name": "spectral-jax", "timeout_min": 60, "stderr_to_stdout": True}
OF_EVERY_CLUSTER = {*DEFAULTS, "mem_gb", "nodes", "cpus_per_task", "gpus_per_node"}
PATIENCE = 600.0  # seconds that a job waits for further blocks: a place in the queue took longer


def slurm(workers: int, options: Mapping[str, Any]) -> Crew:
    """`slurm:N,partition=gpu,gpus=1,timeout_min=60`: N jobs, each a worker on a node.

    Options are those of submitit: `timeout_min`, `mem_gb`, `gpus_per_node` (or `gpus`),
    `cpus_per_task`, and those of `sbatch` by name, as `partition`, `account`, `constraint`.
    `cluster=local` runs the jobs on this machine, without Slurm.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UserError(
            "--executor slurm needs submitit: pip install 'spectral-jax[slurm]'"
        ) from None
    cluster = options.get("cluster", "slurm")
    if cluster not in ("slurm", "local"):
        raise UserError(f"--executor slurm: cluster={cluster} is neither slurm nor local")
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "--executor slurm: there is no sbatch here; run this on a login node of the cluster, "
            "use processes:2, or try the jobs without Slurm by slurm:2,cluster=local"
        )
    asked = {key: value for key, value in options.items() if key != "cluster"}
    return Crew(workers, functools.partial(Job, cluster=cluster, options=asked))


class Job(Worker):
    """A job; whether the cluster starts it again after a preemption makes no difference."""

    def __init__(
        self,
        directory: Path,
        name: str,
        share: tuple[int, int],
        *,
        cluster: str,
        options: Mapping[str, Any],
    ) -> None:
        from submitit import AutoExecutor
        from submitit.core.utils import environment_variables
        from submitit.helpers import clean_env

        self.name = name
        self._stopped = False
        parameters = {_parameter(key): value for key, value in options.items()}
        try:
            executor = AutoExecutor(directory.absolute() / "workers", cluster)
            executor.update_parameters(**{**DEFAULTS, **parameters})
            # What a job that submits others has from its own Slurm is not for theirs.
            clean = clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext()
            with clean, environment_variables(**passed_on()):
                self._job = executor.submit(_work, directory.absolute(), name, share)
        except (AssertionError, NameError, ValueError, RuntimeError) as error:
            raise UserError(f"--executor slurm: {str(error).splitlines()[0]}") from error
        self.log = self._job.paths.stdout
        self._local = cluster == "local"

    def ended(self) -> int | None:
        """The worker's exit code, 1 where the job died; None while it waits or runs."""
        if not self._job.done(force_check=self._stopped):
            return None
        if self._stopped:
            return DONE
        return FAILED if self._job.exception() else self._job.result()

    def stop(self) -> None:
        """Cancel the job: its processes get SIGTERM, so a worker saves."""
        self._stopped = True
        if not self._local:
            self._job.cancel(check=False)
        elif not self._job.done():  # to cancel it would be SIGINT, and SIGKILL a second later
            os.kill(int(self._job.job_id), signal.SIGTERM)

    def kill(self) -> None:
        """Cancel the job, if it has not ended."""
        if not self._job.done():
            self._job.cancel(check=False)


def _parameter(option: str) -> str:
    """The name that submitit has for an option; without a prefix those of every cluster."""
    option = {"gpus": "gpus_per_node"}.get(option, option)
    return option if option in OF_EVERY_CLUSTER else f"slurm_{option}"


def _work(directory: Path, name: str, share: tuple[int, int]) -> int:
    """The job: a worker, which ends and speaks as the command line does."""
    stop_on_signals()
    # Slurm's warning before the time is up, or before a preemption.
    signal.signal(signal.SIGUSR2, lambda *_: signal.raise_signal(signal.SIGTERM))
    set_defaults()
    try:
        return worker(directory, name=name, share=share, patience=PATIENCE)
    except UserError as error:
        message, code = error.message, error.exit_code
    except KeyboardInterrupt as error:
        message, code = meaning(error)
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
