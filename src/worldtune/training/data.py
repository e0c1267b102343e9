"""Micro-batches: read once in each data-parallel row, the same on all of its ranks."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from worldtune.parallel.mesh import Mesh
from worldtune.training.order import BatchLayout, OrdinalBatchSampler
from worldtune.training.task import Batch, Sample

PREFETCHED_BATCHES = 2


def _init_worker(_worker: int) -> None:
    # SLURM signals every process of a step. A loader that died of it would take the running optimizer step with it; it
    # ends by itself when the trainer does.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class BatchReader:
    """Reads the micro-batches of this data-parallel row on its first rank and hands them to its other ranks.

    Tensors travel as they are read (videos as uint8) between devices.
    """

    def __init__(
        self,
        make_dataset: Callable[[], Dataset[Sample]],
        layout: BatchLayout,
        mesh: Mesh,
        device: torch.device,
        *,
        num_workers: int,
        first_step: int,
        last_step: int,
    ) -> None:
        """Start the loader processes; they read from `first_step` (0-based) to before `last_step`."""
        self._device = device
        self._group = mesh.sample.get_group() if mesh.sample.size() > 1 else None
        self._batches: Iterator[Batch] | None = None
        if mesh.sample.get_local_rank() != 0:
            return
        sampler = OrdinalBatchSampler(layout, mesh.data.get_local_rank(), first_step, last_step)
        loader: DataLoader[Sample] = DataLoader(
            make_dataset(),
            batch_sampler=sampler,
            num_workers=num_workers,
            # A forked worker sees that its parent was killed and ends; one of a fork server stays for ever.
            multiprocessing_context="fork" if num_workers else None,
            prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=_init_worker,
        )
        self._batches = iter(loader)

    def next(self) -> Batch:
        """Return the next micro-batch, on the device; collective over the data-parallel row."""
        batch = None
        if self._batches is not None:
            batch = {key: self._to_device(value) for key, value in next(self._batches).items()}
        if self._group is None:
            assert batch is not None
            return batch
        return self._broadcast(batch, self._group)

    def _to_device(self, value: Any) -> Any:
        return value.to(self._device, non_blocking=True) if isinstance(value, Tensor) else value

    def _broadcast(self, batch: Batch | None, group: dist.ProcessGroup) -> Batch:
        source = dist.get_global_rank(group, 0)
        header: list[Any] = [None]
        if batch is not None:
            header = [{key: _describe(value) for key, value in batch.items()}]
        dist.broadcast_object_list(header, src=source, group=group, device=self._device)
        received: Batch = {}
        for key, description in header[0].items():
            if not isinstance(description, tuple):
                received[key] = description
                continue
            shape, dtype = description
            if batch is None:
                received[key] = torch.empty(shape, dtype=dtype, device=self._device)
            else:
                received[key] = batch[key].contiguous()
            dist.broadcast(received[key], src=source, group=group)
        return received


def _describe(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
