"""Several devices for one block: each takes some of the trials, or some rows of every batch.

    trainer = Trainer(task, optimizer).over(devices_of("trials"))

Shardings are explicit everywhere. An ambient mesh would reach code that knows nothing of it, such
as Orbax reading a checkpoint (orbax#3164).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.errors import UserError
from experiments.runs.processes import gathered, is_key, put
from experiments.training.orders import Orders
from experiments.training.task import Data, Task

Tree = Any


@dataclass(frozen=True)
class Devices:
    """The devices of all processes, and what they share.

    share: ``trials``: each trains its part of a block and none waits for another, so the numbers
      do not depend on how many there are (one after the other, ``map``). ``batch``: each has its
      rows of every batch and all the weights; gradients are summed over the devices, so the last
      digits of the numbers depend on how many there are.
    """

    share: Literal["trials", "batch"]
    mesh: Mesh

    def task(self, task: Task) -> Task:
        """The task with its data on every device; `UserError` (2) if a batch cannot be shared."""
        if self.share == "batch":
            self._refuse_what_cannot_be_shared(task.batch_size)
        return replace(task, data={split: self._data(data) for split, data in task.data.items()})

    def state(self, state: Tree) -> Tree:
        """The state of trials where their devices need it.

        Trials that cannot be dealt out evenly are on every device.
        """
        trials = len(jax.tree.leaves(state)[0])
        even = self.share == "trials" and trials % self.mesh.size == 0
        return put(state, self._sharding(*[self.share] * even))

    def orders(self, orders: Orders) -> Orders:
        """The orders on every device, and the place of each trial's with the trial."""
        return Orders(put(orders.rows, self._sharding()), self.state(orders.row_of))

    def _data(self, data: Data) -> Data:
        spread = self._sharding("batch") if self.share == "batch" else None
        return replace(put(data, self._sharding()), spread=spread)

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _refuse_what_cannot_be_shared(self, batch_size: int) -> None:
        count = self.mesh.size
        if batch_size % count == 0:
            return
        fewer = batch_size // count * count
        sizes = " or ".join(str(size) for size in (fewer, fewer + count) if size)
        raise UserError(
            f"data.batch_size = {batch_size} cannot be shared evenly by {count} devices "
            f"(train.shard = batch): set it to {sizes}"
        )


def devices_of(
    share: Literal["none", "trials", "batch"], devices: Sequence[jax.Device] | None = None
) -> Devices | None:
    """What ``train.shard`` says, with all devices of all processes; None for ``none``.

    Raises ``UserError`` (2) where several processes would all train the same.
    """
    if share == "none":
        if jax.process_count() > 1:
            raise UserError(
                f"train.shard = none lets each of {jax.process_count()} processes train everything "
                "by itself: set train.shard=trials or train.shard=batch, or leave out --distributed"
            )
        return None
    devices = jax.devices() if devices is None else devices
    return Devices(share, Mesh(np.array(devices), (share,), axis_types=(AxisType.Auto,)))


def here(tree: Tree) -> Tree:
    """The tree whole on this process's first device, for what is not written for several."""

    def one(leaf):
        whole = jax.numpy.asarray(gathered(leaf))
        if not is_key(leaf):
            return whole
        return jax.random.wrap_key_data(whole, impl=jax.random.key_impl(leaf))

    return jax.tree.map(one, tree)
