import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from trainer_toy import exit_codes, start_ranks, toy_recipe

from worldtune.common.files import read_json, write_json
from worldtune.recipe.schema import Recipe
from worldtune.training.metrics import read_rows
from worldtune.training.signals import EXIT_STOPPED
from worldtune.training.state import complete_steps, folder_name, read_weights

TIMES = {"step_s", "data_s", "forward_s", "backward_s", "optimizer_s", "tokens_per_s", "peak_memory_gb", "time"}


def metrics(attempt: Path) -> list[dict[str, Any]]:
    rows = read_rows(attempt / "metrics.jsonl")
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def run(attempt: Path, recipe: Recipe, events: dict[int, dict[str, str]] | None = None) -> list[int | None]:
    return exit_codes(start_ranks(attempt, recipe, events))


def assert_same_weights(first: Path, second: Path, step: int, **tolerance: float) -> None:
    for rate in (None, 0.1, 0.05):
        expected = read_weights(first / "checkpoints" / folder_name(step), rate)
        found = read_weights(second / "checkpoints" / folder_name(step), rate)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            if tolerance:
                torch.testing.assert_close(found[name], tensor, **tolerance)
            else:
                assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        ({"tensor": 1, "data": 1}, "bfloat16"),
        ({"tensor": 2, "data": 1}, "float32"),
        ({"tensor": 1, "data": 2}, "float32"),
    ],
)
def test_killed_run_resumes_bit_equal(tmp_path: Path, layout: dict[str, int], precision: str) -> None:
    accumulation = 2 // layout["data"]
    recipe = toy_recipe(
        parallel__tensor=layout["tensor"],
        parallel__data=layout["data"],
        training__gradient_accumulation=accumulation,
        training__precision=precision,
        data__num_workers=1,
    )
    assert run(tmp_path / "whole", recipe) == [0] * recipe.world_size
    # Sample 21 is in the sixth step: steps 4 and 5 are lost, their rows are cut and made again.
    codes = run(tmp_path / "killed", recipe, {rank: {"21": "kill"} for rank in range(recipe.world_size)})
    assert -signal.SIGKILL in codes
    # The save of step 3 may still have been in flight.
    saved = complete_steps(tmp_path / "killed" / "checkpoints")
    assert saved in ([], [3])
    assert len(metrics(tmp_path / "killed")) == 5
    assert run(tmp_path / "killed", recipe) == [0] * recipe.world_size
    starts = yaml.safe_load((tmp_path / "killed" / "launch_info.yaml").read_text())
    assert starts[-1] == {"start_step": sum(saved), "repeated_steps": 5 - sum(saved)}
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert read_rows(tmp_path / "killed" / "validation.jsonl") == read_rows(tmp_path / "whole" / "validation.jsonl")
    assert_same_weights(tmp_path / "whole", tmp_path / "killed", 8)


def test_layouts_train_alike_and_continue_each_other(tmp_path: Path) -> None:
    dense = toy_recipe()
    split = toy_recipe(parallel__tensor=2)
    spread = toy_recipe(parallel__data=2, training__gradient_accumulation=1)
    assert run(tmp_path / "dense", dense) == [0]
    half = {"training__max_iter": 4, "saving__every": 4}
    assert run(tmp_path / "mixed", toy_recipe(parallel__tensor=2, **half)) == [0, 0]
    assert run(tmp_path / "mixed", toy_recipe(training__max_iter=6, saving__every=6)) == [0]
    assert run(tmp_path / "mixed", split) == [0, 0]
    assert run(tmp_path / "spread", spread) == [0, 0]
    for other in ("mixed", "spread"):
        assert [row["clip_ids"] for row in metrics(tmp_path / other)] == [
            row["clip_ids"] for row in metrics(tmp_path / "dense")
        ]
        assert_same_weights(tmp_path / "dense", tmp_path / other, 8, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_holds_the_position_of_each_data_ranks_loader(tmp_path: Path) -> None:
    layout = {"parallel__data": 2, "training__gradient_accumulation": 1, "data__num_workers": 1}
    assert run(tmp_path, toy_recipe(training__max_iter=3, **layout)) == [0, 0]
    path = tmp_path / "checkpoints" / folder_name(3) / "state.json"
    loaders = read_json(path)["extra"]["loaders"]
    # A step has four samples, two of each rank; no sample of the fourth step is counted.
    assert [position["next_ordinal"] for position in loaders] == [12, 14]
    assert [position["dataset_digest"] for position in loaders] == ["toy", "toy"]
    assert run(tmp_path, toy_recipe(training__max_iter=5, **layout)) == [0, 0]
    assert [len(row["clip_ids"]) for row in metrics(tmp_path)] == [4] * 5


def test_a_run_does_not_go_on_with_another_dataset(tmp_path: Path) -> None:
    assert run(tmp_path, toy_recipe(training__max_iter=3)) == [0]
    path = tmp_path / "checkpoints" / folder_name(3) / "state.json"
    state = read_json(path)
    state["extra"]["loaders"][0]["dataset_digest"] = "another"
    write_json(path, state)
    # Nor with another number of data ranks, where the position itself is not taken.
    for layout in ({}, {"parallel__data": 2, "training__gradient_accumulation": 1}):
        assert 1 in run(tmp_path, toy_recipe(training__max_iter=5, **layout))
        assert len(metrics(tmp_path)) == 3


def test_tensor_ranks_that_disagree_end_the_run_before_its_first_update(tmp_path: Path) -> None:
    codes = run(tmp_path, toy_recipe(parallel__tensor=2, data__num_workers=1), {1: {"0": "skew"}})
    assert 1 in codes
    assert not metrics(tmp_path)


def test_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path) -> None:
    recipe = toy_recipe(parallel__tensor=2)
    assert run(tmp_path / "stopped", recipe, {1: {"18": "SIGTERM"}}) == [EXIT_STOPPED, EXIT_STOPPED]
    assert max(complete_steps(tmp_path / "stopped" / "checkpoints")) == 5
    assert run(tmp_path / "stopped", recipe) == [0, 0]
    assert run(tmp_path / "whole", recipe) == [0, 0]
    assert metrics(tmp_path / "stopped") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped", 8)
