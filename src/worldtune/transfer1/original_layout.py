"""Training checkpoints in the layout of the original's training runs (spec/transfer1-training.md 4.1).

    iter_000001000.pt                         {"grad_scaler", "iteration"}; written last
    iter_000001000_model_mp_<rank>.pt         {"model": raw weights, "ema": averages in float32, "trained_data_record"}
    iter_000001000_trained_data_record.json   samples and steps

The frozen base is not in them, as it is in the original's: its loader takes the base from the released file before it
reads these. Neither are optimizer and schedule: a run here resumes from its own checkpoints, one there starts from
these weights (`checkpoint.load_path`). The split rule reads the layout back, for a recipe with
checkpoints.control = ".../iter_000001000.pt".
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from worldtune.checkpoint.splitting import shard_name
from worldtune.common.disk import disk_errors_named
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, read_json, write_json
from worldtune.common.progress import progress
from worldtune.parallel.axes import shard, split_dim
from worldtune.recipe.schema import Recipe
from worldtune.training.config import CONFIG_FILE
from worldtune.training.state import STATE_FILE, check_files, complete_steps, folder_name, read_weights
from worldtune.training.trainer import CHECKPOINTS
from worldtune.transfer1.denoiser import DTYPES
from worldtune.transfer1.export import check_base, named_weights, read_logvar, split_file

logger = logging.getLogger(__name__)


def write_original_layout(
    attempt: Path, output_dir: Path, *, step: int | None, degree: int, checkpoints_dir: Path
) -> Path:
    """Write one checkpoint of an attempt, which may still be in training, in the original's layout.

    Args:
        attempt: results/<run>/attempts/<identity>.
        output_dir: folder of the files; those of other steps in it stay.
        step: which checkpoint; None takes the newest.
        degree: tensor-parallel ranks of the files; 8 is what the original trains with.
        checkpoints_dir: where the base lies, for the uncertainty head.

    Returns:
        Path of the trainer's file.

    Raises:
        WorldtuneError: the attempt has no such checkpoint, the base is another, or a tensor cannot be cut.
    """
    recipe = _recipe(attempt)
    checkpoint = _checkpoint(attempt, step)
    try:
        return _write(checkpoint, recipe, output_dir, degree=degree, checkpoints_dir=checkpoints_dir)
    except (FileNotFoundError, CheckpointException) as error:
        if checkpoint.exists():
            raise
        raise WorldtuneError(
            f"{checkpoint} was removed while it was read: the run has gone on and keeps the newest ones alone "
            "(saving.keep_last). Run the same command again, or stop the run meanwhile."
        ) from error


def _write(checkpoint: Path, recipe: Recipe, output_dir: Path, *, degree: int, checkpoints_dir: Path) -> Path:
    check_files(checkpoint)
    state = read_json(checkpoint / STATE_FILE)
    split = split_file(recipe.checkpoints.base, recipe.parallel.tensor, checkpoints_dir)
    check_base(split, {"checkpoints": {"base": {"sha256": state["about"]["base_sha256"]}}})
    dtype = DTYPES[recipe.training.precision]
    raw = named_weights(read_weights(checkpoint, None), recipe)
    # The counter of positions is float32 in the original's files too.
    model = {name: tensor if name.endswith(".seq") else tensor.to(dtype) for name, tensor in raw.items()}
    model |= read_logvar(split, recipe.parallel.tensor)
    averages = {f"net.{name}": tensor for name, tensor in read_weights(checkpoint, recipe.ema.rates[0]).items()}
    record = {"image": 0, "video": state["step"] * recipe.training.global_batch_size, "iteration": state["step"]}
    stem = f"iter_{state['step']:09d}"
    for rank in progress(range(degree), f"write {stem} for {degree} ranks"):
        ema = {name.replace(".", "-"): piece for name, piece in _pieces(averages, degree, rank).items()}
        content = {"model": _pieces(model, degree, rank), "ema": ema, "trained_data_record": record}
        _save(output_dir / shard_name(stem, rank), content)
    write_json(output_dir / f"{stem}_trained_data_record.json", record)
    path = output_dir / f"{stem}.pt"
    _save(path, {"grad_scaler": {}, "iteration": state["step"]})
    logger.info("wrote %s, from %s", path, checkpoint)
    return path


def find_attempt(run_dir: Path, identity: str | None) -> Path:
    """Return the attempt of a run: the one that is named, that its manifest names, or the only one.

    Raises:
        WorldtuneError: there is no such attempt, or there are several and none is named.
    """
    folders = {path.name: path for path in sorted(run_dir.glob("attempts/*")) if path.is_dir()}
    if not folders:
        known = sorted(path.parent.name for path in run_dir.parent.glob("*/attempts") if path.is_dir())
        raise WorldtuneError(
            f"{run_dir} has no attempt; {run_dir.parent}/ has {', '.join(known) or 'no trained run yet'}."
        )
    manifest = run_dir / "manifest.json"
    if identity is None and manifest.is_file():
        identity = str(read_json(manifest)["identity"])
    if identity is None and len(folders) == 1:
        return next(iter(folders.values()))
    if identity not in folders:
        wanted = "no attempt is named" if identity is None else f"there is no attempt {identity}"
        raise WorldtuneError(f"{run_dir}: {wanted}; expected --attempt with one of: {', '.join(folders)}.")
    return folders[identity]


def _recipe(attempt: Path) -> Recipe:
    path = attempt / CONFIG_FILE
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise WorldtuneError(f"{path} holds no recipe of this version: {error}. Start the run once more.") from error


def _checkpoint(attempt: Path, step: int | None) -> Path:
    folder = attempt / CHECKPOINTS
    steps = sorted(complete_steps(folder))
    if not steps or (step is not None and step not in steps):
        raise WorldtuneError(
            f"{folder} has no whole checkpoint{'' if step is None else f' of step {step}'}; expected one of: "
            f"{', '.join(map(str, steps)) or 'none yet, wait for the first (saving.every)'}."
        )
    return folder / folder_name(steps[-1] if step is None else step)


def _pieces(tensors: Mapping[str, Tensor], degree: int, rank: int) -> dict[str, Tensor]:
    # A view would be saved with the whole tensor behind it.
    return {name: shard(tensor, split_dim(name), degree, rank, name).clone() for name, tensor in tensors.items()}


def _save(path: Path, content: Any) -> None:
    with disk_errors_named(path), atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)
