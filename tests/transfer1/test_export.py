import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from full_disk import error_of, files_of, leave_free, refuse_writes, remount
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_world import tiny_inputs, tiny_recipe

import worldtune.training.lease as lease_module
from worldtune.checkpoint.splitting import split_checkpoint
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, sha256_file, write_json
from worldtune.recipe.network import ControlNetworkConfig
from worldtune.recipe.schema import Sampling
from worldtune.training.errors import TemporaryError
from worldtune.training.lease import Lease
from worldtune.training.manifest import trained_fingerprint
from worldtune.training.run import run_training
from worldtune.training.state import read_weights
from worldtune.transfer1 import drawing, export
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.drawing import draw_run
from worldtune.transfer1.export import (
    export_run,
    load_trained_run,
    read_exported,
    take_export,
    verify_export,
    write_weights,
)
from worldtune.transfer1.load_report import write_load_report
from worldtune.transfer1.loading import load_logvar, load_network
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.task import build_task


@pytest.fixture(scope="module")
def exported(trained_run: Path) -> Path:
    root = trained_run.parents[1]
    export_run(trained_run, checkpoints_dir=root / "checkpoints", datasets_dir=root / "datasets")
    return trained_run / "model"


def logvar(model: Path) -> dict[str, torch.Tensor]:
    state = torch.load(model / "edge_control.pt", weights_only=True)
    return {name: tensor for name, tensor in state.items() if name.startswith("logvar.")}


def test_files_are_links_of_the_attempts_own(exported: Path, trained_run: Path) -> None:
    attempt = trained_run / read_json(trained_run / "manifest.json")["attempt"]
    names = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert names == {
        "control.safetensors",
        "raw/control.safetensors",
        "edge_control.pt",
        "config.json",
        "provenance.json",
        "README.md",
    }
    for name in names:
        assert os.stat(exported / name).st_ino == os.stat(attempt / "export" / name).st_ino


def test_weights_are_the_checkpoints(exported: Path, trained_run: Path) -> None:
    run = load_trained_run(trained_run)
    averaged, raw = read_weights(run.checkpoint, 0.1), read_weights(run.checkpoint, None)
    found = load_file(exported / "control.safetensors")
    assert set(found) == {f"net.{name}" for name in averaged} | {"net.pos_embedder.seq"}
    for name, tensor in averaged.items():
        assert torch.equal(found[f"net.{name}"], tensor)
    assert any(not torch.equal(averaged[name], raw[name]) for name in raw)
    raw_found = load_file(exported / "raw" / "control.safetensors")
    assert all(torch.equal(raw_found[f"net.{name}"], tensor) for name, tensor in raw.items())
    with safe_open(exported / "control.safetensors", framework="pt") as file:
        header = file.metadata()
    assert header["step"] == "2"
    assert header["weights"] == "ema.0.1"
    assert header["base_sha256"] == run.manifest["checkpoints"]["base"]["sha256"]


def test_the_original_format_loads_strictly(exported: Path) -> None:
    state = torch.load(exported / "edge_control.pt", weights_only=True)
    assert {name.split(".")[0] for name in state} == {"net", "logvar"}
    config = read_json(exported / "config.json")["network"]
    control = ControlNetwork(ControlNetworkConfig(**config["control"]), config["rope_angles"])
    report = load_network(control, state)
    assert not report.missing
    assert not report.shape_changed
    load_logvar(LogVariance(), state, control=True)


def test_provenance_and_card_say_where_it_comes_from(exported: Path, trained_run: Path) -> None:
    provenance = read_json(exported / "provenance.json")
    manifest = read_json(trained_run / "manifest.json")
    assert provenance["identity"] == manifest["identity"]
    assert provenance["metrics"]["held_out_loss"] == manifest["held_out_loss"]
    assert provenance["verified"]["tensors_equal"] == len(load_file(exported / "control.safetensors"))
    assert provenance["packages"]["torch"]
    assert [link["rule"] for link in provenance["chain"]][-2:] == ["train", "export"]
    for name, sha256 in provenance["files"].items():
        assert sha256_file(exported / name) == sha256, name
    card = (exported / "README.md").read_text()
    assert manifest["dataset"]["digest"] in card
    assert "| 0.5 |" in card


def test_a_repeated_export_gives_the_same_weights_and_removes_strangers(exported: Path, trained_run: Path) -> None:
    before = {path.name: sha256_file(path) for path in exported.rglob("*.safetensors")}
    (exported / "old.safetensors").write_bytes(b"")
    (exported / ".snakemake_timestamp").write_bytes(b"")
    root = trained_run.parents[1]
    export_run(trained_run, checkpoints_dir=root / "checkpoints", datasets_dir=root / "datasets")
    assert {path.name: sha256_file(path) for path in exported.rglob("*.safetensors")} == before
    assert (exported / ".snakemake_timestamp").exists()
    (exported / ".snakemake_timestamp").unlink()


@pytest.mark.usefixtures("own_process_group")
def test_another_run_starts_from_an_export(exported: Path, trained_run: Path) -> None:
    root = trained_run.parents[1]
    checkpoints = root / "checkpoints"
    taken = checkpoints / "results/tiny_run/control.pt"
    take_export(trained_run, taken)
    assert taken.read_bytes() == (exported / "edge_control.pt").read_bytes()
    split_checkpoint(taken, taken.parent / "checkpoints_tp_1", 1)
    recipe = tiny_recipe(checkpoints={"init_from": "results/tiny_run", "control": ""})
    inputs = tiny_inputs(root, recipe)
    assert inputs.control is not None
    assert inputs.control.source_sha256 == sha256_file(taken)
    places = {"datasets": root / "datasets", "checkpoints": checkpoints}
    code = run_training(
        recipe,
        root / "results/second",
        build_task,
        has_overrides=False,
        manifest=None,
        preflight_only=False,
        **places,
    )
    assert code == 0
    first, second = (read_json(root / "results" / name / "manifest.json") for name in ("tiny_run", "second"))
    assert first["identity"] != second["identity"]
    # Training is a function of its start: what was measured before the first step is what the export gives.
    assert first["held_out_loss"]["first"] != second["held_out_loss"]["first"]
    assert second["checkpoints"]["control"]["path"] == "results/tiny_run/control.pt"


def test_an_export_that_is_not_the_runs_is_not_taken(exported: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "tiny_run"
    shutil.copytree(exported.parent, run_dir)
    weights = run_dir / "model/edge_control.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(WorldtuneError, match=r"edge_control\.pt is not the file that was exported"):
        take_export(run_dir, tmp_path / "control.pt")
    manifest = read_json(run_dir / "manifest.json")
    write_json(run_dir / "manifest.json", manifest | {"identity": "0" * 16})
    with pytest.raises(WorldtuneError, match="of another attempt"):
        take_export(run_dir, tmp_path / "control.pt")
    assert not (tmp_path / "control.pt").exists()


def test_weights_of_another_recipe_are_refused(exported: Path, trained_run: Path, tmp_path: Path) -> None:
    root = trained_run.parents[1]
    before = sha256_file(exported / "provenance.json")
    for expected in (trained_fingerprint(tiny_recipe(training={"seed": 6})), "0" * 12 + "-"):
        with pytest.raises(WorldtuneError, match=r"manifest\.json names weights of another recipe.*attempts/.*delete"):
            export_run(
                trained_run, checkpoints_dir=root / "checkpoints", datasets_dir=root / "datasets", expected=expected
            )
        with pytest.raises(WorldtuneError, match=r"provenance\.json names weights of another recipe"):
            draw(trained_run, tmp_path, expected=expected)
    assert sha256_file(exported / "provenance.json") == before
    # What changes no weights and no manifest is not compared.
    same = trained_fingerprint(tiny_recipe(logging={"console_every": 7}, sampling={"seed": 9}))
    assert load_trained_run(trained_run, expected=same).recipe.training.seed == 5


def copied(trained_run: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of the finished run whose manifest says something else."""
    run = tmp_path / trained_run.name
    shutil.copytree(trained_run, run)
    write_json(run / "manifest.json", {**read_json(run / "manifest.json"), **changes})
    return run


def test_the_newest_starts_recipe_is_not_the_manifests(trained_run: Path, tmp_path: Path) -> None:
    run = copied(trained_run, tmp_path)
    (config,) = run.glob("attempts/*/config.yaml")
    config.write_text("training: {max_iter: 99}")
    assert load_trained_run(run).recipe == load_trained_run(trained_run).recipe
    with pytest.raises(WorldtuneError, match=r"manifest\.json holds no recipe.*[\s\S]*Delete it"):
        load_trained_run(copied(trained_run, tmp_path / "old", recipe={}))


def test_a_base_of_other_content_gives_no_uncertainty_head(trained_run: Path, tmp_path: Path) -> None:
    root = trained_run.parents[1]
    checkpoints = read_json(trained_run / "manifest.json")["checkpoints"]
    run = copied(trained_run, tmp_path, checkpoints={**checkpoints, "base": {"path": "x.pt", "sha256": "0" * 64}})
    with pytest.raises(WorldtuneError, match=r"base_model\.split\.json was made from .* trained on 0000"):
        export_run(run, checkpoints_dir=root / "checkpoints", datasets_dir=root / "datasets")


def test_the_summary_of_another_dataset_is_left_out(
    exported: Path, trained_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = trained_run.parents[1]
    assert read_json(exported / "provenance.json")["dataset_summary"]["num_clips"] == 6
    run = copied(trained_run, tmp_path, dataset={"name": "tiny", "digest": "0" * 64})
    export_run(run, checkpoints_dir=root / "checkpoints", datasets_dir=root / "datasets")
    assert read_json(run / "model" / "provenance.json")["dataset_summary"] == {}
    assert "the run was trained on 0000" in caplog.text


def test_two_exports_of_a_run_wait_for_each_other(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trained_run.parents[1]
    run = copied(trained_run, tmp_path)
    shutil.rmtree(run / "model", ignore_errors=True)
    (attempt,) = run.glob("attempts/*")
    shutil.rmtree(attempt / "export", ignore_errors=True)
    for name in ("export.partial", "export.0000.partial"):
        (attempt / name / "raw").mkdir(parents=True)
    waits: list[float] = []
    other = Lease(run / ".export")
    assert other.try_acquire() is None

    def wait(seconds: float) -> None:
        assert not (run / "model").exists()
        assert (attempt / "export.0000.partial").exists()
        waits.append(seconds)
        if len(waits) == 3:
            other.release()

    monkeypatch.setattr(lease_module, "time", SimpleNamespace(sleep=wait, time=time.time, monotonic=time.monotonic))
    export_run(run, checkpoints_dir=root / "checkpoints", datasets_dir=root / "datasets")
    assert len(waits) == 3
    assert (run / "model" / "provenance.json").exists()
    # What a killed process left behind is gone, and so is the lease.
    assert list(attempt.glob("*.partial")) == []
    assert not (run / ".export" / "lease.json").exists()


def test_an_export_that_lost_its_lease_publishes_nothing(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trained_run.parents[1]
    run = copied(trained_run, tmp_path)
    (attempt,) = run.glob("attempts/*")
    for folder in (run / "model", attempt / "export"):
        folder.mkdir(exist_ok=True)
        (folder / "kept").touch()

    def lose(*_args: Any, **_kwargs: Any) -> None:
        path = run / ".export" / "lease.json"
        write_json(path, {**read_json(path), "token": "another"})

    monkeypatch.setattr(export, "_build", lose)
    with pytest.raises(TemporaryError, match="not by this process any more"):
        export_run(run, checkpoints_dir=root / "checkpoints", datasets_dir=root / "datasets")
    assert (run / "model" / "kept").exists()
    assert (attempt / "export" / "kept").exists()


def test_a_misspelt_run_gets_no_folder(tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"manifest\.json does not exist"):
        export_run(tmp_path / "typo", checkpoints_dir=tmp_path, datasets_dir=tmp_path)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("name", ["control.safetensors", "raw/control.safetensors", "edge_control.pt"])
def test_verification_finds_a_flipped_bit(exported: Path, trained_run: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    head = logvar(exported)
    verify_export(copy, load_trained_run(trained_run), head)
    content = bytearray((copy / name).read_bytes())
    # The middle of a file is inside of some tensor.
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(WorldtuneError, match=r"The export is wrong: .*copy.* differs|cannot be read|is damaged"):
        verify_export(copy, load_trained_run(trained_run), head)


def test_verification_compares_outputs_too(exported: Path, trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([{"block0": torch.zeros(2)}, {"block0": torch.tensor([0.0, -0.0])}])
    monkeypatch.setattr(export, "_outputs", lambda recipe, weights: next(calls))
    with pytest.raises(WorldtuneError, match="outputs of a network filled from"):
        verify_export(exported, load_trained_run(trained_run), logvar(exported))


def test_large_models_become_several_files(tmp_path: Path) -> None:
    tensors = {f"net.{index}": torch.full((256,), float(index)) for index in range(5)}
    write_weights(tmp_path, tensors, {"format": "pt"}, max_file_bytes=2048)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        *(f"control-0000{number}-of-00003.safetensors" for number in (1, 2, 3)),
        "control.safetensors.index.json",
    ]
    assert json.loads((tmp_path / names[-1]).read_text())["metadata"]["total_size"] == 5 * 1024
    found = read_exported(tmp_path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    # safetensors makes files that only their owner may read.
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def draw(
    run: Path, output: Path, *, root: Path | None = None, expected: str | None = None, **changes: Any
) -> dict[str, Any]:
    root = root or run.parents[1]
    draw_run(
        run,
        output,
        sampling=Sampling(num_steps=2, num_clips=2, **changes),
        device=torch.device("cpu"),
        num_given_frames=0,
        checkpoints_dir=root / "checkpoints",
        datasets_dir=root / "datasets",
        expected=expected,
    )
    return read_json(output / "samples.json")


@pytest.mark.usefixtures("exported", "own_process_group")
def test_samples_are_drawn_once_and_repeatably(trained_run: Path, tmp_path: Path) -> None:
    first = draw(trained_run, tmp_path / "a")
    assert [clip["clip_id"] for clip in first["clips"]] == ["3" * 16, "4" * 16]
    assert first["clips"][0]["caption"] == "Blocks number 3."
    grids = [clip["grid"] for clip in first["clips"]]
    files = [tmp_path / "a" / name for clip in first["clips"] for name in (clip["grid"], clip["video"])]
    times = [file.stat().st_mtime_ns for file in files]
    draw(trained_run, tmp_path / "a")
    assert [file.stat().st_mtime_ns for file in files] == times
    draw(trained_run, tmp_path / "b")
    for name in grids:
        assert sha256_file(tmp_path / "a" / name) == sha256_file(tmp_path / "b" / name)
    before = sha256_file(tmp_path / "a" / grids[0])
    other = draw(trained_run, tmp_path / "a", seed=2)
    assert other["seed"] == 2
    assert sha256_file(tmp_path / "a" / grids[0]) != before


@pytest.mark.usefixtures("exported", "own_process_group")
def test_samples_of_other_weights_or_another_version_are_drawn_again(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, run = tmp_path / "samples", copied(trained_run, tmp_path)
    root = trained_run.parents[1]
    first = draw(run, output, root=root)
    grid = output / first["clips"][0]["grid"]

    def is_drawn_again() -> bool:
        before = grid.stat().st_mtime_ns
        draw(run, output, root=root)
        return grid.stat().st_mtime_ns != before

    assert not is_drawn_again()
    path = run / "model" / "provenance.json"
    provenance = read_json(path)
    provenance["files"]["control.safetensors"] = "0" * 64
    write_json(path, provenance)
    assert is_drawn_again()
    assert not is_drawn_again()
    monkeypatch.setattr(drawing, "stage_version", lambda _module: 99)
    assert is_drawn_again()


@pytest.mark.parametrize("left_bytes", [0, 16_000, 64_000])
def test_export_on_a_full_disk_leaves_the_older_one(
    exported: Path, trained_run: Path, full_disk: Path, left_bytes: int
) -> None:
    root = trained_run.parents[1]
    remount(full_disk, "size=64m")
    run = copied(trained_run, full_disk)
    assert exported.name == "model"
    before = files_of(run)
    leave_free(full_disk, left_bytes)
    options = {"checkpoints_dir": root / "checkpoints", "datasets_dir": root / "datasets"}
    message = error_of(lambda: export_run(run, **options))
    assert message.startswith(f"error: {run}/")
    assert "No space left on device. Free space" in message
    assert files_of(run) == before
    remount(full_disk, "size=64m")
    export_run(run, **options)
    assert read_json(run / "model" / "provenance.json")["verified"]


@pytest.mark.parametrize("pattern", [r"/\.provenance\.", r"/\.config\.", r"/\.README\."])
def test_each_text_of_an_export_on_a_full_disk(
    exported: Path, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    root = trained_run.parents[1]
    run = copied(trained_run, tmp_path)
    before = files_of(run)
    met = refuse_writes(monkeypatch, pattern)
    options = {"checkpoints_dir": root / "checkpoints", "datasets_dir": root / "datasets"}
    message = error_of(lambda: export_run(run, **options))
    assert met
    assert "No space left on device. Free space" in message
    assert files_of(run) == before
    assert exported.is_dir()


@pytest.mark.usefixtures("exported", "own_process_group")
@pytest.mark.parametrize("suffix", ["mp4", "png", "json"])
def test_samples_on_a_full_disk(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    output = tmp_path / "samples"
    with monkeypatch.context() as patched:
        met = refuse_writes(patched, rf"/\.\w+\.\w+\.{suffix}$")
        message = error_of(lambda: draw(trained_run, output))
    assert met
    torch.distributed.destroy_process_group()
    name = "samples.json" if suffix == "json" else f"{'3' * 16}.{suffix}"
    assert message.startswith(f"error: {output / name}: No space left on device. Free space")
    assert not (output / name).exists()
    assert not (output / "samples.json").exists()
    assert not list(output.glob(".*"))
    assert len(draw(trained_run, output)["clips"]) == 2


def test_load_report_is_deterministic_and_fatal_where_something_is_off(tiny_world: Path, tmp_path: Path) -> None:
    checkpoints = tiny_world / "checkpoints"
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    for output in (first, second):
        write_load_report(tiny_recipe(), output, checkpoints_dir=checkpoints)
    assert first.read_bytes() == second.read_bytes()
    report = read_json(first)
    assert report["networks"]["control"]["missing"] == []
    network = tiny_recipe().network.model_dump()
    network["control"]["hint_channels"] = 24
    with pytest.raises(WorldtuneError, match=r"edge_control\.split\.json: .*x_embedder2\.proj\.1\.weight"):
        write_load_report(tiny_recipe(network=network), tmp_path / "c.json", checkpoints_dir=checkpoints)
    assert not (tmp_path / "c.json").exists()
    with pytest.raises(WorldtuneError, match=r"checkpoints_tp_4.*does not exist"):
        write_load_report(tiny_recipe(parallel={"tensor": 4}), tmp_path / "c.json", checkpoints_dir=checkpoints)


@pytest.mark.parametrize(
    ("stem", "name", "change", "message"),
    [
        ("base_model", "base_model.net.final_layer.linear.weight", "remove", "final_layer.linear.weight"),
        ("base_model", "base_model.net.final_layer.linear.weight", "cut", "final_layer.linear.weight"),
        ("edge_control", "net.final_layer.linear.weight", "remove", "final_layer.linear.weight"),
        ("edge_control", "net.final_layer.linear.weight", "cut", "final_layer.linear.weight"),
    ],
)
def test_a_checkpoint_with_a_missing_key_or_another_shape_stops_before_training(
    tiny_world: Path, tmp_path: Path, stem: str, name: str, change: str, message: str
) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(tiny_world / "checkpoints", checkpoints)
    source = checkpoints / "me" / "tiny" / f"{stem}.pt"
    state = torch.load(source, weights_only=True)
    tensor = state.pop(name)
    if change == "cut":
        state[name] = tensor[:-1].clone()
    torch.save(state, source)
    recipe = tiny_recipe()
    split_checkpoint(source, source.parent / f"checkpoints_tp_{recipe.parallel.tensor}", recipe.parallel.tensor)
    output = tmp_path / "report.json"
    error = error_of(lambda: write_load_report(recipe, output, checkpoints_dir=checkpoints))
    assert error.startswith("error: The checkpoints do not fit the recipe's networks:")
    assert f"{stem}.split.json" in error
    assert message in error
    assert "Check that network.size" in error
    shapes = f"{tuple(tensor[:-1].shape)} in the file, {tuple(tensor.shape)} in the network"
    assert (shapes in error) == (change == "cut")
    assert not output.exists()
