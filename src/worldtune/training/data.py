"""Micro-batches: read once for all ranks that share them, and prepared while the one before is trained on."""

import contextlib
import gc
import logging
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torchdata
from torch import Tensor
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader

from worldtune.common.errors import WorldtuneError
from worldtune.training.order import BatchLayout, OrdinalBatchSampler
from worldtune.training.task import Batch, Sample

PREFETCHED_BATCHES = 2
KEPT_POSITIONS = 2
"""Positions that a reader remembers: that of the last micro-batch, and the one before, since one is read ahead."""
logger = logging.getLogger(__name__)


def _init_worker(_worker: int) -> None:
    # SLURM signals every process of a step. A loader that died of it would take the running optimizer step with it; it
    # ends by itself when the trainer does.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class BatchReader:
    """Reads the micro-batches of a group of ranks on the first of them and hands them to the others.

    Tensors travel as they are read (videos as uint8) between devices. Which samples a step has is a function of its
    number; the loader's own position, which a checkpoint holds, must agree with it.
    """

    def __init__(
        self,
        make_dataset: Callable[[], Dataset[Sample]],
        layout: BatchLayout,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        dataset_digest: str,
        data_rank: int,
        num_workers: int,
        first_step: int,
        last_step: int,
    ) -> None:
        """Read from `first_step` (0-based) to before `last_step`; no process is started yet.

        Args:
            make_dataset: makes the samples by ordinal, on the group's first rank.
            layout: says which samples are the group's.
            group: the ranks that work on the same samples.
            device: of this rank.
            dataset_digest: digest of the dataset's clips; positions are saved with it.
            data_rank: the group's number among all groups.
            num_workers: loader processes.
            first_step: optimizer step to begin with.
            last_step: optimizer step to end before.
        """
        self._device = device
        self._group = group if dist.get_world_size(group) > 1 else None
        self._layout = layout
        self._dataset_digest = dataset_digest
        self._data_rank = data_rank
        self._first_step = first_step
        self._origin = {**vars(layout), "num_workers": num_workers, "torchdata": torchdata.__version__}
        self._batches: Iterator[Batch] | None = None
        self._positions: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT_POSITIONS)
        sampler = OrdinalBatchSampler(layout, data_rank, first_step, last_step)
        self.num_batches = len(sampler)
        """Micro-batches that there are, on every rank."""
        self._num_read = 0
        self._loader: StatefulDataLoader | None = None
        if dist.get_rank(group) != 0:
            return
        with warnings.catch_warnings():
            # A call within torchdata, of which a reader can make nothing.
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
            self._loader = StatefulDataLoader(
                make_dataset(),
                batch_sampler=sampler,
                num_workers=num_workers,
                # A forked worker sees that its parent was killed and ends; one of a fork server stays for ever.
                multiprocessing_context="fork" if num_workers else None,
                prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
                pin_memory=device.type == "cuda",
                worker_init_fn=_init_worker,
                # Its own, since the start of the processes would draw from the default one.
                generator=torch.Generator(),
            )

    def load_state_dict(self, saved: Sequence[Mapping[str, Any]]) -> None:
        """Go on from where the loaders of a run were when `first_step` steps were complete; before anything is read.

        Under another layout, number of processes or version of torchdata the position of a loader means nothing. It
        then follows from the step alone, which gives the same samples.

        Args:
            saved: what `state_dict` gave on the reading rank of each data-parallel rank, in their order; empty for a
                run's start.

        Raises:
            WorldtuneError: the positions are of another dataset, or of another step.
        """
        for position in saved:
            if position["dataset_digest"] != self._dataset_digest:
                raise WorldtuneError(
                    f"the checkpoint's position in the data is one of the dataset with digest "
                    f"{position['dataset_digest']}, but the dataset's digest is {self._dataset_digest}: its clips have "
                    "changed. Restore that dataset, or start an attempt of its own for this one."
                )
        if [position["origin"] for position in saved] != [self._origin] * self._layout.data:
            if saved:
                logger.info(
                    "data loaders were saved as %s, now %s: going by the step", saved[0]["origin"], self._origin
                )
            return
        position = saved[self._data_rank]
        expected = self._next_ordinal(self._first_step)
        if position["next_ordinal"] != expected:
            raise WorldtuneError(
                f"the checkpoint's position in the data is sample {position['next_ordinal']}, but step "
                f"{self._first_step} begins with sample {expected}: the checkpoint is damaged. Delete it, and the "
                "one before it is taken."
            )
        if self._loader is not None:
            self._loader.load_state_dict(dict(position["loader"]))

    def start(self) -> None:
        """Start the loader processes, which read ahead; the first `next` does it otherwise."""
        if self._loader is None or self._batches is not None:
            return
        # Keeps garbage of this process from being collected in a forked one, which lacks the threads that the
        # destructor of a process group waits for.
        gc.freeze()
        try:
            self._batches = iter(self._loader)
        finally:
            gc.unfreeze()
        self._note_position()

    def close(self) -> None:
        """End the loader processes. They ignore signals, so that a process that has them left never ends."""
        # Its last reference would do it too, but the traceback of an error may hold that to the end.
        shut_down = getattr(self._batches, "_shutdown_workers", None)
        if shut_down is not None:
            shut_down()
        self._batches = self._loader = None

    def state_dict(self, step: int) -> dict[str, Any] | None:
        """Return the position of this rank's loader behind the last completed step; None where another rank reads.

        Micro-batches that were read ahead of the next step are not counted.

        Args:
            step: completed optimizer steps of the run; the reader is in the step after it, or at its start.

        Returns:
            JSON values.
        """
        if self._loader is None:
            return None
        self.start()
        num_consumed = (step - self._first_step) * self._layout.accumulation
        return {
            "dataset_digest": self._dataset_digest,
            "data_rank": self._data_rank,
            "next_ordinal": self._next_ordinal(step),
            "origin": self._origin,
            "loader": dict(self._positions)[num_consumed],
        }

    def _next_ordinal(self, step: int) -> int:
        return self._layout.ordinals(step, 0, self._data_rank)[0]

    def _note_position(self) -> None:
        assert self._loader is not None
        self._positions.append((self._num_read, self._loader.state_dict()))

    def next(self) -> Batch:
        """Return the next micro-batch, on the device; collective over the group."""
        self.start()
        batch = None
        if self._batches is not None:
            batch = {key: self._to_device(value) for key, value in next(self._batches).items()}
            self._num_read += 1
            self._note_position()
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
