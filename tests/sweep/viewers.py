"""What stands in for wandb 0.31 and trackio 0.43: their signatures, and a record of the calls."""

import os
import types
from importlib.machinery import ModuleSpec
from pathlib import Path


class Recorder:
    """A run of either package."""

    def __init__(self, **options):
        self.options = options
        self.points = []
        self.finished = self.deleted = False
        self.name = options["name"]

    def log(self, data=None, step=None, commit=None, *, metrics=None):
        assert not self.finished
        assert all(step > before for before, _ in self.points)
        self.points.append((step, data if metrics is None else metrics))

    def finish(self, exit_code=None):
        self.finished = True

    def delete(self):
        self.deleted = True
        return True


def module(name, **attributes):
    """A module that `importlib.util.find_spec` finds once it is in `sys.modules`."""
    found = types.ModuleType(name)
    found.__spec__ = ModuleSpec(name, None)
    found.__dict__.update(attributes)
    return found


def wandb():
    runs = []

    def init(
        entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None,
        config=None, config_exclude_keys=None, config_include_keys=None, allow_val_change=None,
        group=None, job_type=None, mode=None, force=None, reinit=None, resume=None,
        resume_from=None, fork_from=None, save_code=None, tensorboard=None, sync_tensorboard=None,
        monitor_gym=None, settings=None,
    ):  # fmt: skip
        given = {name: value for name, value in locals().items() if value is not None}
        assert not set(id) & set("/\\#?%:") and "/" not in project
        count = len(runs)
        Path(dir, "wandb", f"offline-run-20261130_{count:06d}-{id}").mkdir(parents=True)
        runs.append(Recorder(**{key: value for key, value in given.items() if key != "runs"}))
        return runs[-1]

    return module("wandb", init=init, runs=runs)


def trackio():
    kept = []

    class Api:
        def runs(self, project):
            found = [run for run in kept if run.options["project"] == project]
            if not found:
                raise ValueError(f"Project '{project}' does not exist")
            return [run for run in found if not run.deleted]

    def init(
        project, name=None, group=None, space_id=None, server_url=None, dataset_id=None,
        bucket_id=None, config=None, resume="never", settings=None, private=None, embed=True,
        auto_log_gpu=None, gpu_log_interval=10.0, auto_log_cpu=None, cpu_log_interval=10.0,
        webhook_url=None, webhook_min_level=None,
    ):  # fmt: skip
        assert (embed, auto_log_gpu, auto_log_cpu) == (False, False, False)
        print("* Trackio project initialized")
        kept.append(Recorder(project=project, name=name, group=group, config=config))
        return kept[-1]

    def finish():
        kept[-1].finish()

    utils = module("trackio.utils", TRACKIO_DIR=os.environ.get("TRACKIO_DIR", ""))
    return module("trackio", init=init, finish=finish, Api=Api, utils=utils, kept=kept)
