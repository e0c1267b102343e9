"""What runs again after a change, asserted from the jobs that ran."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from workspace import Workspace

from worldtune.common.files import sha256_file, write_json
from worldtune.dataset.clips import clip_id, shard_of
from worldtune.dataset.scenes import scene_names
from worldtune.demo.scenes import render_scene
from worldtune.media.video import write_video

NUM_SHARDS = 3
TRAIN = ("export", "report", "train")
TRAIN_ANEW = (*TRAIN, "training_values")
"""Where the recipe's values are others."""
CONFIG = f"""
runs: [tiny]
datasets:
  clips:
    kind: folder
    path: clips
    num_shards: {NUM_SHARDS}
    held_out_fraction: 0.3
    min_clips: 4
    min_frames: 17
    controls: [edge]
    text_encoder: worldtune/demo-t5
    text_max_tokens: 64
cluster:
  partitions: {{cpu: null, gpu: null, network: null}}
"""
RECIPE = """
extends = "demo_edge_posttrain"

[data]
dataset = "clips"

[optimizer]
learning_rate = 1e-3

[ema]
rates = [0.1]

[control.edge]
threshold_low_max = 99

[training]
max_iter = 2

[parallel]
tensor = 1

[validation]
sigmas = [1.0]
max_clips = 2

[sampling]
num_steps = 2
num_clips = 1

[previews]
num_steps = 2
num_clips = 1

[logging]
wandb = "disabled"
"""


def write_clip(folder: Path, name: str, seed: int, caption: str | None = None) -> None:
    scene = render_scene(scene_names(1)[0], seed=seed, num_frames=17, width=160, height=96, fps=24)
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / f"{name}.mp4", scene.frames, 24)
    (folder / f"{name}.txt").write_text(caption or scene.caption)


class Runs:
    """One run of the recipe `tiny`, again and again."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.root = workspace.root
        self.manifest_path = self.root / "results/tiny/manifest.json"

    def run(self) -> tuple[str, ...]:
        return self.workspace.snakemake("results/tiny/model", "results/tiny/report.html").finished

    @property
    def attempt(self) -> Path:
        return self.root / "results/tiny" / json.loads(self.manifest_path.read_text())["attempt"]

    @property
    def attempts(self) -> int:
        return len([path for path in (self.root / "results/tiny/attempts").iterdir() if path.is_dir()])

    @property
    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in (self.attempt / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    workspace = Workspace(tmp_path_factory.mktemp("reruns"))
    workspace.shorten_base_training()
    (workspace.root / "config/config.yaml").write_text(CONFIG)
    (workspace.root / "config/recipes/tiny.toml").write_text(RECIPE)
    for number, name in enumerate(scene_names(6)):
        write_clip(workspace.root / "clips", name, seed=100 + number)
    return Runs(workspace)


def by_shard(stage: str, shards: list[str] | None = None) -> set[str]:
    return {f"{stage}[{shard}]" for shard in shards or [f"{number:04d}" for number in range(NUM_SHARDS)]}


@pytest.mark.slow
def test_only_what_a_change_touches_runs_again(runs: Runs) -> None:
    edit: Callable[[str, dict[str, str]], None] = runs.workspace.edit
    recipe, config = "config/recipes/tiny.toml", "config/config.yaml"
    name = scene_names(6)[0]
    shard = shard_of(f"{name}.mp4", NUM_SHARDS)

    everything = set(runs.run())
    assert everything == {
        "make_demo_checkpoints",
        "split_checkpoint[base_model]",
        "split_checkpoint[edge_control]",
        "estimate",
        "load_report",
        "training_values",
        "dataset_report",
        "validate",
        *(label for stage in ("ingest", "captions", "t5", "controls") for label in by_shard(stage)),
        *TRAIN,
    }
    first = runs.attempt
    assert runs.run() == ()

    edit(recipe, {"learning_rate = 1e-3": "learning_rate = 2e-3"})
    assert set(runs.run()) == set(TRAIN_ANEW)
    assert (runs.attempts, runs.steps) == (2, [1, 2])

    edit(recipe, {"learning_rate = 2e-3": "learning_rate = 1e-3"})
    before = (first / "metrics.jsonl").read_bytes()
    assert set(runs.run()) == set(TRAIN_ANEW)
    assert (runs.attempts, runs.attempt) == (2, first)
    assert (first / "metrics.jsonl").read_bytes() == before

    edit(recipe, {"rates = [0.1]": "rates = [0.05]"})
    assert set(runs.run()) == set(TRAIN_ANEW)
    assert runs.attempts == 3

    edit(recipe, {"rates = [0.05]": "rates = [0.1]", "threshold_low_max = 99": "threshold_low_max = 90"})
    assert set(runs.run()) == set(TRAIN_ANEW)
    assert runs.attempts == 4

    edit(recipe, {"threshold_low_max = 90": "threshold_low_max = 99", "max_iter = 2": "max_iter = 3"})
    assert set(runs.run()) == set(TRAIN_ANEW)
    assert (runs.attempts, runs.attempt, runs.steps) == (4, first, [1, 2, 3])

    edit(recipe, {"tensor = 1": "tensor = 2"})
    before = (first / "metrics.jsonl").read_bytes()
    assert set(runs.run()) == {
        "split_checkpoint[base_model]",
        "split_checkpoint[edge_control]",
        "estimate",
        "load_report",
        *TRAIN_ANEW,
    }
    assert (runs.attempts, runs.attempt) == (4, first)
    assert (first / "metrics.jsonl").read_bytes() == before

    edit(recipe, {"tensor = 2": "tensor = 1", 'wandb = "disabled"': 'wandb = "offline"'})
    assert set(runs.run()) == {"estimate", "load_report", *TRAIN_ANEW}
    edit(recipe, {'wandb = "offline"': 'wandb = "disabled"', "[ema]": "# a comment\n[ema]"})
    edit(config, {"cpu: null, gpu: null": "cpu: short, gpu: h100"})
    module = runs.root / "src/worldtune/dataset/captions.py"
    module.write_text("# A comment.\n" + module.read_text().replace('"""', '"""Other words. ', 1))
    assert runs.run() == ()

    base = runs.root / "checkpoints/worldtune/demo-transfer1/base_model.pt"
    state = torch.load(base, weights_only=True)
    state["base_model.net.final_layer.linear.weight"] *= 1.01
    torch.save(state, base)
    assert set(runs.run()) == {"split_checkpoint[base_model]", "load_report", *TRAIN}
    assert runs.attempts == 5

    (runs.root / "clips" / f"{name}.txt").write_text("A new caption.")
    assert set(runs.run()) == {f"captions[{shard}]", f"t5[{shard}]", "validate", "dataset_report", *TRAIN}
    assert runs.attempts == 6

    write_clip(runs.root / "clips", name, seed=7, caption="A new caption.")
    assert set(runs.run()) == {f"ingest[{shard}]", f"controls[{shard}]", "validate", "dataset_report", *TRAIN}
    assert runs.attempts == 7

    write_clip(runs.root / "clips", "added", seed=8)
    added = shard_of("added.mp4", NUM_SHARDS)
    assert set(runs.run()) == {
        *(f"{stage}[{added}]" for stage in ("ingest", "captions", "t5", "controls")),
        "validate",
        "dataset_report",
        *TRAIN,
    }
    assert runs.attempts == 8

    other = runs.root / "checkpoints/mine/other-t5"
    shutil.copytree(runs.root / "checkpoints/worldtune/demo-t5", other)
    (other / "files.json").unlink()
    change_encoder(other)
    write_json(other / "files.json", {path.name: sha256_file(path) for path in sorted(other.iterdir())})
    edit(config, {"worldtune/demo-t5": "mine/other-t5"})
    assert set(runs.run()) == {*by_shard("t5"), "validate", "dataset_report", *TRAIN}
    assert runs.attempts == 9

    runs.workspace.raise_version("dataset/t5.py")
    edit("src/worldtune/dataset/text.py", {"ascontiguousarray(embedding,": "ascontiguousarray(2 * embedding,"})
    assert set(runs.run()) == {*by_shard("t5"), "validate", "dataset_report", *TRAIN}
    assert runs.attempts == 10

    # A version that gives equal files: training stands. Snakemake has planned export and report before it knows that.
    runs.workspace.raise_version("dataset/controls.py")
    before = runs.manifest_path.stat().st_mtime_ns
    assert set(runs.run()) == {*by_shard("controls"), "validate", "export", "report"}
    assert (runs.attempts, runs.manifest_path.stat().st_mtime_ns) == (10, before)

    runs.workspace.raise_version("training/trainer.py")
    assert set(runs.run()) == set(TRAIN_ANEW)
    assert runs.attempts == 11


@pytest.mark.slow
def test_cached_latents_are_made_for_changed_videos_only(runs: Runs) -> None:
    recipe, name = "config/recipes/tiny.toml", scene_names(6)[1]
    shard = shard_of(f"{name}.mp4", NUM_SHARDS)
    latents = runs.root / "datasets/clips/latents/worldtune/demo-tokenizer/17_256_float32"

    def times() -> dict[str, int]:
        return {path.stem: path.stat().st_mtime_ns for path in latents.iterdir()}

    runs.run()
    before = runs.attempts
    runs.workspace.edit(recipe, {'dataset = "clips"': 'dataset = "clips"\ncache_latents = true'})
    assert set(runs.run()) == {"estimate", *by_shard("cache_latents"), *TRAIN_ANEW}
    assert runs.attempts == before + 1
    first = times()

    (runs.root / "clips" / f"{name}.txt").write_text("Another caption.")
    assert set(runs.run()) == {f"captions[{shard}]", f"t5[{shard}]", "validate", "dataset_report", *TRAIN}
    assert times() == first

    write_clip(runs.root / "clips", name, seed=9, caption="Another caption.")
    assert set(runs.run()) == {
        *(f"{stage}[{shard}]" for stage in ("ingest", "controls", "cache_latents")),
        *("validate", "dataset_report"),
        *TRAIN,
    }
    changed = times()
    assert {clip for clip in changed if changed[clip] != first[clip]} == {clip_id(f"{name}.mp4")}

    runs.workspace.raise_version("dataset/latents.py")
    assert set(runs.run()) == {*by_shard("cache_latents"), *TRAIN}
    assert all(changed[clip] != made for clip, made in times().items())
    assert runs.attempts == before + 4

    runs.workspace.edit(recipe, {"cache_latents = true": "cache_latents = false"})
    assert set(runs.run()) == {"estimate", *TRAIN_ANEW}


@pytest.mark.slow
def test_what_was_measured_alone_is_found_by_training(runs: Runs) -> None:
    recipe = "config/recipes/tiny.toml"
    runs.run()
    before = runs.attempts
    max_iter = tomllib.loads((runs.root / recipe).read_text())["training"]["max_iter"]
    runs.workspace.edit(recipe, {"learning_rate = 1e-3": "learning_rate = 3e-3"})
    assert runs.workspace.snakemake("results/tiny/preflight.json").finished == ("preflight", "training_values")
    attempts = (runs.root / "results/tiny/attempts").iterdir()
    attempt = max(attempts, key=lambda path: (path / "preflight.json").stat().st_mtime_ns)
    record = json.loads((runs.root / "results/tiny/preflight.json").read_text())
    assert record == json.loads((attempt / "preflight.json").read_text())
    assert record["checks"]["step_zero_parity"].endswith("bit-equal")
    assert record["largest_batch"]["shapes"]["video"] == [2, 3, 17, 192, 320]
    assert record["predicted"]["to_step"] == max_iter
    assert not (attempt / "metrics.jsonl").exists()
    assert runs.attempts == before + 1

    assert set(runs.run()) == set(TRAIN)
    assert runs.attempt == attempt
    assert json.loads((attempt / "preflight.json").read_text()) == record
    # Whether a job may start says nothing of what comes out.
    runs.workspace.edit(recipe, {"[logging]": "[cluster]\nmem_gb_per_gpu = 2.0\n\n[logging]"})
    assert runs.run() == ("estimate",)


def change_encoder(folder: Path) -> None:
    """Make the encoder another model: scale one tensor."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    state = load_file(path)
    key = sorted(state)[0]
    state[key] = state[key] * 1.5
    save_file(state, path, metadata={"format": "pt"})
