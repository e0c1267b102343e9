"""Whether a recipe fits GPUs, nodes and disk, told before it takes any of them."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.estimate import estimate
from worldtune.recipe.memory import GIB, RESERVED_BYTES, gpu_memory, host_memory
from worldtune.recipe.schema import Recipe

VERSION = 1
FORMAT = 1
LESS_ACTIVATIONS = "lower data.num_frames, data.resolution or training.micro_batch_size"


def capacity_values(recipe: Recipe) -> dict[str, Any]:
    """Return the numbers that decide whether a recipe fits: what it needs, by part, and what it is given."""
    parts = {"gpu_memory": gpu_memory(recipe), "host_memory": host_memory(recipe)}
    needed = {f"{name}.{part}": value for name, memory in parts.items() for part, value in asdict(memory).items()}
    return {
        **needed,
        **asdict(estimate(recipe)),
        "cluster.gpu_memory_gb": _gpu_limit_gib(recipe),
        "cluster.mem_gb_per_gpu": recipe.cluster.mem_gb_per_gpu,
        "processes_per_node": recipe.processes_per_node,
    }


def capacity_report(recipe: Recipe, *, free_disk_bytes: int, held_bytes: int, results: str) -> dict[str, Any]:
    """Return what a recipe needs beside what there is, as JSON values in GiB.

    Args:
        recipe: the resolved recipe.
        free_disk_bytes: what is free where the run's checkpoints and its export will lie.
        held_bytes: what the run's own checkpoints take there already; they make room for its new ones.
        results: name of that place, for the message.

    Raises:
        WorldtuneError: it does not fit a GPU, a node or the disk; the message names the keys that change it.
    """
    problems = [
        *_gpu_problems(recipe),
        *_host_problems(recipe),
        *_disk_problems(recipe, free_disk_bytes + held_bytes, results),
    ]
    if problems:
        raise WorldtuneError("The recipe does not fit:\n  " + "\n  ".join(problems))
    need = estimate(recipe)
    return {
        "format": FORMAT,
        "parameters": {"base": need.base_parameters, "control": need.control_parameters},
        "step_flop": need.step_flop,
        "gpu_memory_gib": {
            **gpu_memory(recipe).in_gib(),
            "reserved": RESERVED_BYTES / GIB,
            "total": round((gpu_memory(recipe).total + RESERVED_BYTES) / GIB, 4),
            "available": _gpu_limit_gib(recipe),
        },
        "node_memory_gib": {**host_memory(recipe).in_gib(), "available": _node_limit_gib(recipe)},
        "disk_gib": {
            "checkpoints_and_export": round(need.attempt_bytes / GIB, 4),
            "free": round(free_disk_bytes / GIB, 4),
            "held_by_this_run": round(held_bytes / GIB, 4),
        },
    }


def _gpu_limit_gib(recipe: Recipe) -> float | None:
    """Return the memory that a GPU must not be asked more than; None where there is none or it is not checked."""
    return None if recipe.training.device == "cpu" else recipe.cluster.gpu_memory_gb or None


def _node_limit_gib(recipe: Recipe) -> float:
    return recipe.cluster.mem_gb_per_gpu * recipe.processes_per_node


def _gpu_problems(recipe: Recipe) -> Iterator[str]:
    limit, need = _gpu_limit_gib(recipe), gpu_memory(recipe)
    if limit is None or need.total + RESERVED_BYTES <= limit * GIB:
        return
    state = need.weights + need.gathered_weights + need.optimizer + need.averages + need.gradients
    yield (
        f"a GPU needs about {(need.total + RESERVED_BYTES) / GIB:.1f} GiB (networks and optimizer {state / GIB:.1f}, "
        f"activations {need.activations / GIB:.1f}, tokenizer {need.tokenizer / GIB:.1f}, the batch "
        f"{need.batch / GIB:.1f}, CUDA itself {RESERVED_BYTES / GIB:.0f}), expected at most "
        f"cluster.gpu_memory_gb = {limit:g}. {' '.join(_gpu_advice(recipe, limit))}"
    )


def _gpu_advice(recipe: Recipe, limit_gib: float) -> Iterator[str]:
    parallel = recipe.parallel
    for change in (
        {"encode_ahead": False},
        {"encode_ahead": False, "recompute_less": 0},
        {"encode_ahead": False, "recompute_less": 0, "recompute": "all_but_attention"},
        {"encode_ahead": False, "recompute_less": 0, "recompute": "everything"},
    ):
        changed = recipe.model_copy(update={"parallel": parallel.model_copy(update=change)})
        needed = (gpu_memory(changed).total + RESERVED_BYTES) / GIB
        if needed <= limit_gib:
            keys = ", ".join(f"{key} = {json.dumps(value)}" for key, value in change.items())
            yield f"Under [parallel], {keys} would need {needed:.1f} GiB."
            break
    else:
        yield f'More recomputation (parallel.recompute = "everything") is not enough: {LESS_ACTIVATIONS}.'
    yield (
        "A larger parallel.tensor or parallel.context takes more GPUs and less of each; parallel.shard spreads weights "
        "over context and data ranks. For a GPU with more memory set cluster.gpu_memory_gb; 0 does not check."
    )


def _host_problems(recipe: Recipe) -> Iterator[str]:
    limit, need = _node_limit_gib(recipe), host_memory(recipe)
    if need.total <= limit * GIB:
        return
    yield (
        f"the {recipe.processes_per_node} processes of a node need about {need.total / GIB:.1f} GiB of main memory "
        f"(processes {need.processes / GIB:.1f}, a checkpoint that is written {need.staging / GIB:.1f}, loaders "
        f"{need.loaders / GIB:.1f}), expected at most {limit:g} (cluster.mem_gb_per_gpu for each). Raise it, lower "
        f"data.num_workers, or {LESS_ACTIVATIONS}."
    )


def _disk_problems(recipe: Recipe, free_bytes: int, results: str) -> Iterator[str]:
    need = estimate(recipe).attempt_bytes
    if need <= free_bytes:
        return
    saving = recipe.saving
    yield (
        f"{results} has {free_bytes / GIB:.1f} GiB free, the run's own checkpoints included; its checkpoints "
        f"(saving.keep_last = {saving.keep_last}, saving.keep_every = {saving.keep_every}, and one that is being "
        f"written) and export need {need / GIB:.1f}. Free some space (`make prune` shows old attempts), or lower "
        "saving.keep_last."
    )
