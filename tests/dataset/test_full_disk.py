"""A disk that is full while a stage writes: the file is named, nothing is half-written, and a repeat mends all."""

import subprocess

import pytest
from full_disk import error_of, files_of, leave_free, refuse_writes, remount

from worldtune.dataset import hdvila
from worldtune.dataset.clips import clip_id, video_path
from worldtune.dataset.ingest import COLUMNS
from worldtune.dataset.manifest import manifest_path, read_manifest
from worldtune.dataset.validate import conclude, examine
from worldtune.media.video import ffmpeg_executable

FULL = "No space left on device. Free space"
OUTPUTS = ("videos", "metas", "t5_xxl", "edge", "manifests", "validation", "dataset.json", "clips.parquet")


def run(source, stage: str) -> None:
    stages = {"ingest": source.ingest, "captions": source.captions, "t5": source.t5, "controls": source.controls}
    stages["validate"] = lambda: conclude(examine("tiny", source.config, datasets=source.datasets))
    stages[stage]()


def outputs(root) -> dict[str, bytes]:
    return {name: data for name, data in files_of(root).items() if name.startswith(OUTPUTS)}


@pytest.fixture
def made(source, fake_encoder):
    """A whole dataset of three clips."""
    source.options |= {"min_clips": 2}
    for number in range(3):
        source.add(f"{number}.mp4", caption=f"Scene {number}.", seed=number)
    source.all_stages()
    run(source, "validate")
    return source


@pytest.mark.parametrize(
    ("stage", "pattern", "named"),
    [
        ("ingest", "/videos/", "/videos/{clip}.mp4"),
        ("captions", r"/metas/\w+\.txt", "/metas/{clip}.txt"),
        ("captions", r"/metas/\w+\.json", "/metas/{clip}.json"),
        ("t5", "/t5_xxl/", "/t5_xxl/{clip}.pickle"),
        ("controls", "/edge/", "/edge/{clip}.mkv"),
        ("ingest", "/manifests/", "/manifests/ingest/0000.parquet"),
        ("captions", "/manifests/", "/manifests/captions/0000.parquet"),
        ("t5", "/manifests/", "/manifests/t5/0000.parquet"),
        ("controls", "/manifests/", "/manifests/controls-edge/0000.parquet"),
        ("ingest", "/ledger/", "/ledger/ingest/0000.jsonl"),
        ("captions", "/ledger/", "/ledger/captions/0000.jsonl"),
        ("t5", "/ledger/", "/ledger/t5/0000.jsonl"),
        ("controls", "/ledger/", "/ledger/controls-edge/0000.jsonl"),
        ("validate", r"/\.dataset\.", "/dataset.json"),
        ("validate", r"/\.clips\.\w+\.parquet", "/validation/clips.parquet"),
        ("validate", r"/\.verified\.", "/ledger/validate/verified.parquet"),
        ("validate", r"/\.clips\.\w+\.csv", "/validation/clips.csv"),
    ],
)
def test_each_kind_of_write(made, monkeypatch, tmp_path, stage, pattern, named):
    made.add("3.mp4", caption="Scene three.", seed=3)
    before_stage = {"ingest": [], "captions": ["ingest"], "t5": ["ingest", "captions"], "controls": ["ingest"]}
    for earlier in before_stage.get(stage, ["ingest", "captions", "t5", "controls"]):
        run(made, earlier)
    before = outputs(made.root)
    with monkeypatch.context() as patched:
        met = refuse_writes(patched, pattern)
        message = error_of(lambda: run(made, stage))
    assert met
    assert message.startswith(f"error: {made.root}{named.format(clip=clip_id('3.mp4'))}: {FULL}")
    after = outputs(made.root)
    # The table of validate may be ahead of its dataset.json, which is written last and names the table's digest.
    kept = ["dataset.json"] if stage == "validate" else before
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert not [name for name in files_of(made.root) if name.rpartition("/")[2].startswith(".")]
    for again in ("ingest", "captions", "t5", "controls", "validate"):
        run(made, again)
    found = outputs(made.root)
    made.datasets = tmp_path / "undisturbed"
    made.all_stages()
    run(made, "validate")
    assert found == outputs(made.root)


def test_a_full_disk_while_ffmpeg_encodes_is_no_fault_of_the_video(source, full_disk):
    path = source.add("a.mp4", num_frames=60)
    command = [ffmpeg_executable(), "-y", "-v", "error", "-i", path, "-vf", "scale=640:480", "-c:v", "mpeg4"]
    subprocess.run([*command, "-q:v", "2", path.with_name("a.avi")], check=True)
    source.datasets = full_disk / "datasets"
    path.unlink()
    source.listing()
    leave_free(full_disk, 48 * 1024)
    message = error_of(source.ingest)
    assert message.startswith(f"error: {source.root}/")
    assert FULL in message
    assert not manifest_path(source.root, "ingest", "0000").exists()
    assert not [name for name in files_of(source.root) if name.startswith("videos")]
    remount(full_disk, "size=20m")
    (row,) = read_manifest(source.ingest(), COLUMNS)
    assert (row["status"], row["action"]) == ("ok", "encode")
    assert video_path(source.root, clip_id("a.avi")).stat().st_size > 48 * 1024


@pytest.mark.parametrize("processes", [1, 2])
def test_a_disk_that_fills_up_between_clips(source, full_disk, tmp_path, processes):
    for number in range(6):
        source.add(f"{number}.mp4", num_frames=30, seed=number)
    source.datasets = full_disk / "datasets"
    clip_bytes = (source.folder / "0.mp4").stat().st_size
    remount(full_disk, f"size={int(clip_bytes * 3.5)}")
    message = error_of(lambda: source.ingest(processes=processes))
    assert message.startswith(f"error: {source.root}/")
    assert FULL in message
    done = files_of(source.root / "videos")
    assert done
    assert set(done.values()) <= {path.read_bytes() for path in source.folder.glob("*.mp4")}
    assert not manifest_path(source.root, "ingest", "0000").exists()
    remount(full_disk, "size=20m")
    manifest = source.ingest(processes=processes).read_bytes()
    source.datasets = tmp_path / "undisturbed"
    assert source.ingest().read_bytes() == manifest


def test_results_that_cannot_be_written(source, read_only_disk):
    source.add("a.mp4")
    source.datasets = read_only_disk / "datasets"
    message = error_of(source.ingest)
    assert message.startswith(f"error: {read_only_disk}/datasets")
    assert "Read-only file system. Mount its disk for writing" in message


def test_metadata_on_a_full_disk_is_no_matter_of_the_network(tmp_path, monkeypatch):
    def download(*_: object, **__: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hdvila, "hf_hub_download", download)
    monkeypatch.setattr(hdvila, "HfApi", download)
    target = tmp_path / "metadata.jsonl"
    assert error_of(lambda: hdvila.fetch_metadata(target)).startswith(f"error: {target}: {FULL}")
    assert list(tmp_path.iterdir()) == []
