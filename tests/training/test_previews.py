import errno
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import trainer_toy
from test_resume import assert_same_weights, metrics, run
from trainer_toy import ToyDrawn, ToyTask, toy_recipe

from worldtune.common.files import read_json
from worldtune.parallel.mesh import build_mesh
from worldtune.recipe.schema import Previews
from worldtune.training.metrics import NullTracker, read_rows
from worldtune.training.previews import is_due, is_made, make_preview
from worldtune.training.signals import EXIT_STOPPED
from worldtune.training.state import folder_name


def steps_with_previews(attempt: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted((attempt / "previews").iterdir())]


@pytest.mark.parametrize("layout", [{"tensor": 1, "data": 1}, {"tensor": 2, "data": 1}, {"tensor": 1, "data": 2}])
def test_previews_change_nothing_of_the_training(tmp_path: Path, layout: dict[str, int]) -> None:
    layouts = {"parallel": layout, "training__gradient_accumulation": 2 // layout["data"]}
    with_previews = toy_recipe(**layouts, previews={"every": 3, "guidances": [0.0, 2.0]})
    assert set(run(tmp_path / "seen", with_previews)) == {0}
    assert set(run(tmp_path / "unseen", toy_recipe(**layouts))) == {0}
    assert metrics(tmp_path / "seen") == metrics(tmp_path / "unseen")
    assert_same_weights(tmp_path / "seen", tmp_path / "unseen", 8)
    assert not (tmp_path / "unseen" / "previews").exists()
    assert steps_with_previews(tmp_path / "seen") == [0, 3, 6, 8]


def test_the_record_says_which_column_is_what(tmp_path: Path) -> None:
    recipe = toy_recipe(previews={"every": 8, "guidances": [0.0, 2.5], "num_clips": 2})
    assert run(tmp_path, recipe) == [0]
    summary = read_json(tmp_path / "previews" / folder_name(8) / "previews.json")
    assert summary["columns"] == ["control", "ground truth", "guidance 0", "guidance 2.5"]
    assert [clip["clip_id"] for clip in summary["clips"]] == ["clip0", "clip1"]
    for clip in summary["clips"]:
        assert (tmp_path / "previews" / folder_name(8) / clip["video"]).is_file()
        assert (tmp_path / "previews" / folder_name(8) / clip["grid"]).is_file()
        assert clip["scores"].keys() == {"0", "2.5"}
    rows = read_rows(tmp_path / "previews.jsonl")
    assert [(row["step"], row["clip_id"], row["guidance"]) for row in rows] == [
        (step, clip, guidance) for step in (0, 8) for clip in ("clip0", "clip1") for guidance in (0.0, 2.5)
    ]
    # The weights of the step, not those of the start.
    first, last = ([row["edge_f1"] for row in rows if row["step"] == step] for step in (0, 8))
    assert first != last


def test_a_killed_run_makes_no_preview_twice(tmp_path: Path) -> None:
    recipe = toy_recipe(previews={"every": 4})
    # Sample 25 is in the seventh step. The save of step 6 has waited for that of step 3, before the preview of step 4,
    # which is made the newest.
    assert run(tmp_path, recipe, {0: {"25": "kill"}}) == [-signal.SIGKILL]
    shutil.rmtree(tmp_path / "checkpoints" / folder_name(6), ignore_errors=True)
    assert steps_with_previews(tmp_path) == [0, 4]
    rows = read_rows(tmp_path / "previews.jsonl")
    times = {step: (tmp_path / "previews" / folder_name(step) / "clip0.mp4").stat().st_mtime_ns for step in (0, 4)}
    # One that was torn is made again, whole.
    (tmp_path / "previews" / folder_name(0) / "previews.json").unlink()
    (tmp_path / "previews" / folder_name(4) / "previews.json").unlink()
    (tmp_path / "previews" / folder_name(4) / "left_over").touch()
    assert run(tmp_path, recipe) == [0]
    assert steps_with_previews(tmp_path) == [0, 4, 8]
    assert read_rows(tmp_path / "previews.jsonl")[: len(rows)] == rows
    assert (tmp_path / "previews" / folder_name(0) / "clip0.mp4").stat().st_mtime_ns == times[0]
    assert (tmp_path / "previews" / folder_name(4) / "clip0.mp4").stat().st_mtime_ns > times[4]
    assert not (tmp_path / "previews" / folder_name(4) / "left_over").exists()
    whole = (tmp_path / "previews.jsonl").read_bytes()
    assert run(tmp_path, recipe) == [0]
    assert (tmp_path / "previews.jsonl").read_bytes() == whole


def test_a_stop_waits_for_no_preview(tmp_path: Path) -> None:
    recipe = toy_recipe(previews={"every": 4}, parallel__tensor=2)
    # Sample 12 is in the fourth step.
    assert run(tmp_path, recipe, {1: {"12": "SIGTERM"}}) == [EXIT_STOPPED] * 2
    assert steps_with_previews(tmp_path) == [0]
    assert run(tmp_path, recipe) == [0, 0]
    assert steps_with_previews(tmp_path) == [0, 4, 8]


def test_when_previews_are_due() -> None:
    due = [step for step in range(11) if is_due(step, Previews(every=4), last_step=10)]
    assert due == [0, 4, 8, 10]
    assert not any(is_due(step, Previews(every=0), last_step=10) for step in range(11))


class Videos(NullTracker):
    def __init__(self) -> None:
        self.shown: dict[str, Path] = {}
        self.values: dict[str, float] = {}

    def log(self, values: Any, step: int) -> None:
        self.values |= values

    def log_videos(self, videos: Any, step: int) -> None:
        self.shown |= videos


@pytest.fixture
def toy_task() -> Any:
    task = ToyTask(toy_recipe(previews={"every": 4, "num_clips": 2}), build_mesh("cpu"))
    yield task
    torch.distributed.destroy_process_group()


def preview(task: ToyTask, attempt: Path, *, stop_after: int = 99) -> tuple[Videos, list[bool]]:
    """Make the preview of step 4; returns what the tracker was shown and what `ends` was told."""
    told: list[bool] = []
    videos = Videos()

    def ends(failed: bool) -> bool:
        told.append(failed)
        return failed or len(told) >= stop_after

    make_preview(task, task.recipe.previews, attempt, 4, is_main=True, ends=ends, tracker=videos)
    return videos, told


def test_videos_and_means_go_to_the_tracker(toy_task: ToyTask, tmp_path: Path) -> None:
    videos, _ = preview(toy_task, tmp_path)
    folder = tmp_path / "previews" / folder_name(4)
    assert videos.shown == {f"previews/{clip}": folder / f"{clip}.mp4" for clip in ("clip0", "clip1")}
    rows = read_rows(tmp_path / "previews.jsonl")
    at_zero = [row["edge_f1"] for row in rows if row["guidance"] == 0]
    assert videos.values["previews/edge_f1/guidance_0"] == pytest.approx(sum(at_zero) / len(at_zero))
    assert videos.values.keys() == {f"previews/edge_f1/guidance_{value}" for value in (0, 3, 7)}


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "clip1.mp4"), torch.OutOfMemoryError("no room")]
)
def test_what_cannot_be_written_is_a_warning(
    toy_task: ToyTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    write = ToyDrawn.write

    def fail(drawn: ToyDrawn, folder: Path) -> Any:
        if drawn.clip_id == "clip1":
            raise error
        return write(drawn, folder)

    monkeypatch.setattr(trainer_toy.ToyDrawn, "write", fail)
    with caplog.at_level(logging.WARNING):
        videos, told = preview(toy_task, tmp_path)
    assert told == [False, True]
    assert not videos.shown
    assert "step_000000004 is left out, training goes on" in caplog.text
    assert str(error.args[-1]) in caplog.text
    assert not (tmp_path / "previews" / folder_name(4)).exists()
    assert not (tmp_path / "previews.jsonl").exists()
    monkeypatch.undo()
    preview(toy_task, tmp_path)
    assert is_made(tmp_path, 4)


def test_a_stop_between_clips_leaves_nothing_half_made(toy_task: ToyTask, tmp_path: Path) -> None:
    videos, told = preview(toy_task, tmp_path, stop_after=1)
    assert told == [False]
    assert not videos.shown
    assert not (tmp_path / "previews" / folder_name(4)).exists()


def test_a_full_disk_ends_no_preview_and_no_run(tmp_path: Path) -> None:
    recipe = toy_recipe(previews={"every": 4})
    # A file where the folder would be.
    (tmp_path / "previews").touch()
    assert run(tmp_path, recipe) == [0]
    assert not (tmp_path / "previews.jsonl").exists()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
