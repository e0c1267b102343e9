from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import assert_same_weights, metrics
from toy_job import Job
from trainer_toy import ToyTask, exit_codes, start_ranks, toy_recipe

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, write_json
from worldtune.recipe.schema import Recipe
from worldtune.training.hardware import DeviceMemory, peak_tflops
from worldtune.training.metrics import read_rows
from worldtune.training.preflight import Timing, predict
from worldtune.training.state import complete_steps
from worldtune.training.task import Batch, LossOutput

LAYOUTS = [{"tensor": 1, "data": 1}, {"tensor": 2, "data": 1}, {"tensor": 1, "data": 2}]


def with_layout(layout: dict[str, int]) -> Recipe:
    return toy_recipe(
        parallel__tensor=layout["tensor"],
        parallel__data=layout["data"],
        training__gradient_accumulation=2 // layout["data"],
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"tensor{layout['tensor']}-data{layout['data']}")
def test_a_run_with_it_equals_one_without(tmp_path: Path, layout: dict[str, int]) -> None:
    recipe = with_layout(layout)
    done = [0] * recipe.world_size
    assert exit_codes(start_ranks(tmp_path / "without", recipe)) == done
    assert exit_codes(start_ranks(tmp_path / "with", recipe, measured_before=True)) == done
    assert not (tmp_path / "without/preflight.json").exists()
    record = read_json(tmp_path / "with/preflight.json")
    assert record["hardware"]["num_processes"] == recipe.world_size
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")
    assert read_rows(tmp_path / "with/validation.jsonl") == read_rows(tmp_path / "without/validation.jsonl")
    assert_same_weights(tmp_path / "without", tmp_path / "with", 8)


def test_what_is_recorded(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    recipe = toy_recipe(training__precision="bfloat16")
    caplog.set_level("INFO")
    assert job(recipe, preflight_only=True) == 0
    (attempt,) = job.attempts()
    record = read_json(attempt / "preflight.json")
    assert record == read_json(job.folder / "preflight.json")
    assert record["checks"] == {"weights": "as they were made"}
    assert record["parallel"] == recipe.parallel.model_dump()
    assert record["largest_batch"] == {"shapes": {"ordinal": [2], "video": [2, 8]}, "tokens": 2}
    seconds = record["seconds"]
    parts = [seconds[part] for part in ("data", "forward", "backward", "optimizer")]
    assert seconds["step"] == pytest.approx(sum(parts))
    # Two micro-steps of two samples.
    assert record["tokens_per_s"] == pytest.approx(4 / seconds["step"])
    assert record["mfu"] is None
    assert record["memory_gib"]["peak"] > 0
    assert record["memory_gib"]["device"] is None
    assert record["predicted"]["to_step"] == 8
    assert record["predicted"]["jobs"] == 1
    assert record["memory_gib"]["counted"] is None
    # It trained nothing.
    assert not (attempt / "metrics.jsonl").exists()
    assert not (attempt / "manifest.json").exists()
    assert complete_steps(attempt / "checkpoints") == []
    assert "preflight: 2 tokens at the largest shape" in caplog.text


def test_it_is_made_once_and_again_under_another_layout_or_code(
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted = []
    largest = ToyTask.largest_batch

    def counting(task: ToyTask) -> Batch:
        counted.append(task)
        return largest(task)

    monkeypatch.setattr(ToyTask, "largest_batch", counting)
    recipe = toy_recipe()
    assert job(recipe, preflight_only=True) == 0
    assert len(counted) == 1
    # Training finds it; so does a restart, and one who asks again.
    assert job(recipe) == 0
    assert len(counted) == 1
    assert job(recipe, preflight_only=True) == 0
    assert len(counted) == 1
    record = read_json(job.attempts()[0] / "preflight.json")
    # A finished run can be measured under another recipe, and is not trained.
    other = toy_recipe(training__micro_batch_size=1, training__gradient_accumulation=4)
    assert job(other, preflight_only=True) == 0
    assert len(counted) == 2
    assert len(job.attempts()) == 1
    assert read_json(job.attempts()[0] / "preflight.json")["key"] != record["key"]
    assert max(row["step"] for row in read_rows(job.attempts()[0] / "metrics.jsonl")) == 8


def test_a_recipe_with_overrides_leaves_the_runs_own_alone(job: Job) -> None:
    write_json(job.folder / "preflight.json", {"of": "the run's own recipe"})
    assert job(toy_recipe(), has_overrides=True, preflight_only=True) == 0
    assert read_json(job.folder / "preflight.json") == {"of": "the run's own recipe"}
    assert (job.attempts()[0] / "preflight.json").exists()


def test_a_batch_that_does_not_fit_ends_the_job_for_good(
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_task: ToyTask, _batch: Batch) -> LossOutput:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")

    monkeypatch.setattr(ToyTask, "training_loss", full)
    message = r"largest micro-batch of the dataset \(video 2x8\) does not fit .*20.00 GiB. Under \[parallel\], set enc"
    with pytest.raises(WorldtuneError, match=message):
        job(toy_recipe())
    (attempt,) = job.attempts()
    assert not (attempt / "preflight.json").exists()
    with pytest.raises(WorldtuneError, match="in a way that a retry cannot mend"):
        job(toy_recipe())
    assert job.num_built == 1


def test_it_leaves_the_default_generators_alone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ToyTask.training_loss

    def drawing(task: ToyTask, batch: Batch) -> LossOutput:
        torch.rand(3)
        return before(task, batch)

    monkeypatch.setattr(ToyTask, "training_loss", drawing)
    # Building the network leaves the same each time; the second call finds the record and measures nothing.
    job(toy_recipe(), preflight_only=True)
    measured = torch.get_rng_state()
    job(toy_recipe(), preflight_only=True)
    assert torch.equal(torch.get_rng_state(), measured)


def test_a_gpu_that_is_nearly_full_is_told(
    job: Job, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    peak = {"peak": 77.9, "reserved": 78.2, "outside": 0.6, "device": 79.1}
    monkeypatch.setattr(DeviceMemory, "max_over_ranks", lambda _self: peak)
    assert job(toy_recipe(), preflight_only=True) == 0
    assert "the largest batch leaves 0.6 of 79.1 GiB" in caplog.text
    assert "set encode_ahead = false, recompute more" in caplog.text
    record = read_json(job.folder / "preflight.json")["memory_gib"]
    assert {**peak, "counted": record["counted"]} == record
    assert record["counted"] > 0
    caplog.clear()
    peak["peak"] = 70.0
    assert job(toy_recipe(training__gradient_accumulation=1, training__micro_batch_size=4), preflight_only=True) == 0
    assert "the largest batch leaves" not in caplog.text


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA GH200 480GB", 989.0),
        ("NVIDIA H200 NVL", 835.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GB200", 2500.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("x86_64 CPU", None),
    ],
)
def test_the_rate_of_a_gpu_goes_by_its_name(name: str, rate: float | None) -> None:
    assert peak_tflops(name) == rate


def timing(**values: Any) -> Timing:
    seconds = {"first_step_s": 60.0, "data_s": 1.0, "forward_s": 4.0, "backward_s": 4.5, "optimizer_s": 0.5}
    return Timing(**{**seconds, "num_tokens": 10, **values})


def test_the_prediction_counts_steps_measurements_and_jobs() -> None:
    recipe = toy_recipe(
        training__max_iter=3600,
        validation={"every": 1000, "sigmas": [1.0, 2.0], "max_clips": 3},
        cluster={"runtime_minutes": 310, "save_seconds": 600},
    )
    found = predict(recipe, timing(), from_step=0, num_clips=3)
    assert found["training_h"] == pytest.approx(10.0)
    # At 0, 1000, 2000, 3000 and 3600: three clips at two noise levels under two controls; a forward pass is of four
    # samples.
    assert found["validation_h"] == pytest.approx(5 * 12 * 1.0 / 3600)
    assert found["hours"] == pytest.approx(found["training_h"] + found["validation_h"])
    assert found["jobs"] == 3
    rest = predict(recipe, timing(), from_step=1800, num_clips=3)
    assert (rest["from_step"], rest["to_step"], rest["training_h"]) == (1800, 3600, pytest.approx(5.0))
    assert rest["validation_h"] == pytest.approx(3 * 12 * 1.0 / 3600)
    assert rest["previews_h"] == 0


def test_the_prediction_counts_previews() -> None:
    previews = {"every": 1000, "num_clips": 2, "guidances": [0.0, 3.0, 7.0], "num_steps": 20}
    recipe = toy_recipe(training__max_iter=3600, validation__every=3600, previews=previews)
    found = predict(recipe, timing(), from_step=0, num_clips=3)
    # At 0, 1000, 2000, 3000 and 3600: 21 passes without guidance, 42 with each of two.
    assert found["previews_h"] == pytest.approx(5 * 2 * (21 + 2 * 42) * 1.0 / 3600)
    hours = found["training_h"] + found["validation_h"] + found["previews_h"]
    assert found["hours"] == pytest.approx(hours)
    assert predict(recipe, timing(), from_step=0, num_clips=0)["previews_h"] == 0
