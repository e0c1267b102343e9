import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.annotation import annotate_clips
from worldtune.dataset.clips import clip_id, control_path
from worldtune.dataset.controls import COLUMNS
from worldtune.dataset.manifest import read_manifest
from worldtune.demo.annotators import write_depth_network
from worldtune.media.video import probe


@pytest.fixture
def annotated(source):
    model = "tiny/depth"
    write_depth_network(source.checkpoints / model)
    source.options |= {"controls": ["depth"], "annotate": {"depth": {"model": model}}}
    for name in ("a", "b"):
        source.add(f"{name}.mp4", seed=ord(name))
    source.ingest()
    return source


def annotate(source) -> list[dict[str, object]]:
    config, places = source.config, {"datasets": source.datasets, "checkpoints": source.checkpoints}
    return read_manifest(annotate_clips("tiny", config, "0000", "depth", device="cpu", **places), COLUMNS)


def test_each_clip_gets_a_file_of_its_frames(annotated):
    rows = annotate(annotated)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert [row["num_frames"] for row in rows] == [6, 6]
    info = probe(control_path(annotated.root, clip_id("a.mp4"), "depth"))
    assert (info.num_frames, info.width, info.height, info.fps) == (6, 48, 32, 24)


def test_only_clips_that_changed_are_annotated_again(annotated):
    annotate(annotated)
    files = {name: control_path(annotated.root, clip_id(f"{name}.mp4"), "depth") for name in "ab"}
    before = {name: file.stat().st_ino for name, file in files.items()}
    annotated.add("a.mp4", seed=7)
    annotated.ingest()
    annotate(annotated)
    assert files["a"].stat().st_ino != before["a"]
    assert files["b"].stat().st_ino == before["b"]


def test_a_network_without_some_weights_is_refused(annotated):
    (annotated.checkpoints / "tiny/depth/model.safetensors").unlink()
    with pytest.raises(WorldtuneError, match="cannot be loaded as a depth network"):
        annotate(annotated)
