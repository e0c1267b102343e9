from dataclasses import replace

import pytest
import torch

import worldtune.dataset.annotation
from worldtune.annotate.depth import DepthNetwork
from worldtune.annotate.keypoint import WholeBody
from worldtune.annotate.protocol import NetworkFailedError
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import copy_file
from worldtune.dataset.annotation import annotate_clips
from worldtune.dataset.clips import clip_id, control_path, lossless_path
from worldtune.dataset.controls import control_columns
from worldtune.dataset.depth_bounds import measure_depth_bounds
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.validate import conclude, examine
from worldtune.demo.annotators import write_depth_network, write_keypoint_networks
from worldtune.formats.keypoints import write_keypoints
from worldtune.formats.pickles import MAX_CONTROL_BYTES, read_pickle
from worldtune.media.video import probe


@pytest.fixture
def annotated(source):
    write_depth_network(source.checkpoints / "tiny/depth")
    write_keypoint_networks(source.checkpoints / "tiny/keypoint", "detector.onnx", "pose.onnx")
    source.options |= {
        "controls": ["depth", "keypoint"],
        "annotate": {
            "depth": {"model": "tiny/depth"},
            "keypoint": {"model": "tiny/keypoint", "detector": "detector.onnx", "pose": "pose.onnx"},
        },
    }
    for name in ("a", "b"):
        source.add(f"{name}.mp4", seed=ord(name))
    source.ingest()
    return source


def annotate(source, kind: str = "depth") -> list[dict[str, object]]:
    config, places = source.config, {"datasets": source.datasets, "checkpoints": source.checkpoints}
    path = annotate_clips("tiny", config, "0000", kind, device="cpu", **places)
    return read_manifest(path, control_columns(kind, config))


def files(source, kind: str = "depth") -> dict[str, tuple[int, int]]:
    """Names of a control's files, hidden ones too, with what tells a new file from an old one."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted((source.root / kind).iterdir())}


def test_each_clip_gets_a_depth_file_of_its_frames(annotated):
    rows = annotate(annotated)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert [row["num_frames"] for row in rows] == [6, 6]
    info = probe(control_path(annotated.root, clip_id("a.mp4"), "depth"))
    assert (info.num_frames, info.width, info.height, info.fps) == (6, 48, 32, 24)


def test_each_clip_gets_a_keypoint_file_of_its_frames(annotated):
    rows = annotate(annotated, "keypoint")
    assert [(row["status"], row["num_frames"]) for row in rows] == [("ok", 6), ("ok", 6)]
    people = read_pickle(control_path(annotated.root, clip_id("a.mp4"), "keypoint"), MAX_CONTROL_BYTES)
    assert list(people) == list(range(6))
    assert people[0][0]["body-keypoints"].shape == (133, 3)


def test_only_clips_that_changed_are_annotated_again(annotated):
    annotate(annotated)
    before = files(annotated)
    annotated.add("a.mp4", seed=7)
    annotated.ingest()
    annotate(annotated)
    changed, same = (f"{clip_id(name)}.mp4" for name in ("a.mp4", "b.mp4"))
    assert files(annotated)[changed] != before[changed]
    assert files(annotated)[same] == before[same]


def test_a_job_that_was_killed_goes_on_where_it_ended(annotated, monkeypatch):
    write, done = DepthNetwork.annotate, []

    def killed(self, clip, target):
        if done:
            raise KeyboardInterrupt
        done.append(clip.clip_id)
        return write(self, clip, target)

    with monkeypatch.context() as patched:
        patched.setattr(DepthNetwork, "annotate", killed)
        with pytest.raises(KeyboardInterrupt):
            annotate(annotated)
    before = files(annotated)
    assert list(before) == [f"{done[0]}.mp4"]
    # What remains where even the interruption cannot be handled, and the same of another shard's clip.
    for stem in (clip_id("b.mp4"), clip_id("elsewhere.mp4")):
        (annotated.root / "depth" / f".{stem}.x1.mp4").write_bytes(b"half")
    assert [row["status"] for row in annotate(annotated)] == ["ok", "ok"]
    assert files(annotated)[f"{done[0]}.mp4"] == before[f"{done[0]}.mp4"]
    assert sorted(files(annotated)) == sorted(
        [f".{clip_id('elsewhere.mp4')}.x1.mp4", *(f"{clip_id(name)}.mp4" for name in ("a.mp4", "b.mp4"))]
    )


def test_exact_depth_is_kept_and_removed_with_the_other(annotated):
    annotated.options["annotate"]["depth"]["lossless"] = True
    annotate(annotated)
    both = files(annotated)
    assert sorted(name[-4:] for name in both) == [".mkv", ".mkv", ".mp4", ".mp4"]
    (annotated.root / "depth" / next(iter(both))).unlink()
    annotate(annotated)
    assert files(annotated).keys() == both.keys()
    annotated.options["annotate"]["depth"]["lossless"] = False
    annotate(annotated)
    assert [name for name in files(annotated) if name.endswith(".mkv")] == []


def test_exact_depth_is_validated_and_leaves_with_the_network(annotated, fake_encoder):
    annotated.options |= {"controls": ["depth"], "min_clips": 2}
    annotated.options["annotate"] = {"depth": {"model": "tiny/depth", "lossless": True}}
    annotated.captions()
    annotated.t5()
    annotate(annotated)
    conclude(examine("tiny", annotated.config, datasets=annotated.datasets))
    exact = lossless_path(annotated.root, clip_id("a.mp4"), "depth")
    exact.write_bytes(exact.read_bytes()[:-1] + b"x")
    lossless_path(annotated.root, clip_id("b.mp4"), "depth").unlink()
    found = examine("tiny", annotated.config, datasets=annotated.datasets)
    reasons = {row["source_key"]: row["reason"] for row in found.rows}
    assert reasons["a.mp4"].startswith(f"file changed: depth/{exact.name}; ")
    assert reasons["b.mp4"].startswith(f"file gone: depth/{clip_id('b.mp4')}.mkv; ")
    # As the reasons say.
    exact.unlink()
    annotate(annotated)
    for name in ("a", "b"):
        given = annotated.folder / f"depth/{name}.mp4"
        copy_file(control_path(annotated.root, clip_id(f"{name}.mp4"), "depth"), given)
    conclude(examine("tiny", annotated.config, datasets=annotated.datasets))

    annotated.options["annotate"] = {}
    annotated.controls("depth")
    assert list(files(annotated)) == [f"{clip_id(name)}.mp4" for name in sorted(("a.mp4", "b.mp4"), key=clip_id)]
    conclude(examine("tiny", annotated.config, datasets=annotated.datasets))


def test_a_clip_that_cannot_be_annotated_keeps_a_row(annotated, monkeypatch):
    write, bad = DepthNetwork.annotate, clip_id("a.mp4")
    shorter = annotated.add("c.mp4", num_frames=5)

    def one_frame_less(self, clip, target):
        write(self, replace(clip, video=shorter) if clip.clip_id == bad else clip, target)

    annotated.options["annotate"]["depth"]["lossless"] = True
    monkeypatch.setattr(DepthNetwork, "annotate", one_frame_less)
    rows = {row["clip_id"]: row for row in annotate(annotated)}
    assert rows[bad]["status"] == "unusable"
    assert "it has 5 frames, the clip has 6" in rows[bad]["reason"]
    assert list(files(annotated)) == [f"{clip_id('b.mp4')}{suffix}" for suffix in (".mkv", ".mp4")]


@pytest.mark.parametrize(
    ("kind", "network", "error"),
    [
        ("keypoint", WholeBody, NetworkFailedError("a network failed: x")),
        ("depth", DepthNetwork, torch.OutOfMemoryError("Tried to allocate")),
    ],
)
def test_a_network_that_failed_over_a_clip_is_asked_again(annotated, monkeypatch, kind, network, error):
    write, bad = network.annotate, clip_id("a.mp4")

    def failing(self, clip, target):
        if clip.clip_id == bad:
            raise error
        write(self, clip, target)

    with monkeypatch.context() as patched:
        patched.setattr(network, "annotate", failing)
        rows = {row["clip_id"]: row for row in annotate(annotated, kind)}
        assert (rows[bad]["status"], rows[clip_id("b.mp4")]["status"]) == ("unusable", "ok")
        assert rows[bad]["reason"].startswith(f"{kind} died: ")
    before = files(annotated, kind)
    assert {row["status"] for row in annotate(annotated, kind)} == {"ok"}
    assert before.items() < files(annotated, kind).items()


def test_networks_that_fail_over_every_clip_fail_the_stage(annotated, monkeypatch):
    def failing(self, clip, target):
        raise NetworkFailedError("a network failed: x")

    monkeypatch.setattr(WholeBody, "annotate", failing)
    assert {row["reason"] for row in annotate(annotated, "keypoint")} == {"keypoint died: a network failed: x"}
    monkeypatch.setattr(worldtune.dataset.annotation, "MAX_FAILURES", 2)
    with pytest.raises(WorldtuneError, match="failed over each of 2 clips; over the last one: keypoint died: "):
        annotate(annotated, "keypoint")


def test_a_control_can_be_given_and_made_in_turn(annotated):
    annotate(annotated, "keypoint")
    target = control_path(annotated.root, clip_id("a.mp4"), "keypoint")
    made = target.read_bytes()
    people = read_pickle(target, MAX_CONTROL_BYTES)
    people[0][0]["body-keypoints"] = people[0][0]["body-keypoints"] / 2
    given = annotated.folder / "keypoint/a.pickle"
    write_keypoints(given, list(people.values()))
    assert given.stat().st_size == len(made)
    manifests = [annotated.root / f"manifests/{stage}-keypoint/0000.parquet" for stage in ("annotate", "controls")]

    annotator = annotated.options["annotate"].pop("keypoint")
    annotated.controls("keypoint")
    assert [path.exists() for path in manifests] == [False, True]
    assert target.read_bytes() == given.read_bytes()

    annotated.options["annotate"]["keypoint"] = annotator
    annotate(annotated, "keypoint")
    assert [path.exists() for path in manifests] == [True, False]
    assert target.read_bytes() == made

    del annotated.options["annotate"]["keypoint"]
    annotated.controls("keypoint")
    assert target.read_bytes() == given.read_bytes()


def test_a_network_without_some_weights_is_refused(annotated):
    (annotated.checkpoints / "tiny/depth/model.safetensors").unlink()
    with pytest.raises(WorldtuneError, match="cannot be loaded as a Depth-Anything network"):
        annotate(annotated)


def test_bounds_for_all_clips_are_measured_and_hold_when_clips_come(annotated):
    places = {"datasets": annotated.datasets, "checkpoints": annotated.checkpoints, "device": "cpu"}
    low, high = measure_depth_bounds("tiny", annotated.config, **places)
    assert low < high
    assert measure_depth_bounds("tiny", annotated.config, **places) == (low, high)
    annotated.options["annotate"]["depth"]["scale"] = [low, high]
    annotate(annotated)
    before = files(annotated)
    annotated.add("c.mp4", seed=9)
    annotated.ingest()
    assert len(annotate(annotated)) == 3
    assert before.items() < files(annotated).items()


def test_bounds_must_rise(annotated):
    annotated.options["annotate"]["depth"]["scale"] = [2.0, 1.0]
    with pytest.raises(ValueError, match="smaller than the second"):
        _ = annotated.config
