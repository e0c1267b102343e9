"""The checkpoints of an attempt: written beside training, whole or not at all, and checked when they are read."""

import functools
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future as TorchFuture

from worldtune.common.disk import ADVICE, disk_error_number
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, sha256_file, write_json
from worldtune.training.errors import TemporaryError
from worldtune.training.lease import Lease
from worldtune.training.main_rank import on_main_rank
from worldtune.training.state import (
    PARTIAL,
    STATE_FILE,
    TrainState,
    complete_steps,
    damaged_checkpoints,
    folder_name,
    remove_checkpoint,
    remove_torn,
    sync_folder,
)

FORMAT = 2
DAMAGED = "damaged_"
FREE_SPACE_FACTOR = 1.1
logger = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one attempt. Its methods are collective over all ranks; rank 0 touches names and folders.

    A checkpoint is written by a thread of each rank while training goes on: `begin` copies the state into main memory,
    and the writer of rank 0 renames the folder when all files of all ranks are on the disk. One is in flight at a time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int,
        keep_every: int,
        lease: Lease | None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the folder.

        Args:
            folder: the attempt's `checkpoints`.
            keep_last: newest checkpoints that are kept.
            keep_every: multiples of this step number are kept for good; 0 keeps none.
            lease: held by rank 0 while it writes; None on other ranks and in tests.
            about: what the checkpoints belong to, such as the hash of the frozen base, in plain values. A checkpoint
                that belongs to something else is refused.
        """
        self._folder = folder
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._lease = lease
        self._about = dict(about or {})
        self._is_main = dist.get_rank() == 0
        # The writing threads meet in a group of their own, since training's collectives go on meanwhile.
        self._group = dist.new_group(backend="gloo")
        self._stager: BlockingAsyncStager | None = None
        self._pending: _Pending | None = None

    def resume(self, state: TrainState) -> dict[str, Any] | None:
        """Load the newest sound checkpoint into `state`.

        Torn ones are removed. Damaged ones, whose bytes are not those that were written, are renamed and passed over,
        but a run never starts over because of them.

        Returns:
            What `begin` was given as `extra`, or None where there is no checkpoint.

        Raises:
            WorldtuneError: the checkpoint belongs to something else, or all that there are have been damaged.
        """
        if self._is_main:
            remove_torn(self._folder)
            for path in damaged_checkpoints(self._folder):
                self._set_aside(path, f"{STATE_FILE}, or a file that it names, is not there as it was written")
        while True:
            found: list[int | None] = [None]
            if self._is_main:
                found = [max(complete_steps(self._folder), default=None)]
            dist.broadcast_object_list(found, src=0, group=self._group)
            if found[0] is None:
                self._check_none_is_lost()
                return None
            path = self._folder / folder_name(found[0])
            record = read_json(path / STATE_FILE)
            self._check_belongs(path, record)
            damaged = self._damaged_files(path, record)
            if not damaged:
                break
            if self._is_main:
                self._set_aside(path, "; ".join(damaged))
            dist.barrier(group=self._group)
        try:
            dcp.load(state.tensors(), storage_reader=dcp.FileSystemReader(path), process_group=self._group)
        except CheckpointException as error:
            raise _cause(path, error) from error
        state.set_numbers(record)
        return dict(record.get("extra", {}))

    def _set_aside(self, path: Path, why: str) -> None:
        aside = path.with_name(f"{DAMAGED}{path.name}")
        logger.warning("%s is damaged: %s. It is kept as %s and passed over.", path, why, aside.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)

    def _check_none_is_lost(self) -> None:
        """Refuse to train from step 0 on, and to forget the record, where there were checkpoints; all ranks alike."""
        found = [sorted(path.name for path in self._folder.glob(f"{DAMAGED}*"))] if self._is_main else [[]]
        dist.broadcast_object_list(found, src=0, group=self._group)
        if found[0]:
            raise WorldtuneError(
                f"{self._folder}: all checkpoints are damaged ({', '.join(found[0])}), and none is whole. Put back a "
                "copy if there is one, under its name step_..., or delete them to train from the first step on. Raise "
                "saving.keep_last to have one more to fall back on."
            )

    def _check_belongs(self, path: Path, record: Mapping[str, Any]) -> None:
        found = record.get("about", {})
        for key, expected in self._about.items():
            if key in found and found[key] != expected:
                raise WorldtuneError(
                    f"{path / STATE_FILE} belongs to {key} = {found[key]}, expected {expected}. It is another "
                    "attempt's checkpoint: move it to where it belongs."
                )

    def _damaged_files(self, path: Path, record: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with the files of a checkpoint; each rank reads some of them."""
        hashes = sorted(record.get("sha256", {}).items())
        mine = [
            f"{name} has SHA-256 {found}, expected {expected}"
            for name, expected in hashes[dist.get_rank() :: dist.get_world_size()]
            if (found := sha256_file(path / name)) != expected
        ]
        everyone: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everyone, mine, group=self._group)
        return sorted(itertools.chain.from_iterable(everyone))

    def prepare(self, state: TrainState) -> None:
        """Take the main memory for copies of the state, once: a GPU at work would hold that up for minutes."""
        tensors = state.tensors()
        on_cuda = any(tensor.is_cuda for tensor in tensors.values())
        self._stager = BlockingAsyncStager(cache_staged_state_dict=on_cuda)
        if on_cuda:
            self._stager.stage(tensors)

    def save(self, state: TrainState, extra: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint and wait until it is there; see `begin`."""
        path = self.begin(state, extra)
        self.finish()
        return path

    def begin(self, state: TrainState, extra: Mapping[str, Any] | None = None) -> Path:
        """Start to write a checkpoint of `state` unless there is one; those that need not be kept are then removed.

        The state has been copied and may be changed when this returns. A checkpoint that is still being written is
        waited for first.

        Args:
            state: what is saved.
            extra: more that the checkpoint carries, in plain values; rank 0's is taken.

        Returns:
            The checkpoint's folder, which appears when it is whole.

        Raises:
            TemporaryError: the disk is full, or another process has taken the lease; what was written is removed.
        """
        self.finish()
        path = self._folder / folder_name(state.step)
        partial = path.with_name(path.name + PARTIAL)
        num_bytes = state.num_bytes()

        def is_there() -> bool:
            if path.exists():
                return True
            self.check_space(num_bytes, count=1)
            shutil.rmtree(partial, ignore_errors=True)
            return False

        if on_main_rank(is_there, self._group):
            return path
        record = {"format": FORMAT, "torch": torch.__version__, "about": self._about, "extra": dict(extra or {})}
        publish = functools.partial(self._publish, partial, path, state.step)
        writer = _Writer(partial, {**record, **state.numbers()}, publish)
        if self._stager is None:
            self.prepare(state)
        written = dcp.async_save(
            state.tensors(), storage_writer=writer, process_group=self._group, async_stager=self._stager
        )
        assert isinstance(written, Future)
        self._pending = _Pending(path, partial, written)
        return path

    def in_flight(self) -> bool:
        """Return whether a checkpoint is being written. Collective, so that all ranks say the same."""
        pending = [self._pending is not None and not self._pending.written.done()]
        # Not over the group of the writing threads, which are at work in it.
        dist.broadcast_object_list(pending, src=0)
        return pending[0]

    def failed(self) -> bool:
        """Return whether the checkpoint in flight is known on this rank to have failed; `finish` says why."""
        written = self._pending.written if self._pending is not None else None
        return written is not None and written.done() and written.exception() is not None

    def finish(self, timeout_s: float | None = None) -> None:
        """Wait until the checkpoint in flight is there, if there is one.

        Raises:
            TemporaryError: see `begin`.
            TimeoutError: it is not there after `timeout_s` seconds.
        """
        pending = self._pending
        if pending is None:
            return
        try:
            pending.written.result(timeout_s)
        except TimeoutError:
            raise
        except BaseException as error:
            self._pending = None
            if self._is_main:
                # The new holder may be writing a folder of the same name.
                if self._lease is not None:
                    self._lease.check()
                # On a disk that is full it would lie there until the next start.
                shutil.rmtree(pending.partial, ignore_errors=True)
            raise _cause(pending.path, error) from error
        self._pending = None

    def close(self, timeout_s: float) -> None:
        """Give the checkpoint in flight so many seconds to become whole."""
        try:
            self.finish(timeout_s)
        except TimeoutError:
            logger.warning("%s is not written after %g s and is given up", self._pending, timeout_s)

    def _publish(self, partial: Path, path: Path, step: int) -> None:
        """Make a checkpoint whose files are all written appear under its name; called in rank 0's writing thread."""
        sync_folder(partial)
        if self._lease is not None:
            self._lease.check()
        os.rename(partial, path)
        sync_folder(self._folder)
        self._retire(step)

    def check_space(self, num_bytes: int, *, count: int) -> None:
        """Raise a TemporaryError if the disk cannot take `count` more checkpoints of `num_bytes` bytes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        needed = int(num_bytes * count * FREE_SPACE_FACTOR)
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise TemporaryError(
                f"{self._folder}: {free / 2**30:.1f} GiB are free, but {count} checkpoints need "
                f"{needed / 2**30:.1f} GiB. Free some space (`make prune` shows old attempts), or lower "
                "saving.keep_last, and start again."
            )

    def _retire(self, newest: int) -> None:
        steps = sorted(step for step in complete_steps(self._folder) if step <= newest)
        for step in steps[: -self._keep_last]:
            if self._keep_every == 0 or step % self._keep_every:
                remove_checkpoint(self._folder / folder_name(step))


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    path: Path
    partial: Path
    written: Future[Any]


@dataclass(frozen=True)
class _HashedResult(WriteResult):
    """What a rank tells rank 0 of a tensor that it has written, with the hash of the file that the tensor lies in."""

    sha256: str = ""


class _Writer(dcp.FileSystemWriter):
    """Writes a folder of torch.distributed.checkpoint, each rank hashing its own files; rank 0 ends with state.json."""

    def __init__(self, folder: Path, record: Mapping[str, Any], publish: Callable[[], None]) -> None:
        """Take the folder, what state.json says besides files, and what to do when all is written."""
        # Nothing is left to copy from a device: copying ahead would wait, tensor by tensor, for the step at work there.
        super().__init__(folder, single_file_per_rank=True, per_thread_copy_ahead=0)
        self._record = dict(record)
        self._publish = publish
        self._started = time.monotonic()

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        """Write this rank's tensors."""
        results = super().write_data(plan, planner).value()
        names = {result.storage_data.relative_path for result in results}
        hashes = {name: sha256_file(Path(self.path) / name) for name in sorted(names)}
        hashed: TorchFuture[list[WriteResult]] = TorchFuture()
        hashed.set_result(
            [
                _HashedResult(
                    index=result.index,
                    size_in_bytes=result.size_in_bytes,
                    storage_data=result.storage_data,
                    sha256=hashes[result.storage_data.relative_path],
                )
                for result in results
            ]
        )
        return hashed

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """End the checkpoint, on rank 0, once all ranks have written."""
        super().finish(metadata, results)
        folder = Path(self.path)
        hashes = {
            result.storage_data.relative_path: result.sha256
            for result in itertools.chain.from_iterable(results)
            if isinstance(result, _HashedResult)
        }
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        metadata_file = next(name for name in sizes if name not in hashes)
        hashes[metadata_file] = sha256_file(folder / metadata_file)
        record = {**self._record, "time": time.time(), "sizes": sizes, "sha256": dict(sorted(hashes.items()))}
        write_json(folder / STATE_FILE, record)
        self._publish()
        size = sum(sizes.values()) / 2**30
        logger.info("saved step %d, %.2f GiB, in %.1f s", self._record["step"], size, time.monotonic() - self._started)


def _cause(path: Path, error: BaseException) -> BaseException:
    """Return what a failed save or load is to be reported as; a full disk is a TemporaryError."""
    # CheckpointException is no Exception, so that nothing would say what went wrong; its text is all ranks' tracebacks.
    failures = [error]
    if isinstance(error, CheckpointException):
        failures = [failure for failure, _ in error.failures.values()]
    for failure in failures:
        if isinstance(failure, TemporaryError):
            return failure
        number = disk_error_number(failure)
        if number is not None:
            return TemporaryError(f"{path}: {os.strerror(number)}. {ADVICE[number]}")
    return failures[0]
