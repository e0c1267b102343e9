"""The state of a run and its checkpoints: whole or not at all, readable under another number of tensor ranks.

A checkpoint is a folder `step_000000100` of torch.distributed.checkpoint with `state.json`, which a person can read. It
holds the float32 masters (`master.<name>`), moments (`exp_avg.<name>`, `exp_avg_sq.<name>`) and averages
(`ema.<rate>.<name>`) of the trained parameters. Live parameters are the rounded masters and are not stored, nor is the
frozen base, which the attempt's identity names by its hash. Random draws and the position in the data are functions of
the step.
"""

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from worldtune.common.disk import ADVICE, disk_error_number
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, write_json
from worldtune.training.ema import PowerEma
from worldtune.training.errors import TemporaryError
from worldtune.training.lease import Lease
from worldtune.training.optimizer import MasterAdamW
from worldtune.training.sharding import wrap_like

FORMAT = 1
PREFIX = "step_"
PARTIAL = ".partial"
DOOMED = ".doomed"
STATE_FILE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
FREE_SPACE_FACTOR = 1.1
logger = logging.getLogger(__name__)


class TrainState:
    """Everything that a restart needs."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], optimizer: MasterAdamW, ema: PowerEma) -> None:
        """Start at step 0 with the present weights."""
        self.parameters = parameters
        self.optimizer = optimizer
        self.ema = ema
        self.step = 0
        """Completed optimizer steps."""
        self.skipped = 0
        """Steps whose update was left out since their gradient was not finite."""
        self.skipped_in_a_row = 0
        """Such steps since the last update."""

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by their name in a checkpoint: DTensors where parameters are, sharing memory."""
        parts = {"master": self.optimizer.masters}
        parts |= {which: self.optimizer.moments(which) for which in MOMENTS}
        parts |= {ema_group(rate): averages for rate, averages in self.ema.averages.items()}
        return {
            f"{group}.{name}": wrap_like(part, self.parameters[name])
            for group, by_name in parts.items()
            for name, part in by_name.items()
        }

    def num_bytes(self) -> int:
        """Return the size of a checkpoint of all ranks together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())

    def numbers(self) -> dict[str, Any]:
        """Return what is no tensor."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "update_counts": self.optimizer.update_counts(),
        }

    def set_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Take back `numbers`, after the tensors were loaded in place."""
        self.step = numbers["step"]
        self.skipped = numbers["skipped"]
        self.skipped_in_a_row = numbers["skipped_in_a_row"]
        self.optimizer.set_update_counts(numbers["update_counts"])
        self.optimizer.copy_to_live()


def ema_group(rate: float) -> str:
    """Return the prefix of an average's names in a checkpoint."""
    return f"ema.{rate:g}"


class CheckpointStore:
    """The checkpoints of one attempt. Its methods are collective over all ranks; rank 0 touches names and folders."""

    def __init__(self, folder: Path, *, keep_last: int, keep_every: int, lease: Lease | None) -> None:
        """Take the folder.

        Args:
            folder: the attempt's `checkpoints`.
            keep_last: newest checkpoints that are kept.
            keep_every: multiples of this step number are kept for good; 0 keeps none.
            lease: held by rank 0 while it writes; None on other ranks and in tests.
        """
        self._folder = folder
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._lease = lease
        self._is_main = dist.get_rank() == 0

    def resume(self, state: TrainState) -> bool:
        """Load the newest complete checkpoint into `state`; returns whether there was one. Torn ones are removed."""
        found: list[int | None] = [None]
        if self._is_main:
            remove_torn(self._folder)
            found = [max(complete_steps(self._folder), default=None)]
        dist.broadcast_object_list(found, src=0)
        if found[0] is None:
            return False
        path = self._folder / folder_name(found[0])
        dcp.load(state.tensors(), storage_reader=dcp.FileSystemReader(path))
        state.set_numbers(read_json(path / STATE_FILE))
        return True

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint of `state` unless there is one, then remove those that need not be kept.

        Raises:
            TemporaryError: the disk is full, or another process has taken the lease; what was written is removed.
        """
        path = self._folder / folder_name(state.step)
        partial = path.with_name(path.name + PARTIAL)
        exists = [path.exists()]
        if self._is_main and not exists[0]:
            self.check_space(state.num_bytes(), count=1)
            shutil.rmtree(partial, ignore_errors=True)
        dist.broadcast_object_list(exists, src=0)
        if exists[0]:
            return path
        try:
            self._write(state, partial, path)
        except BaseException:
            if self._is_main:
                # The new holder may be writing a folder of the same name.
                if self._lease is not None:
                    self._lease.check()
                # On a disk that is full it would lie there until the next start.
                shutil.rmtree(partial, ignore_errors=True)
            raise
        dist.barrier()
        return path

    def _write(self, state: TrainState, partial: Path, path: Path) -> None:
        try:
            dcp.save(state.tensors(), storage_writer=dcp.FileSystemWriter(partial, single_file_per_rank=True))
        except CheckpointException as error:
            # It is no Exception, so that nothing else would name the file; its text is the traceback of every rank.
            failures = (disk_error_number(failure) for failure, _ in error.failures.values())
            number = next((number for number in failures if number is not None), None)
            if number is None:
                raise
            raise TemporaryError(f"{path}: {os.strerror(number)}. {ADVICE[number]}") from error
        numbers = state.numbers()
        if self._is_main:
            sizes = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
            record = {"format": FORMAT, "torch": torch.__version__, "time": time.time(), "sizes": sizes, **numbers}
            write_json(partial / STATE_FILE, record)
            _sync_folder(partial)
            if self._lease is not None:
                self._lease.check()
            os.rename(partial, path)
            _sync_folder(self._folder)
            self._retire(state.step)

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
                _remove(self._folder / folder_name(step))


def folder_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"{PREFIX}{step:09d}"


def complete_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder` that are whole, in no order."""
    names = [path.name for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return [int(name.removeprefix(PREFIX)) for name in names if _is_whole(folder / name)]


def remove_torn(folder: Path) -> None:
    """Remove what a process that was killed left of checkpoints in the making or in removal."""
    for path in sorted(folder.glob(f"{PREFIX}*")):
        if not _is_whole(path):
            logger.warning("removing %s, which is incomplete", path)
            _remove(path)


def read_weights(checkpoint: Path, ema_rate: float | None) -> dict[str, Tensor]:
    """Read the trained weights of a checkpoint in one process, whatever number of ranks wrote it.

    Args:
        checkpoint: folder of one step.
        ema_rate: which moving average, or None for the raw weights.

    Returns:
        Float32 tensors on the CPU by the parameter's name in the trained module. Raw weights are the masters: the
        network computes with them rounded to training.precision.

    Raises:
        WorldtuneError: the folder is no whole checkpoint or has no such average.
    """
    if not _is_whole(checkpoint):
        raise WorldtuneError(f"{checkpoint} is no whole checkpoint. Train the run first: `make why` shows its state.")
    reader = dcp.FileSystemReader(checkpoint)
    prefix = ("master" if ema_rate is None else ema_group(ema_rate)) + "."
    stored = reader.read_metadata().state_dict_metadata
    weights: dict[str, Any] = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if key.startswith(prefix) and isinstance(entry, dcp.metadata.TensorStorageMetadata)
    }
    if not weights:
        rates = sorted({key.split(".exp_")[0].removesuffix(".") for key in stored if key.startswith("ema.")})[:1]
        raise WorldtuneError(f"{checkpoint} has no average of rate {ema_rate}; it has names such as {rates}.")
    with warnings.catch_warnings():
        # It says that no_dist means one process, which is what is asked for.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(weights, storage_reader=reader, no_dist=True)
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items()}


def _is_whole(path: Path) -> bool:
    if not path.name.removeprefix(PREFIX).isdigit() or not (path / STATE_FILE).is_file():
        return False
    try:
        sizes = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))["sizes"]
    except (json.JSONDecodeError, KeyError):
        return False
    files = {name: path / name for name in sizes}
    return all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())


def _remove(path: Path) -> None:
    # Renamed first: a folder that is half removed must not pass for a checkpoint.
    doomed = path if path.name.endswith((PARTIAL, DOOMED)) else path.with_name(path.name + DOOMED)
    if doomed != path:
        os.rename(path, doomed)
    shutil.rmtree(doomed)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
