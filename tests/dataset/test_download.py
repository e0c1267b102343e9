"""Downloads by a stand-in for pytubefix that asks a server on this machine."""

import errno
import json
import socket
import sys
import threading
import types
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset import youtube
from worldtune.dataset.captions import captions
from worldtune.dataset.clips import shard_of, video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.download import COLUMNS, fetch_videos, listed_clips
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import ingest
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.retry import forget_failed
from worldtune.media.video import write_video


class Server:
    """Videos by path, how often each was asked for, and how it misbehaves."""

    def __init__(self) -> None:
        self.videos: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[str] = []
        self.statuses: list[int] = []
        """Answers that the next requests of content get instead."""
        self.break_after: list[int] = []
        """Bytes after which the next answers break off."""
        self.endpoint = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            name = self.path.removeprefix("/")
            state.requests[name] += 1
            content = state.videos.get(name)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            content = state.videos[self.path.removeprefix("/")]
            state.ranges.append(self.headers["Range"])
            start, end = (int(number) for number in self.headers["Range"].removeprefix("bytes=").split("-"))
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            # What a server has no more of, it announces all the same.
            piece = content[:50][start : end + 1] if self.path.endswith("/torn") else content[start : end + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(piece)))
            self.end_headers()
            self.wfile.write(piece[: state.break_after.pop(0)] if state.break_after else piece)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.endpoint = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """What of pytubefix is used, over plain HTTP."""

    class Stream:
        itag = 18
        is_sabr = False

        def __init__(self, url: str) -> None:
            self.url = url
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
                self.filesize = int(answer.headers["Content-Length"])

    class Query:
        def __init__(self, url: str) -> None:
            self.url = url

        def get_highest_resolution(self) -> Stream | None:
            return None if self.url.endswith("/silent") else Stream(self.url)

    class YouTube:
        def __init__(self, url: str) -> None:
            self.streams = Query(url)

    package, exceptions = types.ModuleType("pytubefix"), types.ModuleType("pytubefix.exceptions")
    package.YouTube = YouTube  # type: ignore[attr-defined]
    exceptions.PytubeFixError = type("PytubeFixError", (Exception,), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytubefix", package)
    monkeypatch.setitem(sys.modules, "pytubefix.exceptions", exceptions)
    return package


def config(max_clips: int = 10, num_shards: int = 1) -> DatasetConfig:
    return DatasetConfig(kind="hdvila", num_shards=num_shards, max_clips=max_clips, min_frames=5, min_success=0)


def write_metadata(datasets: Path, server: Server, *names: str, **changes: object) -> Path:
    path = datasets / "h/source/metadata.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in names:
        record = {"url": f"{server.endpoint}/{name}", "video_id": name, "clip_id": f"{name}.0.mp4"}
        record |= {"caption": f"About {name}.", "span_start": "0:00:00.250", "span_end": "0:00:01.000"}
        lines.append(json.dumps(record | changes))
    path.write_text("\n".join(lines) + "\n")
    return path


def rows(path: Path) -> dict[str, dict[str, object]]:
    return {row["source_key"]: row for row in read_manifest(path, COLUMNS)}


def test_each_video_is_asked_for_once_until_it_is_retried(tmp_path: Path, server: Server) -> None:
    server.videos = {"one": b"1" * 100, "two": b"2"}
    write_metadata(tmp_path, server, "one", "gone", "two", "one", "silent", "late")
    path = fetch_videos("h", config(5), "0000", datasets=tmp_path)
    found = rows(path)
    assert sorted(found) == [f"videos/{name}.mp4" for name in ("gone", "late", "one", "silent", "two")]
    assert {key for key, row in found.items() if row["status"] == "ok"} == {"videos/one.mp4", "videos/two.mp4"}
    assert str(found["videos/gone.mp4"]["reason"]).startswith("download failed: HTTPError: HTTP Error 404")
    assert str(found["videos/silent.mp4"]["reason"]).startswith("download failed: no stream")
    videos = tmp_path / "h/source/videos"
    assert (videos / "one.mp4").read_bytes() == b"1" * 100
    assert sorted(file.name for file in videos.iterdir()) == ["one.mp4", "two.mp4"]

    server.videos["gone"] = b"back"
    content = path.read_bytes()
    path.unlink()
    assert fetch_videos("h", config(5), "0000", datasets=tmp_path).read_bytes() == content
    assert server.requests == Counter({"one": 1, "two": 1, "gone": 1, "late": 1})

    gone = {str(row["clip_id"]) for row in found.values() if row["status"] != "ok"}
    assert forget_failed("h", config(5), datasets=tmp_path) == {"fetch_videos": {"0000": gone}}
    assert not path.exists()
    found = rows(fetch_videos("h", config(5), "0000", datasets=tmp_path))
    assert found["videos/gone.mp4"]["status"] == "ok"
    assert str(found["videos/late.mp4"]["reason"]).startswith("download failed")
    assert server.requests == Counter({"one": 1, "two": 1, "gone": 2, "late": 2})


def test_only_shards_with_failures_are_tried_again(tmp_path: Path, server: Server) -> None:
    names = [f"video{number}" for number in range(8)]
    shards = {name: shard_of(f"videos/{name}.mp4", 2) for name in names}
    assert set(shards.values()) == {"0000", "0001"}
    server.videos = {name: b"x" for name in names if shards[name] == "0000"}
    write_metadata(tmp_path, server, *names)
    paths = [fetch_videos("h", config(8, 2), shard, datasets=tmp_path) for shard in ("0000", "0001")]
    failed = {row["clip_id"] for row in rows(paths[1]).values()}
    assert len(failed) == sum(shard == "0001" for shard in shards.values())
    assert forget_failed("h", config(8, 2), datasets=tmp_path) == {"fetch_videos": {"0001": failed}}
    assert [path.exists() for path in paths] == [True, False]
    assert forget_failed("h", config(8, 2), datasets=tmp_path) == {}


def test_clips_of_downloads_are_ingested_with_their_captions(tmp_path: Path, server: Server) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (30, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.mp4", frames, 24)
    server.videos = {"one": (tmp_path / "clip.mp4").read_bytes()}
    write_metadata(tmp_path, server, "one", "gone")
    fetch_videos("h", config(), "0000", datasets=tmp_path)
    made = read_manifest(ingest("h", config(), "0000", datasets=tmp_path), INGEST_COLUMNS)
    by_key = {row["source_key"]: row for row in made}
    assert by_key["videos/one.mp4"]["num_frames"] == 18  # 0.75 s of 24 frames a second
    assert by_key["videos/gone.mp4"]["status"] == "unusable"
    captions("h", config(), "0000", datasets=tmp_path)
    [clip] = [row["clip_id"] for row in made if row["status"] == "ok"]
    assert video_path(tmp_path / "h", clip).is_file()
    assert (tmp_path / "h/metas" / f"{clip}.txt").read_text() == "About one.\n"


def test_a_full_disk_is_not_the_videos_fault(
    tmp_path: Path, server: Server, library: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_url: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_metadata(tmp_path, server, "one")
    server.videos = {"one": b"1"}
    with monkeypatch.context() as patch:
        patch.setattr(library, "YouTube", full)
        with pytest.raises(OSError, match=r"No space left.*one\.mp4"):
            fetch_videos("h", config(), "0000", datasets=tmp_path)
    assert rows(fetch_videos("h", config(), "0000", datasets=tmp_path))["videos/one.mp4"]["status"] == "ok"


@pytest.mark.parametrize(
    "reason",
    [
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
    ],
    ids=lambda reason: type(reason).__name__,
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_an_outage_is_not_the_videos_fault(
    tmp_path: Path,
    server: Server,
    library: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    reason: OSError,
    is_wrapped: bool,
) -> None:
    def unreachable(_url: str) -> None:
        if not is_wrapped:
            raise urllib.error.URLError(reason)
        try:
            raise reason
        except OSError:
            raise sys.modules["pytubefix.exceptions"].PytubeFixError("no page")  # noqa: B904 - as the library does

    write_metadata(tmp_path, server, "one")
    server.videos = {"one": b"1"}
    with monkeypatch.context() as patch:
        patch.setattr(library, "YouTube", unreachable)
        with pytest.raises(WorldtuneError, match=r"/one cannot be asked for, since the network cannot be reached"):
            fetch_videos("h", config(), "0000", datasets=tmp_path)
    assert rows(fetch_videos("h", config(), "0000", datasets=tmp_path))["videos/one.mp4"]["status"] == "ok"


@pytest.mark.parametrize(("content", "reason"), [(b"", "0 of 0 bytes"), (b"1" * 80, "50 of 80 bytes")])
def test_what_has_not_arrived_whole_is_no_video(tmp_path: Path, server: Server, content: bytes, reason: str) -> None:
    server.videos = {"torn": content}
    write_metadata(tmp_path, server, "torn")
    [row] = rows(fetch_videos("h", config(), "0000", datasets=tmp_path)).values()
    assert row["reason"] == f"download failed: {reason} have arrived"
    assert list((tmp_path / "h/source/videos").iterdir()) == []


def test_a_connection_that_breaks_is_taken_up_where_it_stopped(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(youtube, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(youtube, "PIECE_BYTES", 400)
    monkeypatch.setattr(youtube, "CHUNK_BYTES", 100)
    content = np.random.default_rng(0).bytes(1000)
    server.videos = {"one": content}
    server.break_after = [400, 250]
    server.statuses = []
    write_metadata(tmp_path, server, "one")
    assert rows(fetch_videos("h", config(), "0000", datasets=tmp_path))["videos/one.mp4"]["num_bytes"] == 1000
    assert (tmp_path / "h/source/videos/one.mp4").read_bytes() == content
    assert server.ranges == ["bytes=0-399", "bytes=400-799", "bytes=650-999"]
    assert list((tmp_path / "h/source/.parts").iterdir()) == []


def test_the_next_job_takes_up_what_a_killed_one_left(tmp_path: Path, server: Server) -> None:
    content = np.random.default_rng(0).bytes(1000)
    server.videos = {"one": content}
    write_metadata(tmp_path, server, "one")
    parts = tmp_path / "h/source/.parts"
    parts.mkdir()
    (parts / "one.18.1000.part").write_bytes(content[:300])
    (parts / "one.22.7000.part").write_bytes(b"of another format")
    fetch_videos("h", config(), "0000", datasets=tmp_path)
    assert (tmp_path / "h/source/videos/one.mp4").read_bytes() == content
    assert server.ranges == ["bytes=300-999"]
    assert list(parts.iterdir()) == []


def test_a_busy_server_is_asked_again_and_a_forbidden_video_is_not(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(youtube, "WAITS_S", (0.0, 0.0))
    server.videos = {"one": b"1" * 10}
    write_metadata(tmp_path, server, "one")
    server.statuses = [503, 429]
    assert rows(fetch_videos("h", config(), "0000", datasets=tmp_path))["videos/one.mp4"]["status"] == "ok"
    assert len(server.ranges) == 3
    for statuses, reason in (([500] * 3, "HTTP Error 500: Internal Server Error, 3 times"), ([403], "HTTP Error 403")):
        server.videos["one"] += b"1"
        server.statuses, server.ranges = list(statuses), []
        (tmp_path / "h/source/videos/one.mp4").unlink(missing_ok=True)
        forget_failed("h", config(), datasets=tmp_path)
        [row] = rows(fetch_videos("h", config(), "0000", datasets=tmp_path)).values()
        assert reason in str(row["reason"])
        assert len(server.ranges) == len(statuses)


def test_a_shard_of_which_too_little_arrives_fails_and_keeps_what_arrived(tmp_path: Path, server: Server) -> None:
    server.videos = {"one": b"1"}
    write_metadata(tmp_path, server, "one", "gone", "silent", "late")
    wanted = config().model_copy(update={"min_success": 0.5})
    for _ in range(2):
        with pytest.raises(WorldtuneError, match="1 of 4 videos have arrived") as caught:
            fetch_videos("h", wanted, "0000", datasets=tmp_path)
        assert "the share of 0.5" in str(caught.value)
        assert "2 x download failed: HTTPError: HTTP Error 404" in str(caught.value)
    assert server.requests == Counter({"one": 1, "gone": 1, "late": 1})
    assert not (tmp_path / "h/manifests/fetch_videos/0000.parquet").exists()
    assert len(rows(fetch_videos("h", config(), "0000", datasets=tmp_path))) == 4
    assert server.requests["one"] == 1


def test_a_missing_library_says_so(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write_metadata(tmp_path, server, "one")
    monkeypatch.setitem(sys.modules, "pytubefix", None)
    with pytest.raises(WorldtuneError, match="pytubefix is not installed"):
        fetch_videos("h", config(), "0000", datasets=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_id": "../../evil"}, r"line 1: video_id is '\.\./\.\./evil'"),
        ({"url": "file:///etc/passwd"}, "line 1: url is"),
        ({"span_start": "1 minute"}, "line 1: span_start is '1 minute'"),
        ({"span_end": "0:00:00.000"}, "line 1: span_end is not after span_start"),
        ({"span_end": f"{'9' * 400}:00:01"}, "line 1: span_end is '9{99}\\.\\.\\.; expected"),
        ({"url": "https://["}, r"line 1: url is 'https://\['"),
    ],
)
def test_wrong_metadata_are_named(tmp_path: Path, server: Server, changes: dict[str, str], message: str) -> None:
    path = write_metadata(tmp_path, server, "one", **changes)
    with pytest.raises(WorldtuneError, match=message):
        listed_clips(path, 1)


def test_lines_that_are_no_json_and_other_kinds_are_named(tmp_path: Path, server: Server) -> None:
    path = write_metadata(tmp_path, server, "one")
    path.write_text(path.read_text() + "{\n")
    assert len(listed_clips(path, 1)) == 1
    with pytest.raises(WorldtuneError, match="no JSON"):
        listed_clips(path, 2)
