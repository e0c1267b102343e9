"""The folder of an attempt, `results/<run>/attempts/<identity>`, and its records besides checkpoints, metrics and
previews.

config.yaml        the resolved recipe of the newest start; earlier ones that differed are config.0001.yaml, ...
launch_info.yaml   a list: each start with its command, host, ranks, git commit, versions, hardware, and how many steps
                   of earlier starts it repeats
job_env.yaml       a list: the scheduler's and the libraries' environment variables at each start
manifest.json      what came out and its resolved recipe, once the last step is reached; results/<run>/manifest.json
                   is a copy
preflight.json     what was measured before the first step: memory, seconds a step, predicted duration
fatal.json         a failure that a retry cannot mend
hang.json          where every rank was when none went on, and which kept the others waiting
stop               made by a person: the run stops after its step, and starts again when it is deleted
"""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

import worldtune
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, write_json
from worldtune.recipe.schema import Recipe
from worldtune.training.config import CONFIG_FILE, config_text, write_config
from worldtune.training.errors import TemporaryError
from worldtune.training.hardware import describe_hardware
from worldtune.training.held_out import held_out_loss, is_measured, measured_clips
from worldtune.training.inputs import Inputs
from worldtune.training.launch_info import LAUNCH_INFO, append_entry
from worldtune.training.manifest import MANIFEST, MANIFEST_FORMAT, trained_fingerprint
from worldtune.training.metrics import METRICS_FILE, VALIDATION_FILE, read_rows
from worldtune.training.state import complete_steps, folder_name, read_weights
from worldtune.training.trainer import CHECKPOINTS

FATAL = "fatal.json"
ENVIRONMENT_PREFIXES = ("SLURM_", "CUDA_", "NCCL_", "TORCH_", "OMP_")
SECRET = re.compile("TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)
GIT_TIMEOUT_S = 10
# A bug, a bad input, or a model that does not fit in memory is the same in the next try. Everything else, such as a
# lost node, a broken file system or a collective that timed out, may not be.
FINAL_ERRORS = (
    WorldtuneError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
    torch.OutOfMemoryError,
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt of a run; its folder need not exist."""

    run: str
    """Name of the recipe's file."""
    run_folder: Path
    """`results/<run>`."""
    identity: str
    """What the folder is named after."""
    recipe: Recipe
    """The resolved recipe."""
    inputs: Inputs
    """What is read."""

    @property
    def folder(self) -> Path:
        """The attempt's folder."""
        return self.run_folder / "attempts" / self.identity

    @property
    def measured_clip_ids(self) -> list[str]:
        """The held-out clips that the recipe asks for."""
        return [clip.clip_id for clip in measured_clips(self.inputs.dataset, self.recipe)]

    def finished(self) -> bool:
        """Return whether the last step was reached, saved and measured as the recipe says now."""
        last = self.recipe.training.max_iter
        return last in complete_steps(self.folder / CHECKPOINTS) and is_measured(
            read_rows(self.folder / VALIDATION_FILE),
            last,
            sigmas=self.recipe.validation.sigmas,
            clip_ids=self.measured_clip_ids,
        )

    def belongs_to(self) -> dict[str, str]:
        """Return what a checkpoint of this attempt is of: the frozen weights by hash, the dataset, the identity."""
        described = self.inputs.describe()
        hashes = {f"{which}_sha256": entry["sha256"] for which, entry in described["checkpoints"].items()}
        return {"identity": self.identity, "dataset_digest": described["dataset"]["digest"], **hashes}

    def circumstances(self) -> str:
        """Return a digest of all that a failure may depend on: recipe, inputs and this library's code."""
        return digest([self.recipe.model_dump(mode="json"), self.inputs.describe(), _code_digest()])


def record_start(attempt: Attempt, *, device: torch.device, world_size: int) -> None:
    """Write the records of a start; the lease must be held."""
    folder = attempt.folder
    config = folder / CONFIG_FILE
    if config.exists() and config.read_text(encoding="utf-8") != config_text(attempt.recipe):
        number = len(list(folder.glob("config.[0-9]*.yaml"))) + 1
        config.rename(folder / f"config.{number:04d}.yaml")
    write_config(attempt.recipe, folder)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    environment = {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(ENVIRONMENT_PREFIXES) and not SECRET.search(name)
    }
    append_entry(folder / "job_env.yaml", {"time": started, "environment": environment})
    append_entry(
        folder / LAUNCH_INFO,
        {
            "time": started,
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "host": socket.gethostname(),
            "world_size": world_size,
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
            "git": _git_state(),
            "versions": {
                "worldtune": importlib.metadata.version("worldtune"),
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "cuda": torch.version.cuda,
            },
            "hardware": describe_hardware(device, world_size),
        },
    )


def write_manifest(attempt: Attempt, path: Path | None) -> None:
    """Write the attempt's manifest, and a copy at `path`. The attempt must be finished.

    An attempt may have gone on to later steps before max_iter was lowered: they are left out.
    """
    folder = attempt.folder
    step = attempt.recipe.training.max_iter
    checkpoint = Path(CHECKPOINTS) / folder_name(step)
    rows = [row for row in read_rows(folder / METRICS_FILE) if row["step"] <= step]
    start = yaml.safe_load((folder / LAUNCH_INFO).read_text(encoding="utf-8"))[-1]
    manifest = {
        "format": MANIFEST_FORMAT,
        "run": attempt.run,
        "identity": attempt.identity,
        "attempt": f"attempts/{attempt.identity}",
        "final_step": step,
        "checkpoint": str(checkpoint),
        "recipe_fingerprint": trained_fingerprint(attempt.recipe),
        # Not only in config.yaml, which is of the newest start: that one may have trained on, or nothing was left to do
        # for a recipe of, say, another layout.
        "recipe": attempt.recipe.model_dump(mode="json"),
        **attempt.inputs.describe(),
        "hardware": start["hardware"],
        "torch": start["versions"]["torch"],
        "git": start["git"],
        "peak_memory_gb": max(row["peak_memory_gb"] for row in rows),
        "median_step_s": median(row["step_s"] for row in rows),
        "tokens_per_s": median(row["tokens_per_s"] for row in rows),
        "skipped_steps": sum(row["grad_norm"] is None for row in rows),
        "held_out_loss": held_out_loss(
            read_rows(folder / VALIDATION_FILE),
            last_step=step,
            sigmas=attempt.recipe.validation.sigmas,
            clip_ids=attempt.measured_clip_ids,
        ),
        "weights_sha256": _weights_sha256(folder / checkpoint),
    }
    write_json(folder / MANIFEST, manifest)
    if path is not None:
        write_json(path, manifest)


def _weights_sha256(checkpoint: Path) -> str:
    hasher = hashlib.sha256()
    for name, tensor in sorted(read_weights(checkpoint, None).items()):
        hasher.update(name.encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


@contextmanager
def fatal_recorded(attempt: Attempt) -> Iterator[None]:
    """Write fatal.json for an error that a retry cannot mend, and let the error through."""
    try:
        yield
    except TemporaryError:
        raise
    except FINAL_ERRORS as error:
        record = {
            "error": type(error).__name__,
            "message": str(error),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "circumstances": attempt.circumstances(),
        }
        write_json(attempt.folder / FATAL, record)
        raise


def refuse_fatal(attempt: Attempt) -> None:
    """Raise a WorldtuneError if an earlier try failed under the same recipe, inputs and code.

    A record of other circumstances is moved aside. To try again under the same ones, delete `fatal.json`.
    """
    path = attempt.folder / FATAL
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        # Or another rank has just set it aside.
        return
    if record.get("circumstances") == attempt.circumstances():
        raise WorldtuneError(
            f"an earlier try of this attempt failed at {record['time']} in a way that a retry cannot mend, and recipe, "
            f"inputs and code are the same: {record['error']}: {record['message']}\n"
            f"When the cause is mended, delete {path} and start again."
        )


def set_fatal_aside(attempt: Attempt) -> None:
    """Rename a fatal.json of other circumstances; the lease must be held."""
    path = attempt.folder / FATAL
    if path.exists():
        number = len(list(attempt.folder.glob("fatal.[0-9]*.json"))) + 1
        path.rename(attempt.folder / f"fatal.{number:04d}.json")


def _code_digest() -> str:
    package = Path(worldtune.__file__).parent
    return digest(
        {
            str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(package.rglob("*.py"))
        }
    )


def _git_state() -> dict[str, Any]:
    """Return commit and whether the tree differs from it; empty outside a repository or without git.

    What git does not answer in time, as on a slow file system, is left out, and a commit "not known".
    """
    if shutil.which("git") is None:
        return {}

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        folder = Path(worldtune.__file__).parent
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False
        )

    state: dict[str, Any] = {"commit": "not known"}
    try:
        commit = git("rev-parse", "HEAD")
        if commit.returncode:
            return {}
        state["commit"] = commit.stdout.strip()
        state["is_dirty"] = bool(git("status", "--porcelain").stdout.strip())
    except subprocess.TimeoutExpired as error:
        logger.warning("%s gave no answer in %d s; the record lacks it", shlex.join(error.cmd), GIT_TIMEOUT_S)
    return state
