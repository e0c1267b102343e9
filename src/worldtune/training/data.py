"""Micro-batches: read once for all ranks that share them, and prepared while the one before is trained on."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from worldtune.training.order import BatchLayout, OrdinalBatchSampler
from worldtune.training.task import Batch, Sample

PREFETCHED_BATCHES = 2


def _init_worker(_worker: int) -> None:
    # SLURM signals every process of a step. A loader that died of it would take the running optimizer step with it; it
    # ends by itself when the trainer does.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class BatchReader:
    """Reads the micro-batches of a group of ranks on the first of them and hands them to the others.

    Tensors travel as they are read (videos as uint8) between devices.
    """

    def __init__(
        self,
        make_dataset: Callable[[], Dataset[Sample]],
        layout: BatchLayout,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        data_rank: int,
        num_workers: int,
        first_step: int,
        last_step: int,
    ) -> None:
        """Start the loader processes; they read from `first_step` (0-based) to before `last_step`.

        Args:
            make_dataset: makes the samples by ordinal, on the group's first rank.
            layout: says which samples are the group's.
            group: the ranks that work on the same samples.
            device: of this rank.
            data_rank: the group's number among all groups.
            num_workers: loader processes.
            first_step: optimizer step to begin with.
            last_step: optimizer step to end before.
        """
        self._device = device
        self._group = group if dist.get_world_size(group) > 1 else None
        self._batches: Iterator[Batch] | None = None
        sampler = OrdinalBatchSampler(layout, data_rank, first_step, last_step)
        self.num_batches = len(sampler)
        """Micro-batches that there are, on every rank."""
        if dist.get_rank(group) != 0:
            return
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
        """Return the next micro-batch, on the device; collective over the group."""
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
        header: list[Any] = [None]
        if batch is not None:
            header = [{key: _describe(value) for key, value in batch.items()}]
        dist.broadcast_object_list(header, group=group, group_src=0, device=self._device)
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
            dist.broadcast(received[key], group=group, group_src=0)
        return received


class Prefetcher:
    """Reads and prepares each micro-batch before the one ahead of it is trained on.

    On a GPU this happens on a stream of its own, beside the step's computation. Elsewhere the same is done in the same
    order. Which samples a step has is the reader's matter: what was prepared when a run ends is read again by the next.
    """

    def __init__(
        self,
        read: Callable[[], Batch],
        prepare: Callable[[Batch], Batch],
        device: torch.device,
        *,
        num_batches: int,
        ahead: bool,
    ) -> None:
        """Read nothing yet.

        Args:
            read: gives the next micro-batch on the device, on the current stream.
            prepare: does what needs no trained weight, on the current stream.
            device: of this rank.
            num_batches: micro-batches that `read` can give.
            ahead: whether there is memory for one micro-batch being prepared beside a step; else each is prepared when
                it is asked for.
        """
        self._read = read
        self._prepare = prepare
        self._num_left = num_batches
        self._ahead_wanted = ahead
        self._ahead: Batch | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda" and ahead:
            self._stream = torch.cuda.Stream(device)
            # Weights that `prepare` computes with may still be on their way.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def next(self) -> Batch:
        """Return the next micro-batch, ready for the current stream, and start on the one after it.

        Raises:
            StopIteration: there is none.
        """
        batch = self._ahead if self._ahead is not None else self._start()
        if batch is None:
            raise StopIteration
        if self._stream is not None:
            current = torch.cuda.current_stream(self._stream.device)
            # Before the next one is begun, for which nobody waits yet.
            current.wait_stream(self._stream)
            for value in batch.values():
                if isinstance(value, Tensor):
                    # Its memory belongs to the other stream, which would take it back while this one reads.
                    value.record_stream(current)
        if self._ahead_wanted:
            self._ahead = self._start()
        return batch

    @torch.no_grad()
    def _start(self) -> Batch | None:
        """Begin to read and prepare a micro-batch; None where none is left."""
        if self._num_left == 0:
            return None
        self._num_left -= 1
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            return self._prepare(self._read())


def _describe(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
