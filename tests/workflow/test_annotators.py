"""Raw videos, annotated by tiny networks in the workflow, train each of the six generic controls."""

import json
from pathlib import Path

import pytest
from workspace import Workspace

from worldtune.common.files import write_json
from worldtune.dataset.scenes import scene_names
from worldtune.demo.annotators import write_depth_network, write_detector, write_keypoint_networks, write_tracker
from worldtune.demo.scenes import render_scene
from worldtune.media.video import write_video

KINDS = ("depth", "edge", "keypoint", "seg", "upscale", "vis")
CONFIG = """
runs: []
datasets:
  raw:
    kind: folder
    path: raw
    num_shards: 2
    held_out_fraction: 0.3
    min_clips: 4
    min_frames: 17
    controls: [edge, depth, seg, keypoint]
    annotate:
      depth: {model: tiny/depth}
      seg: {detector: tiny/detector, tracker: tiny/tracker, key_frames: 2, max_objects: 3}
      keypoint: {model: tiny/keypoint, detector: detector.onnx, pose: pose.onnx}
    text_encoder: worldtune/demo-t5
    text_max_tokens: 64
"""
RECIPE = """
extends = "demo_{kind}_posttrain"

[data]
dataset = "raw"

[training]
max_iter = 2

[parallel]
tensor = 1

[validation]
max_clips = 1
sigmas = [1.0]

[previews]
every = 0

[health]
# Of a base that was hardly trained.
first_loss_max = 10.0
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six runs on a folder of raw videos."""
    workspace = Workspace(tmp_path_factory.mktemp("annotators"))
    workspace.shorten_base_training()
    root = workspace.root
    (root / "config/config.yaml").write_text(CONFIG)
    for kind in KINDS:
        (root / f"config/recipes/raw_{kind}.toml").write_text(RECIPE.format(kind=kind))
    for number, name in enumerate(scene_names(5)):
        scene = render_scene(scene_names(1)[0], seed=number, num_frames=17, width=160, height=96, fps=24)
        (root / "raw").mkdir(exist_ok=True)
        write_video(root / f"raw/{name}.mp4", scene.frames, 24)
        (root / f"raw/{name}.txt").write_text(scene.caption)
    tiny = root / "checkpoints/tiny"
    write_depth_network(tiny / "depth")
    write_detector(tiny / "detector")
    write_tracker(tiny / "tracker")
    write_keypoint_networks(tiny / "keypoint", "detector.onnx", "pose.onnx")
    for folder in tiny.iterdir():
        write_json(folder / "files.json", {"made": "by a test"})
    workspace.snakemake("--keep-going", *(f"results/raw_{kind}/manifest.json" for kind in KINDS))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_raw_videos_train_a_control(made: Path, kind: str) -> None:
    run = made / f"results/raw_{kind}"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["final_step"] == 2
    lines = [json.loads(line) for line in (run / manifest["attempt"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(0 < line["edm_loss"] < float("inf") for line in lines)


@pytest.mark.slow
def test_every_clip_has_every_control(made: Path) -> None:
    dataset = json.loads((made / "datasets/raw/dataset.json").read_text())
    assert dataset["num_clips"] == 5
    for kind, suffix in (("depth", "mp4"), ("edge", "mkv"), ("keypoint", "pickle"), ("seg", "pickle")):
        assert len(list((made / f"datasets/raw/{kind}").glob(f"*.{suffix}"))) == 5
