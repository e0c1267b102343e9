import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import run
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from trainer_toy import toy_recipe, train_toy

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.checks import check_recipe
from worldtune.recipe.schema import Recipe
from worldtune.training.gradients import parameter_groups
from worldtune.training.health import DATA_WAIT_STEPS, STARTING_STEPS, WARN_EVERY_STEPS, Agreement, DataWait, agree
from worldtune.training.metrics import read_rows

TWO_RANKS = {"parallel__data": 2, "training__gradient_accumulation": 1}
"""Of the four samples of a step, the first rank has the first two."""


def skipped(attempt: Path) -> list[dict[str, Any]]:
    return read_rows(attempt / "skipped.jsonl")


@pytest.mark.parametrize("band", [{"first_loss_max": 0.2}, {"first_loss_min": 0.5}])
@pytest.mark.usefixtures("single_mesh")
def test_a_first_loss_out_of_its_band_ends_the_run_before_an_update(tmp_path: Path, band: dict[str, float]) -> None:
    message = r"edm_loss of the first step is 0\.3\d+, expected .*No update was made.*clip2, clip6, clip1, clip3"
    with pytest.raises(WorldtuneError, match=message):
        train_toy(tmp_path, toy_recipe(health=band))
    assert not read_rows(tmp_path / "metrics.jsonl")
    assert not list((tmp_path / "checkpoints").glob("step_*"))


@pytest.mark.usefixtures("single_mesh")
def test_a_first_loss_that_is_not_finite_is_out_of_any_band(tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"edm_loss of the first step is nan"):
        train_toy(tmp_path, toy_recipe(), {"0": "nan"})
    assert [row["step"] for row in skipped(tmp_path)] == [1]


@pytest.mark.usefixtures("single_mesh")
def test_the_first_loss_of_a_restart_is_no_first_loss(tmp_path: Path) -> None:
    assert train_toy(tmp_path, toy_recipe(training__max_iter=4)) == 0
    assert train_toy(tmp_path, toy_recipe(health__first_loss_min=100.0, health__first_loss_max=101.0)) == 0


def test_a_band_without_room_is_refused() -> None:
    with pytest.raises(WorldtuneError, match=r"health\.first_loss_min: must be below health\.first_loss_max = 2\.0"):
        check_recipe(toy_recipe(health__first_loss_min=2.0), "mine.toml")


def test_two_ranks_end_together_where_the_mean_of_their_first_losses_is_out_of_band(tmp_path: Path) -> None:
    # Rank 1 alone sees three times its loss.
    recipe = toy_recipe(**TWO_RANKS, health__first_loss_max=0.5)
    assert run(tmp_path / "well", recipe) == [0, 0]
    assert 1 in run(tmp_path / "ill", recipe, {1: {"2": "skew", "3": "skew"}})
    assert not read_rows(tmp_path / "ill" / "metrics.jsonl")


@pytest.mark.parametrize(
    ("event", "groups", "loss_of_rank_1"),
    [
        ("nan", ["down", "norm", "up"], None),
        ("nan_loss", [], None),
        ("nan_gradient", ["up"], pytest.approx(0.3, abs=0.3)),
    ],
)
def test_what_one_rank_finds_is_skipped_by_all_and_written_down(
    tmp_path: Path, event: str, groups: Sequence[str], loss_of_rank_1: Any
) -> None:
    recipe = toy_recipe(**TWO_RANKS)
    # Sample 10 is the first of rank 1 in the third step.
    assert run(tmp_path, recipe, {1: {"10": event}}) == [0, 0]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["grad_norm"] is None] == [3]
    assert [group for group, norm in rows[2]["grad_norm_by_group"].items() if norm is None] == groups
    (row,) = skipped(tmp_path)
    assert (row["step"], row["groups"]) == (3, groups)
    assert [(rank["rank"], rank["data_rank"]) for rank in row["ranks"]] == [(0, 0), (1, 1)]
    (first,), (second,) = (rank["losses"] for rank in row["ranks"])
    assert first == pytest.approx(0.3, abs=0.3)
    assert second == loss_of_rank_1
    assert [sample["clip_id"] for sample in row["samples"]] == rows[2]["clip_ids"]
    assert [(sample["data_rank"], sample["ordinal"]) for sample in row["samples"]] == [(0, 8), (0, 9), (1, 10), (1, 11)]
    assert "step 3:" in tmp_path.with_name(tmp_path.name + ".rank0.log").read_text()


@pytest.mark.usefixtures("single_mesh")
def test_micro_steps_of_a_skipped_step_are_told_apart(tmp_path: Path) -> None:
    assert train_toy(tmp_path, toy_recipe(), {"10": "nan_loss"}) == 0
    (row,) = skipped(tmp_path)
    assert [loss is None for loss in row["ranks"][0]["losses"]] == [False, True]
    assert [(sample["micro_step"], sample["ordinal"]) for sample in row["samples"]] == [
        (0, 8),
        (0, 9),
        (1, 10),
        (1, 11),
    ]


@pytest.mark.parametrize(
    ("health", "bad_steps", "message"),
    [
        (
            {"max_skipped_in_a_row": 2},
            [3, 5, 6, 8],
            r"2 steps in a row .*max_skipped_in_a_row\); the last one is step 6",
        ),
        ({"max_skipped": 3}, [3, 5, 7, 8], r"3 steps since the first one .*max_skipped\); the last one is step 7"),
    ],
)
@pytest.mark.usefixtures("single_mesh")
def test_limits(tmp_path: Path, health: dict[str, int], bad_steps: list[int], message: str) -> None:
    events = {str(4 * (step - 1)): "nan" for step in bad_steps}
    with pytest.raises(WorldtuneError, match=message):
        train_toy(tmp_path, toy_recipe(health=health), events)
    assert [row["step"] for row in skipped(tmp_path)] == bad_steps[:3]
    assert read_rows(tmp_path / "metrics.jsonl")[-1]["step"] == bad_steps[2]


@pytest.mark.usefixtures("single_mesh")
def test_skipped_steps_count_over_restarts_and_those_that_are_made_again_are_forgotten(tmp_path: Path) -> None:
    recipe = toy_recipe(health__max_skipped=2)
    # Step 2 is saved with step 3; step 5 is lost with the process that is killed in step 6.
    assert run(tmp_path, recipe, {0: {"4": "nan", "16": "nan_loss", "20": "kill"}}) != [0]
    assert [row["step"] for row in skipped(tmp_path)] == [2, 5]
    assert run(tmp_path, recipe) == [0]
    assert [row["step"] for row in skipped(tmp_path)] == [2]
    with pytest.raises(WorldtuneError, match=r"2 steps since the first one .* step 10"):
        train_toy(tmp_path, toy_recipe(health__max_skipped=2, training__max_iter=12), {"36": "nan"})


def warnings_of(shares: Sequence[float], recipe: Recipe, caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    """What is warned of, and after how many steps."""
    watch = DataWait(recipe)
    found = []
    for step, share in enumerate(shares, start=1):
        caplog.clear()
        watch.note(share)
        found += [(step, record.getMessage()) for record in caplog.records]
    return found


def test_waiting_for_data_is_warned_of_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    first = STARTING_STEPS + DATA_WAIT_STEPS
    found = warnings_of([0.06] * 250, toy_recipe(), caplog)
    assert [step for step, _ in found] == [first, first + WARN_EVERY_STEPS, first + 2 * WARN_EVERY_STEPS]
    assert "6 % of the last 20 steps went by waiting for data (health.max_data_wait is 5 %)" in found[0][1]
    assert "data.num_workers, now 0" in found[0][1]
    assert "data.cache_latents = true" in found[0][1]
    assert "encode_ahead" not in found[0][1]
    assert not warnings_of([0.05] * 250, toy_recipe(), caplog)
    assert not warnings_of([0.06] * 250, toy_recipe(health__max_data_wait=0.07), caplog)
    # The first steps after a start, and single ones, are no wait.
    assert not warnings_of([1.0] * STARTING_STEPS + [0.0] * 100 + [0.9] + [0.0] * 100, toy_recipe(), caplog)


def test_advice_fits_the_recipe(caplog: pytest.LogCaptureFixture) -> None:
    recipe = toy_recipe(control__kind="upscale", parallel__encode_ahead=False)
    ((_, text),) = warnings_of([0.5] * 30, recipe, caplog)
    assert "cache_latents" not in text
    assert "parallel.encode_ahead = true" in text


def test_a_wait_of_any_rank_is_warned_of_on_the_first(tmp_path: Path) -> None:
    recipe = toy_recipe(**TWO_RANKS, training__max_iter=STARTING_STEPS + DATA_WAIT_STEPS + 3, validation__every=100)
    late = {str(ordinal): "wait" for ordinal in range(200)}
    assert run(tmp_path / "late", recipe, {1: late}) == [0, 0]
    assert "of the last 20 steps went by waiting for data" in (tmp_path / "late.rank0.log").read_text()
    patient = recipe.model_copy(update={"health": recipe.health.model_copy(update={"max_data_wait": 1.0})})
    assert run(tmp_path / "patient", patient, {1: late}) == [0, 0]
    assert "waiting for data" not in (tmp_path / "patient.rank0.log").read_text()


@pytest.mark.parametrize("layout", [{"parallel__tensor": 2}, TWO_RANKS])
def test_norms_of_groups_add_up_and_are_those_of_one_process(tmp_path: Path, layout: dict[str, int]) -> None:
    assert run(tmp_path / "one", toy_recipe(training__max_iter=3)) == [0]
    assert run(tmp_path / "two", toy_recipe(training__max_iter=3, **layout)) == [0, 0]
    pairs = zip(
        read_rows(tmp_path / "one" / "metrics.jsonl"), read_rows(tmp_path / "two" / "metrics.jsonl"), strict=True
    )
    for one, two in pairs:
        assert one["grad_norm_by_group"].keys() == {"dead", "down", "norm", "up"}
        assert two["grad_norm_by_group"] == pytest.approx(one["grad_norm_by_group"], rel=1e-4)
        for row in (one, two):
            squares = sum(norm**2 for norm in row["grad_norm_by_group"].values())
            assert squares == pytest.approx(row["grad_norm"] ** 2, rel=1e-5)
            assert row["grad_norm_by_group"]["dead"] == 0


def test_groups_are_children_and_the_parts_of_lists_and_dicts() -> None:
    network = nn.ModuleDict(
        {"blocks": nn.ModuleDict({"block0": nn.Sequential(nn.Linear(1, 1))}), "out": nn.Linear(1, 1)}
    )
    network["stack"] = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    groups = parameter_groups(network, [name for name, _ in network.named_parameters()])
    assert groups["blocks.block0.0.weight"] == "blocks.block0"
    assert set(groups.values()) == {"blocks.block0", "out", "stack.0", "stack.1"}


def test_what_all_ranks_use_is_the_largest(single_mesh: DeviceMesh) -> None:
    agreement = agree(torch.tensor([1.0, 2.0]), [0.0, 0.5], torch.tensor(3.5))
    assert agreement == Agreement(measured=[1.0, 2.0], is_finite=True, largest=[0.0, 0.5], shared=3.5)
    assert not agree(torch.tensor([float("nan")]), [0.0], torch.tensor(float("inf"))).is_finite
