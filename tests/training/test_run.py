import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from full_disk import error_of, leave_free, refuse_writes, remount
from torch.distributed.device_mesh import DeviceMesh
from toy_job import Job
from trainer_toy import ToyTask, toy_recipe

import worldtune.training.attempt as attempt_module
from worldtune.common.errors import WorldtuneError
from worldtune.recipe.identity import fingerprint, values_that_affect
from worldtune.recipe.schema import Recipe
from worldtune.training.errors import TemporaryError
from worldtune.training.inputs import Inputs, find_inputs
from worldtune.training.metrics import append_rows, cut_rows, read_rows, replace_rows
from worldtune.training.signals import EXIT_STOPPED
from worldtune.training.state import complete_steps
from worldtune.training.task import Batch, LossOutput, ValidationRow


def test_records_of_a_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_JWT_TOKEN", "secret")
    monkeypatch.setenv("HOME_ADDRESS", "private")
    assert job(toy_recipe()) == 0
    (attempt,) = job.attempts()
    manifest = json.loads((job.folder / "manifest.json").read_text())
    assert manifest == json.loads((attempt / "manifest.json").read_text())
    assert manifest["attempt"] == f"attempts/{attempt.name}"
    assert (attempt / manifest["checkpoint"]).is_dir()
    assert (manifest["final_step"], manifest["skipped_steps"]) == (8, 0)
    assert manifest["recipe_fingerprint"] == fingerprint(values_that_affect(toy_recipe(), "weights", "outcome"))
    assert manifest["checkpoints"]["base"] == {"path": "toy/base.pt", "sha256": "b" * 64}
    assert manifest["held_out_loss"]["first"].keys() == {"1"}
    (start,) = yaml.safe_load((attempt / "launch_info.yaml").read_text())
    assert (start["world_size"], start["slurm_job_id"]) == (1, "12")
    (environment,) = yaml.safe_load((attempt / "job_env.yaml").read_text())
    assert environment["environment"]["SLURM_JOB_ID"] == "12"
    assert not {"SLURM_JWT_TOKEN", "HOME_ADDRESS"} & environment["environment"].keys()
    assert yaml.safe_load((attempt / "config.yaml").read_text())["training"]["seed"] == 5
    assert not (attempt / "lease.json").exists()


def test_finished_attempt_trains_nothing_and_a_longer_one_goes_on(job: Job) -> None:
    assert job(toy_recipe()) == 0
    first = json.loads((job.folder / "manifest.json").read_text())
    (job.folder / "manifest.json").unlink()
    assert job(toy_recipe()) == 0
    assert job.num_built == 1
    assert json.loads((job.folder / "manifest.json").read_text()) == first
    assert job(toy_recipe(training__max_iter=10)) == 0
    (attempt,) = job.attempts()
    assert [row["step"] for row in read_rows(attempt / "metrics.jsonl")] == list(range(1, 11))
    assert len(yaml.safe_load((attempt / "launch_info.yaml").read_text())) == 2
    assert (attempt / "config.0001.yaml").exists()
    with pytest.raises(WorldtuneError, match=r"beyond training\.max_iter = 9"):
        job(toy_recipe(training__max_iter=9))


def test_manifest_holds_the_recipe_that_it_was_written_for(job: Job) -> None:
    assert job(toy_recipe()) == 0
    assert json.loads((job.folder / "manifest.json").read_text())["recipe"] == toy_recipe().model_dump(mode="json")
    # Nothing is left to train under another layout, so no start is recorded.
    assert job(toy_recipe(parallel__sequence=False)) == 0
    assert job.num_built == 1
    manifest = json.loads((job.folder / "manifest.json").read_text())
    assert manifest["recipe"]["parallel"]["sequence"] is False
    # A start that trains on and is stopped belongs to no manifest yet.
    job.events = {"33": "SIGUSR1"}
    assert job(toy_recipe(training__max_iter=20)) == EXIT_STOPPED
    assert json.loads((job.folder / "manifest.json").read_text()) == manifest


def test_lowering_the_last_step_leaves_later_ones_out_of_the_manifest(job: Job) -> None:
    saving = {"every": 4, "keep_last": 3}
    assert job(toy_recipe(saving=saving)) == 0
    first = json.loads((job.folder / "manifest.json").read_text())
    job.events = {"36": "nan"}
    assert job(toy_recipe(saving=saving, training__max_iter=10)) == 0
    assert json.loads((job.folder / "manifest.json").read_text())["skipped_steps"] == 1
    assert job(toy_recipe(saving=saving)) == 0
    assert job.num_built == 2
    assert json.loads((job.folder / "manifest.json").read_text()) == first


def test_finished_attempt_is_measured_again_where_the_recipe_asks_for_more(job: Job) -> None:
    def run(**validation: Any) -> dict[str, Any]:
        assert job(toy_recipe(validation=validation)) == 0
        return dict(json.loads((job.folder / "manifest.json").read_text())["held_out_loss"])

    assert {when: list(means) for when, means in run().items()} == {"first": ["1"], "last": ["1"]}
    (attempt,) = job.attempts()
    before = (attempt / "metrics.jsonl").read_bytes()
    more = run(sigmas=[1.0, 2.0])
    assert job.num_built == 2
    assert (attempt / "metrics.jsonl").read_bytes() == before
    # At step 0 the new noise level was not measured.
    assert {when: list(means) for when, means in more.items()} == {"first": ["1"], "last": ["1", "2"]}
    wider = run(sigmas=[1.0, 2.0], max_clips=2)
    assert job.num_built == 3
    assert {when: list(means) for when, means in wider.items()} == {"last": ["1", "2"]}
    rows = [row for row in read_rows(attempt / "validation.jsonl") if row["step"] == 8]
    assert sorted((row["sigma"], row["clip_id"]) for row in rows) == [
        *((1.0, "clip0"), (1.0, "clip1"), (2.0, "clip0"), (2.0, "clip1")),
    ]
    assert run(sigmas=[1.0, 2.0]) == more
    assert job.num_built == 3


def test_overrides_have_their_own_attempt_and_leave_the_run_alone(job: Job, tmp_path: Path) -> None:
    assert job(toy_recipe(training__seed=6), has_overrides=True) == 0
    assert not (job.folder / "manifest.json").exists()
    assert (job.attempts()[0] / "manifest.json").exists()
    assert job(toy_recipe(), manifest=tmp_path / "declared.json") == 0
    assert len(job.attempts()) == 2
    assert (tmp_path / "declared.json").exists()


def test_failure_that_a_retry_cannot_mend(job: Job) -> None:
    recipe = toy_recipe(training__max_iter=40)
    job.events = {str(ordinal): "nan" for ordinal in range(8, 200)}
    with pytest.raises(WorldtuneError, match="20 steps in a row are not finite"):
        job(recipe)
    torch.distributed.destroy_process_group()
    (attempt,) = job.attempts()
    rows = read_rows(attempt / "metrics.jsonl")
    assert [row["grad_norm"] is None for row in rows] == [False] * 2 + [True] * 20
    with pytest.raises(WorldtuneError, match=r"retry cannot mend[\s\S]*delete"):
        job(recipe)
    assert job.num_built == 1
    job.events = {}
    # Another layout is the same attempt under other circumstances.
    again = toy_recipe(training__max_iter=40, training__micro_batch_size=1, training__gradient_accumulation=4)
    assert job(again) == 0
    assert job.attempts() == [attempt]
    assert (attempt / "fatal.0001.json").exists()
    assert not (attempt / "fatal.json").exists()


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_held_out_loss_that_is_not_finite_ends_the_attempt_with_its_name(
    job: Job, monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    rows = [ValidationRow(sigma=0.5, clip_id="clip0", control="own", loss=1.0)]
    rows.append(ValidationRow(sigma=2.0, clip_id="clip1", control="other", loss=loss))
    monkeypatch.setattr(ToyTask, "validate", lambda _task: iter([rows]))
    with pytest.raises(WorldtuneError, match=rf"is {loss} at step 0, .*clip1 at sigma = 2 with another clip's control"):
        job(toy_recipe())
    torch.distributed.destroy_process_group()
    (attempt,) = job.attempts()
    assert not (attempt / "validation.jsonl").exists()
    with pytest.raises(WorldtuneError, match="in a way that a retry cannot mend"):
        job(toy_recipe())


@pytest.mark.parametrize("write", [append_rows, lambda path, rows: replace_rows(path, rows, ["step"])])
def test_a_record_takes_no_number_that_json_lacks(
    tmp_path: Path, write: Callable[[Path, list[dict[str, Any]]], None]
) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, [{"step": 1, "loss": float("nan")}])
    assert not path.exists()


def test_a_git_that_does_not_answer_is_noted(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(command: list[str], **_options: Any) -> None:
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(attempt_module.subprocess, "run", too_slow)
    assert job(toy_recipe()) == 0
    assert json.loads((job.folder / "manifest.json").read_text())["git"] == {"commit": "not known"}


def test_holder_that_lost_its_lease_writes_nothing_more(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    training_loss = ToyTask.training_loss

    def take_the_lease_in_the_fifth_step(task: ToyTask, batch: Batch) -> LossOutput:
        if 16 in batch["ordinal"].tolist():
            path = job.attempts()[0] / "lease.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "token": "another", "host": "elsewhere"}))
        return training_loss(task, batch)

    monkeypatch.setattr(ToyTask, "training_loss", take_the_lease_in_the_fifth_step)
    with pytest.raises(TemporaryError, match="on elsewhere, not by this process any more"):
        job(toy_recipe())
    (attempt,) = job.attempts()
    assert [row["step"] for row in read_rows(attempt / "metrics.jsonl")] == [1, 2, 3, 4]
    assert json.loads((attempt / "lease.json").read_text())["host"] == "elsewhere"
    assert not (attempt / "fatal.json").exists()
    assert not (job.folder / "manifest.json").exists()


def test_a_disk_that_fills_up_during_training(job: Job, full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remount(full_disk, "size=4m")
    job.folder = full_disk / "toy_run"
    training_loss = ToyTask.training_loss

    def fill_the_disk_in_the_fifth_step(task: ToyTask, batch: Batch) -> LossOutput:
        if 16 in batch["ordinal"].tolist():
            # The save of step 3 may be in flight, and writes on as the disk gets its size.
            (attempt,) = job.attempts()
            while complete_steps(attempt / "checkpoints") != [3]:
                time.sleep(0.01)
            leave_free(full_disk, 0)
        return training_loss(task, batch)

    with monkeypatch.context() as patched:
        patched.setattr(ToyTask, "training_loss", fill_the_disk_in_the_fifth_step)
        message = error_of(lambda: job(toy_recipe()))
    assert message.startswith(f"error: {job.folder}/attempts/")
    assert "GiB are free" in message or "No space left on device" in message
    torch.distributed.destroy_process_group()
    (attempt,) = job.attempts()
    assert complete_steps(attempt / "checkpoints") == [3]
    assert not list(attempt.rglob("*.partial"))
    assert not (attempt / "fatal.json").exists()
    assert not (attempt / "lease.json").exists()
    assert not (job.folder / "manifest.json").exists()
    remount(full_disk, "size=4m")
    assert job(toy_recipe()) == 0
    assert [row["step"] for row in read_rows(attempt / "metrics.jsonl")] == list(range(1, 9))


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        (r"/\.config\.", "/attempts/{attempt}/config.yaml"),
        (r"/\.job_env\.", "/attempts/{attempt}/job_env.yaml"),
        (r"/\.launch_info\.", "/attempts/{attempt}/launch_info.yaml"),
        (r"/\.lease\.", "/attempts/{attempt}/lease.json"),
        (r"/\.validation\..*jsonl", "/attempts/{attempt}/validation.jsonl"),
        (r"/\.metrics\..*parquet", "/attempts/{attempt}/metrics.parquet"),
        (r"attempts/\w+/\.manifest\.", "/attempts/{attempt}/manifest.json"),
        (r"toy_run/\.manifest\.", "/manifest.json"),
    ],
)
def test_each_record_of_a_run_on_a_full_disk(
    job: Job, monkeypatch: pytest.MonkeyPatch, pattern: str, named: str
) -> None:
    with monkeypatch.context() as patched:
        met = refuse_writes(patched, pattern)
        message = error_of(lambda: job(toy_recipe()))
    assert met
    torch.distributed.destroy_process_group()
    (attempt,) = job.attempts()
    where = f"{job.folder}{named.format(attempt=attempt.name)}"
    assert message.startswith(f"error: {where}: No space left on device. Free space")
    assert not Path(where).exists()
    assert not (job.folder / "manifest.json").exists()
    left = {path.name for path in job.folder.rglob(".*")} - {".lease.json.lock", ".metadata"}
    assert not left
    assert not (attempt / "fatal.json").exists()
    assert job(toy_recipe()) == 0
    (start, *_) = yaml.safe_load((attempt / "launch_info.yaml").read_text())
    assert start["world_size"] == 1


def test_metrics_on_a_full_disk_lose_one_row_at_most(full_disk: Path) -> None:
    path = full_disk / "metrics.jsonl"
    rows = [{"step": step, "loss": 0.5, "text": "x" * 1000} for step in range(1, 6)]
    append_rows(path, rows[:2])
    leave_free(full_disk, 0)
    message = error_of(lambda: append_rows(path, rows[2:]))
    assert message.startswith(f"error: {path}: No space left on device. Free space")
    # The row that was torn is not read, and the ones before it are whole.
    assert read_rows(path) == rows[: len(read_rows(path))]
    assert len(read_rows(path)) >= 2
    remount(full_disk, "size=200k")
    cut_rows(path, 2)
    append_rows(path, rows[2:])
    assert read_rows(path) == rows


def test_single_bad_batch_is_skipped(job: Job) -> None:
    job.events = {"9": "nan"}
    assert job(toy_recipe()) == 0
    assert json.loads((job.folder / "manifest.json").read_text())["skipped_steps"] == 1


def test_a_first_loss_out_of_its_band_is_fatal_until_the_band_is_another(job: Job) -> None:
    with pytest.raises(WorldtuneError, match="edm_loss of the first step is"):
        job(toy_recipe(health__first_loss_max=0.2))
    torch.distributed.destroy_process_group()
    (attempt,) = job.attempts()
    assert "health.first_loss_max" in json.loads((attempt / "fatal.json").read_text())["message"]
    with pytest.raises(WorldtuneError, match="in a way that a retry cannot mend"):
        job(toy_recipe(health__first_loss_max=0.2))
    assert job.num_built == 1
    assert job(toy_recipe()) == 0
    assert job.attempts() == [attempt]


def test_tables_are_written_at_a_stop_and_at_the_end(job: Job) -> None:
    job.events = {"9": "SIGUSR1"}
    assert job(toy_recipe()) == EXIT_STOPPED
    (attempt,) = job.attempts()
    assert pd.read_parquet(attempt / "metrics.parquet")["step"].tolist() == [1, 2, 3]
    assert job(toy_recipe()) == 0
    metrics = pd.read_parquet(attempt / "metrics.parquet")
    assert metrics["step"].tolist() == list(range(1, 9))
    squares = metrics.filter(like="grad_norm_by_group/").pow(2).sum(axis=1)
    assert squares.tolist() == pytest.approx(metrics["grad_norm"].pow(2).tolist(), rel=1e-5)
    assert pd.read_parquet(attempt / "validation.parquet")["step"].tolist() == [0, 4, 8]


def test_stop_file(job: Job) -> None:
    job.events = {"9": "SIGUSR1"}
    assert job(toy_recipe()) == EXIT_STOPPED
    (attempt,) = job.attempts()
    (attempt / "stop").touch()
    assert job(toy_recipe()) == EXIT_STOPPED
    assert job.num_built == 1
    (attempt / "stop").unlink()
    assert job(toy_recipe()) == 0
    assert len(read_rows(attempt / "metrics.jsonl")) == 8


def test_a_signal_while_the_model_is_built_leaves_no_time_for_measurements(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = job.build

    def signalled_build(recipe: Recipe, inputs: Inputs, mesh: DeviceMesh, device: torch.device) -> ToyTask:
        signal.raise_signal(signal.SIGTERM)
        return build(recipe, inputs, mesh, device)

    monkeypatch.setattr(job, "build", signalled_build)
    assert job(toy_recipe()) == EXIT_STOPPED
    (attempt,) = job.attempts()
    assert not (attempt / "validation.jsonl").exists()
    assert not (attempt / "metrics.jsonl").exists()


def test_a_stop_waits_for_no_measurement(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    validate, measured = ToyTask.validate, []

    def signalled_validate(task: ToyTask) -> Iterator[Sequence[ValidationRow]]:
        for rows in validate(task):
            measured.append(rows[0].clip_id)
            if len(measured) == 3:
                signal.raise_signal(signal.SIGTERM)
            yield rows

    monkeypatch.setattr(ToyTask, "validate", signalled_validate)
    # Steps 3 and 6 are saved, and the measurements of steps 0 and 4 are due.
    recipe = toy_recipe(validation__max_clips=2)
    assert job(recipe) == EXIT_STOPPED
    (attempt,) = job.attempts()
    assert measured == ["clip0", "clip1", "clip0"]
    assert len(read_rows(attempt / "metrics.jsonl")) == 4
    assert 4 in complete_steps(attempt / "checkpoints")
    assert {row["step"] for row in read_rows(attempt / "validation.jsonl")} == {0}
    assert job(recipe) == 0
    assert [row["step"] for row in read_rows(attempt / "metrics.jsonl")] == list(range(1, 9))
    found = [(row["step"], row["clip_id"]) for row in read_rows(attempt / "validation.jsonl")]
    assert found == [(step, clip_id) for step in (0, 4, 8) for clip_id in ("clip0", "clip1")]


def test_wandb_run_has_the_name_of_the_attempt(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    recipe = toy_recipe(logging__wandb="offline", training__max_iter=2, previews__every=2)
    assert job(recipe) == 0
    assert job(toy_recipe(logging__wandb="offline", training__max_iter=3)) == 0
    (attempt,) = job.attempts()
    runs = list((attempt / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    # Of two that begin in one second, W&B gives the second a number.
    assert all(f"-{attempt.name}" in run.name for run in runs)
    videos = sorted(path.name for path in (attempt / "wandb").glob("offline-run-*/files/media/videos/previews/*.mp4"))
    assert [name.split("_")[0] for name in videos] == ["clip0", "clip0", "clip1", "clip1"]


def test_wrong_number_of_processes_is_named(job: Job) -> None:
    with pytest.raises(WorldtuneError, match=r"needs 8 processes .*--nproc_per_node=8"):
        job(toy_recipe(parallel__tensor=8))


def test_missing_inputs_name_their_target(tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"snakemake .*datasets/toy/dataset.json"):
        find_inputs(toy_recipe(), datasets=tmp_path / "datasets", checkpoints=tmp_path)


LAUNCH = "src/scripts/launch.sh"
PRINT_ARGUMENTS = "#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n"


def launch(tmp_path: Path, *arguments: str, **environment: str) -> list[str]:
    """Run launch.sh with programs that print their arguments in the place of python, srun and scontrol."""
    for name, text in (
        ("python", PRINT_ARGUMENTS),
        ("srun", PRINT_ARGUMENTS),
        ("scontrol", "#!/usr/bin/env bash\nprintf 'node1\\nnode2\\n'\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    result = subprocess.run(
        ["bash", LAUNCH, "--python", str(tmp_path / "python"), *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment},
    )
    return result.stdout.splitlines()


def test_launch_on_one_node(tmp_path: Path) -> None:
    found = launch(tmp_path, "--nodes", "1", "--processes-per-node", "8", "train.py", "a recipe", "--", "a.b=c d")
    assert found[:3] == ["src/scripts/launch.py", "--nproc_per_node=8", "--max-restarts=0"]
    assert found[-5:] == ["--standalone", "train.py", "a recipe", "--", "a.b=c d"]


def test_launch_on_two_nodes(tmp_path: Path) -> None:
    options = ("--nodes", "2", "--processes-per-node", "8")
    outside = launch(tmp_path, "--gres", "gpu:8", *options, "train.py", "recipe", "--dryrun")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--gres=gpu:8"} <= set(outside)
    assert outside[-3:] == ["train.py", "recipe", "--dryrun"]
    inside = launch(
        tmp_path,
        *outside[outside.index("--inside") :],
        SLURM_JOB_ID="30007",
        SLURM_STEP_ID="1",
        SLURM_NODEID="1",
        SLURM_JOB_NODELIST="node[1-2]",
    )
    assert {"--nnodes=2", "--node-rank=1", "--rdzv-id=30007.1", "--rdzv-endpoint=node1:20007"} <= set(inside)
    assert inside[-3:] == ["train.py", "recipe", "--dryrun"]


def test_launch_refuses_unknown_options(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        launch(tmp_path, "--node", "2", "train.py")
