"""Data set repositories, from a small server on this machine that speaks the hub's protocol."""

import csv
import hashlib
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.common.hub import Hub
from worldtune.dataset.captions import COLUMNS as CAPTION_COLUMNS
from worldtune.dataset.captions import captions
from worldtune.dataset.clips import clip_id, load_dataset, shard_of
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.controls import make_controls
from worldtune.dataset.cuts import find_cuts
from worldtune.dataset.fetched import COLUMNS
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import ingest
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.repository import fetch_repository, list_repository
from worldtune.dataset.retry import find_failed, forget_failed
from worldtune.dataset.t5 import embed_captions
from worldtune.dataset.validate import conclude, examine
from worldtune.media.video import write_video

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "owner/clips"


class Repository:
    """What the server has and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.downloads: list[tuple[str, str | None]] = []
        """(file, its range) of each download."""
        self.break_after: int | None = None
        """Bytes after which one answer is cut off; what follows is refused."""
        self.down = False
        self.spoiled: set[str] = set()
        self.gone: set[str] = set()
        self.endpoint = ""

    @property
    def hub(self) -> Hub:
        return Hub(self.endpoint, token=False)

    def names(self) -> list[str]:
        return sorted(name for name, _ in self.downloads)


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's protocol for data sets that are used."""

    state: Repository
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.state.down:
            self.answer(b"", 503, X_Error_Message="out of order")
        elif match := re.fullmatch(rf"/api/datasets/{NAME}/revision/(.+)", path):
            if match[1] not in ("main", COMMIT):
                self.answer(b"", 404, X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
            else:
                self.answer(json.dumps({"id": NAME, "sha": COMMIT}).encode())
        elif match := re.fullmatch(rf"/api/datasets/{NAME}/tree/{COMMIT}(?:/(.+))?", path):
            below = f"{match[1]}/" if match[1] else ""
            entries = [self.entry(name) for name in sorted(self.state.files) if name.startswith(below)]
            self.answer(json.dumps(entries).encode())
        elif match := re.fullmatch(rf"/datasets/{NAME}/resolve/{COMMIT}/(.+)", path):
            self.content(match[1])
        else:
            self.answer(b"", 401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    def entry(self, name: str) -> dict[str, Any]:
        content = self.state.files[name]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if not name.endswith((".csv", ".jsonl", ".md")):
            lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entry["lfs"] = lfs
        return entry

    def content(self, name: str) -> None:
        asked = self.headers.get("Range")
        self.state.downloads.append((name, asked))
        if name in self.state.gone:
            self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            return
        content = self.state.files[name]
        if name in self.state.spoiled:
            content = b"x" * len(content)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0  # type: ignore[index]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.state.break_after is not None:
            self.wfile.write(content[start : start + self.state.break_after])
            self.state.break_after, self.state.down, self.close_connection = None, True, True
        else:
            self.wfile.write(content[start:])


@pytest.fixture
def repository() -> Iterator[Repository]:
    state = Repository()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"state": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Six different small videos of 8 frames."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for number in range(6):
        write_video(folder / f"{number}.mp4", rng.integers(0, 256, (8, 32, 48, 3), dtype=np.uint8), 24)
    return [(folder / f"{number}.mp4").read_bytes() for number in range(6)]


def config(**changes: Any) -> DatasetConfig:
    values = {"kind": "huggingface", "repository": NAME, "num_shards": 1, "min_frames": 5, "min_success": 0}
    return DatasetConfig.model_validate(values | changes)


def fetch(datasets: Path, repository: Repository, shard: str = "0000", **changes: Any) -> list[dict[str, Any]]:
    path = fetch_repository("r", config(**changes), shard, hub=repository.hub, datasets=datasets)
    return read_manifest(path, COLUMNS)


def list_and_fetch(datasets: Path, repository: Repository, **changes: Any) -> dict[str, dict[str, Any]]:
    list_repository("r", config(**changes), hub=repository.hub, datasets=datasets)
    return {row["source_key"]: row for row in fetch(datasets, repository, **changes)}


def metadata(form: str, captions_by_name: dict[str, str | None], column: str = "caption") -> bytes:
    names, texts = list(captions_by_name), list(captions_by_name.values())
    if form == "parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.table({"file_name": names, column: texts, "extra": names}), buffer)
        return buffer.getvalue()
    if form == "jsonl":
        rows = [{"file_name": name, column: text, "extra": 1} for name, text in captions_by_name.items()]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO()
    csv.writer(text).writerows([("file_name", column, "extra"), *zip(names, texts, names, strict=True)])
    return text.getvalue().encode()


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_videos_with_metadata_become_clips_with_captions(
    tmp_path: Path, repository: Repository, videos: list[bytes], form: str
) -> None:
    repository.files = {
        "README.md": b"# Clips",
        "train/a.mp4": videos[0],
        "train/sub/b.mp4": videos[1],
        "train/plain.mp4": videos[2],
        f"train/metadata.{form}": metadata(form, {"a.mp4": "One.", "sub/b.mp4": "Two.", "lost.mp4": "Three."}),
        "test/c.mp4": videos[3],
    }
    found = list_and_fetch(tmp_path, repository, folder="train")
    assert {key: row["caption"] for key, row in found.items()} == {
        "train/a.mp4": "One.",
        "train/sub/b.mp4": "Two.",
        "train/plain.mp4": None,
        "train/lost.mp4": "Three.",
    }
    assert found["train/lost.mp4"]["reason"].startswith("not in the repository: ")
    assert find_failed("r", config(), datasets=tmp_path) == {}
    assert repository.names() == ["train/a.mp4", f"train/metadata.{form}", "train/plain.mp4", "train/sub/b.mp4"]
    assert (tmp_path / "r/source/train/sub/b.mp4").read_bytes() == videos[1]
    made = {
        row["source_key"]: row
        for row in read_manifest(ingest("r", config(), "0000", datasets=tmp_path), INGEST_COLUMNS)
    }
    assert {key for key, row in made.items() if row["status"] == "ok"} == found.keys() - {"train/lost.mp4"}
    assert made["train/lost.mp4"]["reason"] == found["train/lost.mp4"]["reason"]
    texts = read_manifest(captions("r", config(), "0000", datasets=tmp_path), CAPTION_COLUMNS)
    assert {row["source_key"]: row["status"] for row in texts} == {
        key: "unusable" if key == "train/plain.mp4" else "ok" for key in found
    }


def test_a_shard_downloads_only_its_own_files_once(tmp_path: Path, repository: Repository, videos: list[bytes]) -> None:
    repository.files = {f"{number}.mp4": video for number, video in enumerate(videos)}
    repository.files["metadata.csv"] = metadata("csv", {f"{number}.mp4": f"Text {number}." for number in range(6)})
    shards = {name: shard_of(name, 2) for name in repository.files if name.endswith(".mp4")}
    assert set(shards.values()) == {"0000", "0001"}
    list_repository("r", config(num_shards=2), hub=repository.hub, datasets=tmp_path)
    for shard in ("0000", "0001"):
        repository.downloads = []
        rows = fetch(tmp_path, repository, shard, num_shards=2)
        own = sorted(name for name, of in shards.items() if of == shard)
        assert repository.names() == own == sorted(row["source_key"] for row in rows)
        repository.downloads = []
        assert fetch(tmp_path, repository, shard, num_shards=2) == rows
        assert repository.downloads == []
    # A new caption in a later list fetches that video again, and no other.
    repository.files["metadata.csv"] = repository.files["metadata.csv"].replace(b"Text 3.", b"Other.")
    (tmp_path / "r/source/.parts").rename(tmp_path / "r/source/.gone")
    list_repository("r", config(num_shards=2), hub=repository.hub, datasets=tmp_path)
    repository.downloads = []
    rows = fetch(tmp_path, repository, shards["3.mp4"], num_shards=2)
    assert repository.names() == ["3.mp4"]
    assert {row["caption"] for row in rows if row["source_key"] == "3.mp4"} == {"Other."}


def embedded(videos: list[bytes | None], texts: list[str | None], *, plain: bool = False) -> bytes:
    values: list[Any] = [
        video if plain else {"bytes": video, "path": f"{number}.webm" if number == 1 else None}
        for number, video in enumerate(videos)
    ]
    kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    buffer = io.BytesIO()
    table = pa.table({"video": pa.array(values, kind), "text": texts, "other": [b"z"] * len(videos)})
    pq.write_table(table, buffer, row_group_size=2)
    return buffer.getvalue()


@pytest.mark.parametrize("plain", [False, True])
def test_videos_in_parquet_files(tmp_path: Path, repository: Repository, videos: list[bytes], plain: bool) -> None:
    content = embedded([*videos[:3], None], ["One.", "Two.", None, "Four."], plain=plain)
    torn = content[:4] + bytes(64) + content[68:]
    repository.files = {
        "data/train-0.parquet": content,
        "data/broken.parquet": b"PAR1 and no more",
        "data/torn.parquet": torn,
    }
    found = list_and_fetch(tmp_path, repository, caption_column="text")
    second = "data/train-0/000001.mp4" if plain else "data/train-0/000001.webm"
    assert {key: (row["caption"], row["status"]) for key, row in found.items()} == {
        "data/train-0/000000.mp4": ("One.", "ok"),
        second: ("Two.", "ok"),
        "data/train-0/000002.mp4": (None, "ok"),
        "data/train-0/000003.mp4": ("Four.", "unusable"),
        "data/broken.parquet": (None, "unusable"),
        "data/torn.parquet": (None, "unusable"),
    }
    assert found["data/broken.parquet"]["reason"].startswith("unreadable parquet file: ")
    assert (tmp_path / "r/source" / second).read_bytes() == videos[1]
    assert not list((tmp_path / "r/source").rglob("*.part*"))[1:]
    made = read_manifest(ingest("r", config(), "0000", datasets=tmp_path), INGEST_COLUMNS)
    assert len(made) == 6
    assert sum(row["status"] == "ok" for row in made) == 3


def statuses(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {key: row["status"] for key, row in rows.items()}


def another_commit(datasets: Path, repository: Repository, **files: bytes) -> dict[str, dict[str, Any]]:
    """Change parquet files, which the server keeps under the same commit, and fetch them."""
    repository.files |= {f"data/{name}.parquet": content for name, content in files.items()}
    return list_and_fetch(datasets, repository, caption_column="text")


def test_clips_of_a_file_that_is_broken_at_another_commit_keep_rows(
    tmp_path: Path, repository: Repository, videos: list[bytes]
) -> None:
    good = embedded([*videos[:3]], ["One.", "Two.", "Three."])
    keys = ["data/a/000000.mp4", "data/a/000001.webm", "data/a/000002.mp4"]
    assert statuses(another_commit(tmp_path, repository, a=good)) == dict.fromkeys(keys, "ok")
    clips = read_manifest(ingest("r", config(), "0000", datasets=tmp_path), INGEST_COLUMNS)
    assert len(list((tmp_path / "r/videos").iterdir())) == 3
    # Two videos come before the damage, which is inside a page of the second row group, its header whole.
    group = pq.ParquetFile(io.BytesIO(good)).metadata.row_group(1)
    [chunk] = [group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "text"]
    end = min(chunk.data_page_offset, chunk.dictionary_page_offset or 0) + chunk.total_compressed_size
    torn = good[: end - 3] + b"\xff" * 3 + good[end:]
    for broken in (torn, b"PAR1 and no more"):
        found = another_commit(tmp_path, repository, a=broken)
        assert statuses(found) == dict.fromkeys(keys, "unusable")
        assert {row["reason"].partition(":")[0] for row in found.values()} == {"unreadable parquet file"}
        assert [found[key]["caption"] for key in keys] == ["One.", "Two.", "Three."]
        assert not [path for path in (tmp_path / "r/source/data").rglob("*") if path.is_file()]
    now = read_manifest(ingest("r", config(), "0000", datasets=tmp_path), INGEST_COLUMNS)
    assert [row["clip_id"] for row in now] == [row["clip_id"] for row in clips]
    assert {row["status"] for row in now} == {"unusable"}
    assert not list((tmp_path / "r/videos").iterdir())
    fewer = embedded(videos[3:4], ["Four."])
    assert statuses(another_commit(tmp_path, repository, a=good)) == dict.fromkeys(keys, "ok")
    assert statuses(another_commit(tmp_path, repository, a=fewer)) == {keys[0]: "ok"}
    assert [path.name for path in (tmp_path / "r/source/data/a").iterdir()] == ["000000.mp4"]


def test_clips_of_a_file_that_another_commit_does_not_give_keep_rows_over_retries(
    tmp_path: Path, repository: Repository, videos: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    keys = ["data/a/000000.mp4", "data/a/000001.webm"]
    repository.files["b.mp4"] = videos[2]
    another_commit(tmp_path, repository, a=embedded(videos[:2], ["One.", "Two."]))
    repository.gone = {"data/a.parquet", "b.mp4"}
    repository.files["b.mp4"] = videos[3]
    for _ in range(2):
        found = another_commit(tmp_path, repository, a=embedded(videos[2:4], ["Three.", "Four."]))
        assert statuses(found) == dict.fromkeys([*keys, "b.mp4"], "unusable")
        assert not [path for path in (tmp_path / "r/source").rglob("*") if path.suffix in (".mp4", ".webm")]
        failed = {row["clip_id"] for row in found.values()}
        assert forget_failed("r", config(), datasets=tmp_path) == {"fetch_videos": {"0000": failed}}
    assert "data/a.parquet: 2 videos of an earlier commit were removed: download failed" in caplog.text
    repository.gone = set()
    assert statuses(another_commit(tmp_path, repository)) == dict.fromkeys([*keys, "b.mp4"], "ok")
    del repository.files["data/a.parquet"]
    assert statuses(another_commit(tmp_path, repository)) == {"b.mp4": "ok"}
    assert "1 files are not in the list of the repository any more" in caplog.text


def test_a_file_that_cannot_be_read_in_bounded_memory_is_refused_unread(
    tmp_path: Path, repository: Repository, videos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldtune.dataset.embedded.MAX_BYTES_TO_READ", 2000)
    found = another_commit(tmp_path, repository, a=embedded(videos[:2], ["One.", "Two."]))
    assert found["data/a.parquet"]["reason"].startswith("unreadable parquet file: its pages are so large")
    assert not (tmp_path / "r/source/data").exists()


def test_an_interrupted_download_goes_on(
    tmp_path: Path, repository: Repository, videos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    repository.files = {"a.mp4": videos[0]}
    list_repository("r", config(), hub=repository.hub, datasets=tmp_path)
    repository.break_after = 3000
    with pytest.raises(WorldtuneError, match="what was downloaded is kept"):
        fetch(tmp_path, repository)
    assert not (tmp_path / "r/manifests").exists()
    repository.down, repository.downloads = False, []
    [row] = fetch(tmp_path, repository)
    assert row["status"] == "ok"
    assert repository.downloads == [("a.mp4", "bytes=3000-")]
    assert (tmp_path / "r/source/a.mp4").read_bytes() == videos[0]


def test_what_cannot_be_had_keeps_a_row_and_is_asked_for_by_retry(
    tmp_path: Path, repository: Repository, videos: list[bytes]
) -> None:
    repository.files = {f"{number}.mp4": video for number, video in enumerate(videos[:4])}
    repository.spoiled, repository.gone = {"1.mp4"}, {"2.mp4"}
    found = list_and_fetch(tmp_path, repository)
    assert {key for key, row in found.items() if row["status"] == "ok"} == {"0.mp4", "3.mp4"}
    assert "the hub says" in found["1.mp4"]["reason"]
    assert found["2.mp4"]["reason"].startswith("download failed: ")
    with pytest.raises(WorldtuneError, match="2 of 4 videos have arrived"):
        fetch(tmp_path, repository, min_success=0.6)
    repository.spoiled, repository.gone, repository.downloads = set(), set(), []
    assert [row["status"] for row in fetch(tmp_path, repository)].count("ok") == 2
    failed = {clip_id("1.mp4"), clip_id("2.mp4")}
    assert forget_failed("r", config(), datasets=tmp_path) == {"fetch_videos": {"0000": failed}}
    assert [row["status"] for row in fetch(tmp_path, repository)].count("ok") == 4
    assert repository.names() == ["1.mp4", "2.mp4"]


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({"README.md": b"#"}, {}, "holds neither videos"),
        ({"a.mp4": b"1"}, {"revision": "none"}, "cannot be had"),
        ({"a.mp4": b"1"}, {"repository": "owner/other"}, "cannot be had.*HF_TOKEN"),
        ({"../a.mp4": b"1"}, {}, "unsafe name"),
        ({"metadata.csv": b"file_name,caption\n../../a.mp4,x\n"}, {}, "line 2: file_name is"),
        ({"metadata.csv": b"file_name,caption\na.mp4,x\na.mp4,y\n"}, {}, "line 3: a.mp4 is named twice"),
        ({"metadata.jsonl": b'{"file_name": "a.mp4", "caption": 3}\n'}, {}, "line 1: caption is 3"),
        ({"metadata.jsonl": b"{\n"}, {}, "line 1 is no JSON"),
    ],
)
def test_what_is_wrong_with_a_repository_is_named(
    tmp_path: Path, repository: Repository, files: dict[str, bytes], changes: dict[str, str], message: str
) -> None:
    repository.files = files
    with pytest.raises(WorldtuneError, match=message):
        list_repository("r", config(**changes), hub=repository.hub, datasets=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repository": "clips"}, "such as organization/name"),
        ({"folder": "../x"}, "no path below the repository"),
        ({"controls": ["depth"]}, "controls depth cannot be given"),
        ({"max_clips": 3}, "belongs to kind 'hdvila'"),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_downloaded_video_that_is_cut_is_there_as_its_parts_alone(
    tmp_path: Path, repository: Repository, videos: list[bytes], fake_encoder: object
) -> None:
    repository.files = {"a.mp4": videos[0], "b.mp4": videos[1]}
    repository.files["metadata.csv"] = metadata("csv", {"a.mp4": "One.", "b.mp4": "Two.", "lost.mp4": "Three."})
    changes = {"cut": {"min_s": 0.12, "max_s": 3 / 24, "scenes": False}, "min_frames": 2}
    changes |= {"text_encoder": "worldtune/fake"}
    list_and_fetch(tmp_path, repository, **changes)
    arguments: tuple[Any, ...] = ("r", config(**changes), "0000")
    for stage in (find_cuts, ingest, captions):
        stage(*arguments, datasets=tmp_path)
    embed_captions(*arguments, datasets=tmp_path, checkpoints=tmp_path / "checkpoints", device="cpu")
    make_controls(*arguments, "edge", datasets=tmp_path)
    conclude(examine("r", config(**changes), datasets=tmp_path))
    dataset = load_dataset(tmp_path / "r")
    assert sorted((clip.source_key, clip.num_frames) for clip in dataset.clips) == [
        *(("a.mp4", 3), ("a.mp4", 3), ("b.mp4", 3), ("b.mp4", 3)),
    ]
    assert read_json(tmp_path / "r/dataset.json")["source"] == {"repository": NAME, "commit": COMMIT}
    reasons = sorted((clip.source_key, clip.reason.partition(":")[0]) for clip in dataset.unusable)
    short = "short remainder"
    assert reasons == [("a.mp4", short), ("b.mp4", short), ("lost.mp4", "not in the repository")]
