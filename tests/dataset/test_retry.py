"""What `make retry` forgets; downloads, which ledgers keep, are in test_download.py and test_repository.py."""

import pytest
from chat_service import chat_service

import worldtune.annotate.chat_server as chat_server
from worldtune.dataset.clips import clip_id
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.make_captions import COLUMNS as CAPTION_COLUMNS
from worldtune.dataset.manifest import manifest_path, read_manifest, write_manifest
from worldtune.dataset.retry import failures_in_words, find_failed, forget_failed, manifests_of
from worldtune.dataset.stages import dataset_stages


def set_reason(source, stage: str, key: str, reason: str) -> None:
    """Give the row of a video in a stage's manifest another reason."""
    path, columns = manifest_path(source.root, stage, "0000"), dataset_stages(source.config)[stage]
    rows = read_manifest(path, columns)
    for row in rows:
        if row["source_key"] == key:
            row |= {"status": "unusable", "reason": reason}
    write_manifest(path, rows, columns)


def test_only_what_may_pass_is_forgotten(source):
    source.options["controls"] = ["edge"]
    for number, name in enumerate(("a", "b", "c")):
        source.add(f"{name}.mp4", seed=number)
    source.ingest()
    source.captions()
    source.controls()
    assert find_failed("tiny", source.config, datasets=source.datasets) == {}
    set_reason(source, "ingest", "a.mp4", "unreadable video: x")
    # Of a stage before it.
    set_reason(source, "ingest", "c.mp4", "download failed: x")
    set_reason(source, "captions", "a.mp4", "no caption: it is empty")
    set_reason(source, "controls-edge", "a.mp4", "edge unusable: x")
    assert forget_failed("tiny", source.config, datasets=source.datasets) == {}
    set_reason(source, "ingest", "b.mp4", "decoder died: x")
    set_reason(source, "controls-edge", "c.mp4", "edge died: x")
    failed = forget_failed("tiny", source.config, datasets=source.datasets)
    assert failed == {"ingest": {"0000": {clip_id("b.mp4")}}, "controls-edge": {"0000": {clip_id("c.mp4")}}}
    assert failures_in_words(failed) == "  ingest: 1 clip, in shard 0000\n  controls-edge: 1 clip, in shard 0000"
    left = sorted(path.parent.name for path in source.root.glob("manifests/*/*.parquet"))
    assert left == ["captions"]
    assert not any(path.exists() for path in manifests_of(failed, source.root))


def test_a_clip_without_an_answer_is_asked_about_again(source, monkeypatch):
    monkeypatch.setattr(chat_server, "FIRST_WAIT_S", 0.001)
    for number, name in enumerate(("a", "b", "c")):
        source.add(f"{name}.mp4", caption=None, num_frames=6 + number, seed=number)
    with chat_service() as service:
        source.options["captioner"] = {"model": "qwen", "server": service.address, "num_frames": 8, "retries": 0}
        source.ingest()
        statuses = {6: 500, 7: 400}
        # Times and pictures in turn, then the question.
        service.reply = lambda payload: statuses.get(len(payload["messages"][0]["content"]) // 2, "A thing.")
        path = source.make_captions()
        failed = forget_failed("tiny", source.config, datasets=source.datasets)
        assert failed == {"make_captions": {"0000": {clip_id("a.mp4")}}}
        assert not path.exists()
        statuses.pop(6)
        service.requests.clear()
        rows = read_manifest(source.make_captions(), CAPTION_COLUMNS)
    assert len(service.requests) == 2
    assert {row["source_key"] for row in rows if row["status"] == "ok"} == {"a.mp4", "c.mp4"}
    assert find_failed("tiny", source.config, datasets=source.datasets) == {}


@pytest.mark.parametrize("kind", ["folder", "hdvila"])
def test_a_dataset_of_which_nothing_is_made_yet_has_no_failures(tmp_path, kind):
    config = DatasetConfig(kind=kind, num_shards=2, **({"path": "x"} if kind == "folder" else {"max_clips": 1}))
    assert forget_failed("tiny", config, datasets=tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
