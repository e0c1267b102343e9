import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from largest_check import assert_largest_is_like_samples, described
from tiny_world import tiny_inputs, tiny_recipe

from worldtune.common.files import read_json
from worldtune.parallel.mesh import build_mesh
from worldtune.training.metrics import read_rows
from worldtune.training.preflight import Preflight
from worldtune.training.run import run_training
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.largest import largest_batch
from worldtune.transfer1.task import build_task

CPU = torch.device("cpu")
TIMES = {"step_s", "data_s", "forward_s", "backward_s", "optimizer_s", "tokens_per_s", "peak_memory_gb", "time"}


@pytest.mark.parametrize("size", [1, 2])
def test_the_largest_batch_is_like_those_that_are_read(tiny_world: Path, size: int) -> None:
    recipe = tiny_recipe(training={"micro_batch_size": size, "global_batch_size": size})
    assert_largest_is_like_samples(ClipDataset(tiny_inputs(tiny_world, recipe).dataset, recipe))


def test_the_size_with_the_most_pixels_counts(tiny_world: Path) -> None:
    clips = ClipDataset(tiny_inputs(tiny_world, tiny_recipe()).dataset, tiny_recipe())
    assert largest_batch(clips, CPU)["video"].shape == (1, 3, 17, 96, 160)
    # 128x128 has more pixels than 160x96.
    clips.train_clips += [clip for clip in clips.held_out_clips if clip.width == clip.height]
    assert largest_batch(clips, CPU)["video"].shape == (1, 3, 17, 128, 128)


@pytest.mark.usefixtures("own_process_group")
def test_it_goes_through_the_task_as_any_other(tiny_world: Path) -> None:
    task = build_task(tiny_recipe(), tiny_inputs(tiny_world, tiny_recipe()), build_mesh("cpu"), CPU)
    assert task.start_checks == {
        "step_zero_parity": "a loaded branch at control weight 0 leaves the base's output bit-equal"
    }
    prepared = task.prepare(task.largest_batch())
    assert described(prepared)["latents"] == ((1, 16, 3, 12, 20), torch.float32)
    output = task.training_loss(prepared)
    assert output.num_tokens == 3 * 6 * 10
    assert torch.isfinite(output.loss)


def results(run_dir: Path) -> dict[str, Any]:
    attempt = run_dir / read_json(run_dir / "manifest.json")["attempt"]
    rows = read_rows(attempt / "metrics.jsonl")
    return {
        "weights": read_json(run_dir / "manifest.json")["weights_sha256"],
        "steps": [{key: value for key, value in row.items() if key not in TIMES} for row in rows],
        "held_out": read_rows(attempt / "validation.jsonl"),
    }


@pytest.mark.usefixtures("own_process_group")
def test_a_run_that_was_measured_before_equals_one_that_was_not(
    tiny_world: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = trained_run / read_json(trained_run / "manifest.json")["attempt"]
    record = read_json(attempt / "preflight.json")
    assert record["largest_batch"]["shapes"]["video"] == [1, 3, 17, 96, 160]
    assert record["checks"].keys() == {"step_zero_parity"}
    monkeypatch.setattr(Preflight, "run", lambda *_arguments: None)
    code = run_training(
        tiny_recipe(),
        tmp_path / "tiny_run",
        build_task,
        has_overrides=False,
        manifest=None,
        preflight_only=False,
        datasets=tiny_world / "datasets",
        checkpoints=tiny_world / "checkpoints",
    )
    assert code == 0
    assert not list(tmp_path.rglob("preflight.json"))
    assert results(tmp_path / "tiny_run") == results(trained_run)


RANK_PROGRAM = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tiny_world import tiny_recipe
from worldtune.training.preflight import Preflight
from worldtune.training.run import run_training
from worldtune.transfer1.task import build_task

root, run_dir, measured_before = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "measured"
if not measured_before:
    Preflight.run = lambda *_arguments: None
run_training(
    tiny_recipe(parallel={"context": 2, "shard": "both"}),
    run_dir,
    build_task,
    has_overrides=False,
    manifest=None,
    preflight_only=False,
    datasets=root / "datasets",
    checkpoints=root / "checkpoints",
)
"""


@pytest.mark.slow
def test_sharded_weights_are_left_as_they_are(tiny_world: Path, tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(RANK_PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    for name in ("measured", "not_measured"):
        arguments = [str(Path(__file__).parent), str(tiny_world), str(tmp_path / name / "run"), name]
        subprocess.run([*command, *arguments], check=True, timeout=300)
    (record,) = (tmp_path / "measured").rglob("preflight.json")
    assert read_json(record)["parallel"]["shard"] == "both"
    assert not list((tmp_path / "not_measured").rglob("preflight.json"))
    assert results(tmp_path / "measured/run") == results(tmp_path / "not_measured/run")
