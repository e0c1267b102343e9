"""A run of the real task that is killed over and over, or goes on under other layouts, against an undisturbed one."""

import random
import shutil
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import tiny_recipe
from torch import Tensor
from trainer_toy import exit_codes, start_ranks

from worldtune.recipe.schema import Recipe
from worldtune.training.metrics import read_rows
from worldtune.training.state import complete_steps, folder_name, read_weights

STEPS = 60
RATES = (None, 0.1, 0.05)
MEASURED = ("loss", "edm_loss", "grad_norm")


def recipe_of(
    *, data: int = 1, context: int = 1, tensor: int = 1, max_iter: int = STEPS, save_every: int = 3
) -> Recipe:
    return tiny_recipe(
        training={
            "max_iter": max_iter,
            "global_batch_size": 2,
            "micro_batch_size": 1,
            "gradient_accumulation": 2 // data,
        },
        parallel={"data": data, "context": context, "tensor": tensor, "sequence": tensor > 1},
        schedule={"warmup_steps": 5},
        optimizer={"learning_rate": 1e-3},
        ema={"rates": [0.1, 0.05]},
        saving={"every": save_every, "keep_last": 2},
        validation={"every": 20, "sigmas": [1.0], "max_clips": 1},
    )


def train(attempt: Path, recipe: Recipe, world: Path) -> None:
    assert exit_codes(start_ranks(attempt, recipe, world=world), timeout_s=300) == [0] * recipe.world_size


def rows(attempt: Path) -> list[dict[str, Any]]:
    kept = ("step", "clip_ids", "learning_rate", *MEASURED)
    return [{key: row[key] for key in kept} for row in read_rows(attempt / "metrics.jsonl")]


def weights(attempt: Path, step: int) -> dict[str, Tensor]:
    checkpoint = attempt / "checkpoints" / folder_name(step)
    return {f"{rate} {name}": tensor for rate in RATES for name, tensor in read_weights(checkpoint, rate).items()}


def last_step(attempt: Path) -> int:
    return max((row["step"] for row in read_rows(attempt / "metrics.jsonl")), default=0)


def is_saving(attempt: Path, from_step: int) -> bool:
    partial = attempt.glob("checkpoints/step_*.partial")
    return any(int(path.name.removeprefix("step_").partition(".")[0]) >= from_step for path in partial)


def kill_once(attempt: Path, ranks: list[ForkServerProcess], step: int, moment: random.Random, *, saving: bool) -> bool:
    """Kill all ranks once a step is reached, or while a checkpoint of it or a later one is written.

    Returns whether a checkpoint was being written.
    """
    deadline = time.monotonic() + 120
    while not (is_saving(attempt, step) if saving else last_step(attempt) >= step):
        assert time.monotonic() < deadline, f"step {step} did not come"
        assert all(rank.is_alive() for rank in ranks), "a rank ended by itself"
        time.sleep(0.0005)
    time.sleep(moment.uniform(0, 0.003 if saving else 0.2))
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.join()
    return is_saving(attempt, 0)


@pytest.mark.parametrize(
    ("kills", "layout"),
    [
        pytest.param(3, {"tensor": 2}, id="3-tensor"),
        pytest.param(20, {"tensor": 2}, id="20-tensor", marks=pytest.mark.slow),
        pytest.param(20, {"data": 2}, id="20-data", marks=pytest.mark.slow),
    ],
)
def test_kills_at_any_moment_change_nothing(
    tiny_world: Path, tmp_path: Path, kills: int, layout: dict[str, int]
) -> None:
    steps = STEPS * kills // 20
    recipe = recipe_of(**layout, max_iter=steps)
    train(tmp_path / "whole", recipe, tiny_world)
    attempt = tmp_path / "killed"
    moment = random.Random(kills)
    inside_a_save = 0
    for number in range(kills):
        step = 1 + number * (steps - 3) // kills
        ranks = start_ranks(attempt, recipe, world=tiny_world)
        inside_a_save += kill_once(attempt, ranks, step, moment, saving=(kills - number) % 2 == 1)
        assert not list(attempt.glob("checkpoints/damaged*"))
    assert inside_a_save >= kills * 3 // 20 + 1
    train(attempt, recipe, tiny_world)
    differences = [
        (one, other) for one, other in zip(rows(attempt), rows(tmp_path / "whole"), strict=True) if one != other
    ]
    assert differences == []
    assert (attempt / "validation.jsonl").read_text() == (tmp_path / "whole" / "validation.jsonl").read_text()
    found, expected = weights(attempt, steps), weights(tmp_path / "whole", steps)
    assert found.keys() == expected.keys()
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
    print(f"{kills} kills, {inside_a_save} inside a save, {len(rows(attempt))} steps equal")


@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param(({"data": 2}, {"data": 2, "tensor": 2}, {}), id="2-4-1"),
        pytest.param(({"tensor": 2}, {"context": 2}), id="tensor-context", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_under_another_layout(
    tiny_world: Path, tmp_path: Path, layouts: tuple[dict[str, int], ...]
) -> None:
    steps = 4 * len(layouts)
    train(tmp_path / "whole", recipe_of(max_iter=steps), tiny_world)
    for number, layout in enumerate(layouts, start=1):
        train(tmp_path / "moved", recipe_of(**layout, max_iter=4 * number, save_every=4), tiny_world)
        assert max(complete_steps(tmp_path / "moved" / "checkpoints")) == 4 * number
    moved, whole = rows(tmp_path / "moved"), rows(tmp_path / "whole")
    assert [row["clip_ids"] for row in moved] == [row["clip_ids"] for row in whole]
    for found, expected in zip(moved, whole, strict=True):
        assert [found[key] for key in MEASURED] == pytest.approx([expected[key] for key in MEASURED], rel=1e-4)
    expected_weights = weights(tmp_path / "whole", steps)
    for name, tensor in weights(tmp_path / "moved", steps).items():
        torch.testing.assert_close(tensor, expected_weights[name], rtol=1e-3, atol=2e-4, msg=name)


def test_a_damaged_checkpoint_is_passed_over(tiny_world: Path, tmp_path: Path) -> None:
    recipe = recipe_of(max_iter=4, save_every=2)
    train(tmp_path / "whole", recipe, tiny_world)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    newest = tmp_path / "damaged" / "checkpoints" / folder_name(4)
    shard = next(newest.glob("*.distcp"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    train(tmp_path / "damaged", recipe, tiny_world)
    assert (newest.parent / f"damaged_{newest.name}").is_dir()
    assert rows(tmp_path / "damaged") == rows(tmp_path / "whole")
    expected = weights(tmp_path / "whole", 4)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "damaged", 4).items())
