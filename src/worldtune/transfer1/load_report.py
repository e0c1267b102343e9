"""The gate before training: what checkpoints and networks have in common, by name and shape, without a weight."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, write_json
from worldtune.recipe.schema import Recipe
from worldtune.transfer1.control import ControlNetwork, shared_names
from worldtune.transfer1.export import split_file
from worldtune.transfer1.loading import (
    ALLOWED_MISSING,
    ALLOWED_UNEXPECTED,
    LoadReport,
    compare_network,
    own_part,
)
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork

VERSION = 1
REPORT_FORMAT = 1


def write_load_report(recipe: Recipe, output: Path, *, checkpoints_dir: Path) -> None:
    """Write the comparison of a recipe's checkpoints with its networks; equal inputs give equal bytes.

    Raises:
        WorldtuneError: a checkpoint is not split yet, or does not fit beyond the allow-lists; the message names the
            tensors. Nothing is written then.
    """
    with torch.device("meta"):
        base = BaseNetwork(recipe.network.base, recipe.network.rope_angles)
        control = ControlNetwork(recipe.network.control, recipe.network.rope_angles)
        logvar = LogVariance()
    base_split = split_file(recipe.checkpoints.base, recipe.parallel.tensor, checkpoints_dir)
    base_tensors = _described(base_split)
    reports = {"base": compare_network(base, base_tensors)}
    sources = {"base": base_split}
    # Fails with the names where the branch could not start as a copy of the base.
    from_base = shared_names(base, control)
    problems = _problems(reports["base"], base_split)
    if recipe.checkpoints.start:
        sources["control"] = split_file(recipe.checkpoints.start, recipe.parallel.tensor, checkpoints_dir)
        reports["control"] = compare_network(control, _described(sources["control"]))
        problems += _problems(reports["control"], sources["control"])
    if recipe.objective.use_logvar:
        problems += _logvar_problems(logvar, base_tensors, base_split)
    if problems:
        raise WorldtuneError(
            "The checkpoints do not fit the recipe's networks:\n  " + "\n  ".join(problems) + "\nCheck that "
            "network.size, [network.base] and [network.control] belong to these files."
        )
    write_json(
        output,
        {
            "format": REPORT_FORMAT,
            "sources": {name: read_json(path)["source_sha256"] for name, path in sources.items()},
            "networks": {name: _as_json(report) for name, report in reports.items()},
            "control_starts_from": "checkpoint"
            if recipe.checkpoints.start
            else f"{len(from_base)} tensors of the base",
            "parameters": {"base": _count(base), "control": _count(control)},
        },
    )


def _described(split: Path) -> dict[str, Tensor]:
    """Return the tensors that a split file describes, whole, on the meta device."""
    record = read_json(split)
    try:
        shapes = {name: tuple(entry["shape"]) for name, entry in record["tensors"].items()}
    except (KeyError, TypeError) as error:
        raise WorldtuneError(f"{split} describes no tensors ({error!r}). Split the checkpoint again.") from error
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _problems(report: LoadReport, source: Path) -> list[str]:
    fatal = report.fatal(allow_missing=ALLOWED_MISSING, allow_unexpected=ALLOWED_UNEXPECTED)
    return [f"{source}: {problem}" for problem in fatal]


def _logvar_problems(logvar: LogVariance, base_tensors: dict[str, Tensor], source: Path) -> list[str]:
    found = own_part(base_tensors, control=False)
    wanted = {f"logvar.{name}": tuple(tensor.shape) for name, tensor in logvar.state_dict().items()}
    wrong = [name for name, shape in wanted.items() if name not in found or tuple(found[name].shape) != shape]
    if not wrong:
        return []
    return [f"{source}: the uncertainty head lacks {', '.join(wrong)}; without it set objective.use_logvar = false"]


def _as_json(report: LoadReport) -> dict[str, Any]:
    values = asdict(report)
    return {**values, "loaded": len(report.loaded)}


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
