"""A step's time with and without a checkpoint being written beside it, and what a checkpoint takes on the disk.

python benchmarks/checkpoint_save.py --folder DIR
torchrun --nproc-per-node 2 benchmarks/checkpoint_save.py --case tensor=2 --folder DIR

Steps are those of benchmarks/transfer1_step.py, saves those of the trainer (training/state.py). The baseline is the
step without a save in flight, in the same run; for comparison, one save is waited for, as a trainer without a writing
thread would. Each checkpoint is read back and compared, bit by bit, with a copy of the state from before its save
began: a difference ends the benchmark with an error. The folder's disk needs room for two checkpoints.

The original's checkpoint of the same step is counted, not written (spec/transfer1-training.md 4.1): base, branch and
uncertainty head in the training's precision, an average and two moments of the branch in float32.
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transfer1_step import GIB, Step, emit, with_blocks, with_layout

from worldtune.kernels.attention import fastest_kernel, use_kernel
from worldtune.parallel.mesh import build_mesh
from worldtune.recipe.estimate import num_tokens
from worldtune.recipe.load import load_recipe
from worldtune.recipe.schema import Recipe
from worldtune.training.sharding import local
from worldtune.training.state import TrainState
from worldtune.training.store import CheckpointStore


def timed_step(step: Step) -> float:
    """Return the seconds of a step, on the host, to the end of its work on the device."""
    started = time.perf_counter()
    step(lambda _: None)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def steps_in_flight(step: Step, store: CheckpointStore, state: TrainState) -> dict[str, Any]:
    """Save once while steps go on; returns their times, and how long the loop was held up before the first."""
    started = time.perf_counter()
    path = store.begin(state)
    held_up = time.perf_counter() - started
    seconds = []
    while store.in_flight():
        seconds.append(timed_step(step))
        state.step += 1
    store.finish()
    # The last step may have run on after the save had ended.
    return {"path": path, "held_up_s": held_up, "save_s": time.perf_counter() - started, "steps_s": seconds}


def copy_of(state: TrainState) -> dict[str, Tensor]:
    """Return this rank's part of the state, in main memory."""
    return {name: local(tensor).cpu().clone() for name, tensor in state.tensors().items()}


def require_equal(folder: Path, state: TrainState, expected: dict[str, Tensor]) -> None:
    """Load the newest checkpoint of a folder into `state` and require that it is what was expected."""
    CheckpointStore(folder, keep_last=1, keep_every=0, lease=None).resume(state)
    found = copy_of(state)
    wrong = [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]
    if wrong:
        raise SystemExit(f"error: {folder}: {len(wrong)} tensors are not as they were saved: {wrong[:5]}")


def bytes_of(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def original_bytes(recipe: Recipe, step: Step) -> dict[str, int]:
    """Return what the original's checkpoint of the same step takes, by part."""
    each = 2 if recipe.training.precision == "bfloat16" else 4
    base = sum(parameter.numel() for parameter in step.base.parameters())
    branch = sum(parameter.numel() for parameter in step.control.parameters())
    return {"base": base * each, "branch": branch * each, "average": 4 * branch, "moments": 8 * branch}


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="an empty or new folder on the disk to measure")
    parser.add_argument("--recipe", default="edge_posttrain")
    parser.add_argument("--case", default="", help="keys of [parallel], as key=value,key=value")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of the base; 0 takes the recipe's")
    parser.add_argument("--steps", type=int, default=4, help="steps of the baseline")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("override", nargs="*", help="other keys of the recipe, key.path=value")
    arguments = parser.parse_args()
    is_main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR)
    recipe = with_layout(load_recipe(arguments.recipe, ["parallel.tensor=1", *arguments.override]), arguments.case)
    if arguments.blocks:
        recipe = with_blocks(recipe, arguments.blocks)
    parallel = recipe.parallel
    mesh = build_mesh("cuda", data=parallel.data, context=parallel.context, tensor=parallel.tensor)
    device = torch.device("cuda", torch.cuda.current_device())
    base = recipe.network.base
    use_kernel(
        fastest_kernel(
            num_tokens=num_tokens(recipe),
            num_heads=base.num_heads // (parallel.tensor * parallel.context),
            head_channels=base.model_channels // base.num_heads,
            device=device,
        )
    )
    step = Step(recipe, mesh, device, eager=False)
    state = TrainState(step.parameters, step.optimizer, step.ema)
    store = CheckpointStore(arguments.folder, keep_last=1, keep_every=0, lease=None)
    store.prepare(state)
    emit(
        f"{torch.cuda.get_device_name(device)} x {recipe.world_size}, torch {torch.__version__}, {arguments.recipe}: "
        f"{num_tokens(recipe)} tokens, {step.base.config.num_blocks} + {step.control.config.num_control_blocks} "
        f"blocks; a checkpoint has {state.num_bytes() / GIB:.2f} GiB"
    )
    for _ in range(2):
        timed_step(step)
    alone = [timed_step(step) for _ in range(arguments.steps)]
    rows = []
    for _ in range(arguments.saves):
        # Reading one back has set the step to that of the checkpoint.
        state.step += 1
        expected = copy_of(state)
        rows.append(steps_in_flight(step, store, state))
        require_equal(arguments.folder, state, expected)
    state.step += 1
    started = time.perf_counter()
    path = store.save(state)
    waited = time.perf_counter() - started
    store.close(60.0)
    dist.barrier()
    if is_main:
        report(rows, alone, waited, bytes_of(path), original_bytes(recipe, step), arguments.json)
        shutil.rmtree(arguments.folder)
    dist.barrier()
    dist.destroy_process_group()


def report(
    rows: list[dict[str, Any]],
    alone: list[float],
    waited: float,
    on_disk: int,
    original: dict[str, int],
    json_file: Path | None,
) -> None:
    """Print the figures with their ratios."""
    baseline = median(alone)
    # The last step of a save ran beside it in part only, and counts all the same.
    in_flight = [seconds for row in rows for seconds in row["steps_s"]]
    for row in rows:
        emit(
            f"save: loop held up {row['held_up_s']:.2f} s, written after {row['save_s']:.1f} s, steps beside it "
            f"{', '.join(f'{seconds:.2f}' for seconds in row['steps_s'])} s"
        )
    total = sum(original.values())
    emit(f"step without a save in flight: {baseline:.2f} s (baseline)")
    emit(f"step with a save in flight: {median(in_flight):.2f} s = {median(in_flight) / baseline:.3f} x baseline")
    emit(f"a save that is waited for: {waited:.1f} s = {waited / baseline:.2f} steps")
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in original.items())
    emit(f"on disk: {on_disk / 1e9:.2f} GB; the original's: {total / 1e9:.2f} GB ({parts}) = {total / on_disk:.2f} x")
    if json_file is not None:
        figures = {"alone_s": alone, "waited_s": waited, "on_disk": on_disk, "original": original, "saves": rows}
        json_file.write_text(json.dumps(figures, indent=1, default=str))


if __name__ == "__main__":
    sys.exit(main())
