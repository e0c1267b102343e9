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
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, sha256_file
from worldtune.training.ema import PowerEma
from worldtune.training.optimizer import MasterAdamW
from worldtune.training.sharding import wrap_like

PREFIX = "step_"
PARTIAL = ".partial"
DOOMED = ".doomed"
STATE_FILE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
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


def folder_name(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"{PREFIX}{step:09d}"


def complete_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in `folder` that are whole, in no order."""
    return [_step_of(path) for path in _published(folder) if _is_whole(path)]


def damaged_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder` that have lost a file, or a part of one, since they were whole."""
    return [path for path in _published(folder) if not _is_whole(path)]


def remove_torn(folder: Path) -> None:
    """Remove what a process that was killed left of checkpoints in the making or in removal."""
    for path in sorted(folder.glob(f"{PREFIX}*")):
        if path.name.endswith((PARTIAL, DOOMED)):
            logger.warning("removing %s, which is incomplete", path)
            remove_checkpoint(path)


def _published(folder: Path) -> list[Path]:
    """Return the folders that were given a checkpoint's name, which only whole ones are."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix(PREFIX))


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


def check_files(checkpoint: Path) -> None:
    """Raise a WorldtuneError if a file of a checkpoint is not the one that was written; reads all of them."""
    for name, expected in read_json(checkpoint / STATE_FILE).get("sha256", {}).items():
        found = sha256_file(checkpoint / name)
        if found != expected:
            raise WorldtuneError(
                f"{checkpoint / name} is damaged: its SHA-256 is {found}, expected {expected}. Take the checkpoint of "
                "another step; the run itself passes over this one when it starts."
            )


def _is_whole(path: Path) -> bool:
    if not path.name.removeprefix(PREFIX).isdigit() or not (path / STATE_FILE).is_file():
        return False
    try:
        sizes = dict(json.loads((path / STATE_FILE).read_text(encoding="utf-8"))["sizes"])
    except (ValueError, TypeError, KeyError):
        return False
    files = {name: path / name for name in sizes}
    return all(file.is_file() and file.stat().st_size == sizes[name] for name, file in files.items())


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, or what is left of one; what cannot be removed is left for the next start."""
    # Renamed first: a folder that is half removed must not pass for a checkpoint.
    doomed = path if path.name.endswith((PARTIAL, DOOMED)) else path.with_name(path.name + DOOMED)
    try:
        if doomed != path:
            os.rename(path, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        # A network file system keeps a file that somebody reads, such as an export. No run ends for that.
        logger.warning("%s cannot be removed now: %s", doomed, error)


def sync_folder(path: Path) -> None:
    """Bring to the disk which files a folder has."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
