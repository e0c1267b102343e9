"""Downloads against a small server on this machine that speaks the hub's protocol."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from full_disk import error_of, leave_free

from worldtune.checkpoint import hub as hub_module
from worldtune.checkpoint.catalogue import Catalogue, load_catalogue
from worldtune.checkpoint.hub import LOCK_FILE, fetch, write_file_list
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.common.hub import Hub

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"
WEIGHTS = bytes(range(256)) * 1000
"""256,000 bytes; served as a large (LFS) file."""
CONFIG = b'{"d_model": 8}'

CATALOGUE = """
[[repository]]
id = "owner/model"
purpose = "test"
gate = "the test licence"
[repository.files]
"base.pt" = { purpose = "base" }
"absent.pt" = { purpose = "not there" }

[[repository]]
id = "owner/text"
purpose = "test"
[repository.folder]
required = ["config.json"]
optional = ["tokenizer.json"]
weights = ["model*.safetensors*", "pytorch_model*.bin*"]

[[repository]]
id = "owner/made"
kind = "generated"
purpose = "test"
[repository.files]
"base.pt" = { purpose = "base" }
"""


@dataclass
class FakeHub:
    """What the server has and how it behaves."""

    repositories: dict[str, dict[str, bytes]]
    large: set[str]
    commit: str = COMMIT
    gated: dict[str, int] = field(default_factory=dict)
    break_after: int | None = None
    """Bytes after which one response is cut off; the requests that follow get 503."""
    down: bool = False
    announced_sha256: str | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    endpoint: str = ""

    def downloads(self) -> list[dict[str, str]]:
        return [headers for path, headers in self.requests if "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's protocol that a download needs."""

    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.fake.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
        if self.fake.down:
            self.refuse(503, "", "out of order")
        elif match := re.fullmatch(r"/api/models/([\w-]+/[\w-]+)/revision/(\w+)", path):
            self.listing(*match.groups())
        elif match := re.fullmatch(r"/([\w-]+/[\w-]+)/resolve/(\w+)/(.+)", path):
            self.content(*match.groups())
        else:
            self.refuse(404, "RepoNotFound", "unknown address")

    def listing(self, repository: str, revision: str) -> None:
        files = self.fake.repositories.get(repository)
        if files is None:
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in ("main", self.fake.commit, COMMIT):
            self.refuse(404, "RevisionNotFound", "Invalid rev id")
        else:
            commit = self.fake.commit if revision == "main" else revision
            siblings = [self.sibling(name, content) for name, content in files.items()]
            body = json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def sibling(self, name: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
        if name in self.fake.large:
            sha256 = self.fake.announced_sha256 or hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
        return entry

    def content(self, repository: str, commit: str, name: str) -> None:
        status = self.fake.gated.get(repository)
        if status is not None and "authorization" not in self.fake.requests[-1][1]:
            self.refuse(status, "GatedRepo", "Access to model is restricted")
            return
        content = self.fake.repositories[repository][name]
        start = 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(match[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.fake.break_after is not None:
            self.wfile.write(content[start : start + self.fake.break_after])
            self.fake.break_after, self.fake.down = None, True
            self.close_connection = True
        else:
            self.wfile.write(content[start:])


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    files = {
        "owner/model": {"base.pt": WEIGHTS, ".gitattributes": b"x"},
        "owner/text": {"config.json": CONFIG, "pytorch_model.bin": WEIGHTS, "tf_model.h5": WEIGHTS, "README.md": b"#"},
    }
    fake = FakeHub(files, large={"base.pt", "pytorch_model.bin", "model.safetensors", "tf_model.h5"})
    handler = type("BoundHandler", (Handler,), {"fake": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    path = tmp_path / "catalogue.toml"
    path.write_text(CATALOGUE)
    return load_catalogue(path)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


def anonymous(fake: FakeHub) -> Hub:
    return Hub(endpoint=fake.endpoint, token=False)


def test_a_file_is_stored_linked_and_locked(
    fake: FakeHub, catalogue: Catalogue, checkpoints: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        path = fetch(catalogue.find("owner/model/base.pt"), checkpoints, hub=anonymous(fake))
    assert path == checkpoints / "owner/model/base.pt"
    assert path.read_bytes() == WEIGHTS
    assert path.samefile(checkpoints / ".store/owner/model" / COMMIT / "base.pt")
    assert "not pinned" in caplog.text
    assert COMMIT in caplog.text
    locked = read_json(checkpoints / LOCK_FILE)["repositories"]["owner/model"]
    assert locked["commit"] == COMMIT
    assert locked["files"] == {"base.pt": {"sha256": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}}


def test_a_vanished_output_comes_back_without_the_network(
    fake: FakeHub, catalogue: Catalogue, checkpoints: Path
) -> None:
    request = catalogue.find("owner/model/base.pt")
    fetch(request, checkpoints, hub=anonymous(fake)).unlink()
    fake.requests.clear()
    assert fetch(request, checkpoints, hub=anonymous(fake)).read_bytes() == WEIGHTS
    assert fake.requests == []


def test_later_fetches_follow_the_recorded_commit(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    request = catalogue.find("owner/model/base.pt")
    fetch(request, checkpoints, hub=anonymous(fake)).unlink()
    shutil.rmtree(checkpoints / ".store")
    fake.commit = LATER
    fetch(request, checkpoints, hub=anonymous(fake))
    assert any(path.endswith(f"/resolve/{COMMIT}/base.pt") for path, _ in fake.requests)
    assert read_json(checkpoints / LOCK_FILE)["repositories"]["owner/model"]["commit"] == COMMIT


def test_content_that_differs_from_the_lock_is_refused(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    request = catalogue.find("owner/model/base.pt")
    fetch(request, checkpoints, hub=anonymous(fake)).unlink()
    shutil.rmtree(checkpoints / ".store")
    fake.repositories["owner/model"]["base.pt"] = WEIGHTS[::-1]
    with pytest.raises(WorldtuneError, match=rf"base\.pt has hash .*{re.escape(LOCK_FILE)} says"):
        fetch(request, checkpoints, hub=anonymous(fake))
    assert not request.output(checkpoints).exists()


def test_a_damaged_store_is_fetched_again(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    request = catalogue.find("owner/model/base.pt")
    path = fetch(request, checkpoints, hub=anonymous(fake))
    path.write_bytes(b"\0" * len(WEIGHTS))
    assert fetch(request, checkpoints, hub=anonymous(fake)).read_bytes() == WEIGHTS


def test_a_folder_takes_what_it_needs_and_lists_it_last(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    path = fetch(catalogue.find("owner/text"), checkpoints, hub=anonymous(fake))
    assert path == checkpoints / "owner/text/files.json"
    assert read_json(path) == {
        "config.json": hashlib.sha256(CONFIG).hexdigest(),
        "pytorch_model.bin": hashlib.sha256(WEIGHTS).hexdigest(),
    }
    assert sorted(file.name for file in path.parent.iterdir()) == ["config.json", "files.json", "pytorch_model.bin"]
    fake.requests.clear()
    fetch(catalogue.find("owner/text"), checkpoints, hub=anonymous(fake))
    assert fake.requests == []


def test_safetensors_are_preferred(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    fake.repositories["owner/text"]["model.safetensors"] = WEIGHTS
    path = fetch(catalogue.find("owner/text"), checkpoints, hub=anonymous(fake))
    assert sorted(read_json(path)) == ["config.json", "model.safetensors"]


def test_an_interrupted_download_goes_on_where_it_stopped(
    fake: FakeHub, catalogue: Catalogue, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only whole chunks are kept, and the usual chunk is larger than the file.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    fake.break_after = 100_000
    request = catalogue.find("owner/model/base.pt")
    with pytest.raises(WorldtuneError, match="answered with status 503"):
        fetch(request, checkpoints, hub=anonymous(fake))
    assert not request.output(checkpoints).exists()
    partial = checkpoints / ".store/owner/model" / COMMIT / "base.pt.part"
    kept = partial.stat().st_size
    assert 0 < kept <= 100_000
    fake.down = False
    fake.requests.clear()
    assert fetch(request, checkpoints, hub=anonymous(fake)).read_bytes() == WEIGHTS
    assert [headers["range"] for headers in fake.downloads()] == [f"bytes={kept}-"]
    assert not partial.exists()


@pytest.mark.parametrize("name", ["base.pt", "config.json"])
def test_a_wrong_hash_is_refused_and_removed(
    fake: FakeHub, catalogue: Catalogue, checkpoints: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "base.pt":
        request = catalogue.find("owner/model/base.pt")
        fake.announced_sha256 = "f" * 64
    else:
        request = catalogue.find("owner/text")
        monkeypatch.setattr(hub_module, "git_sha1", lambda path: "0" * 40)
    with pytest.raises(WorldtuneError, match=f"{name} has hash .* but the hub"):
        fetch(request, checkpoints, hub=anonymous(fake))
    assert not list(checkpoints.rglob(f"{name}*.part"))
    assert not request.output(checkpoints).exists()


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_what_to_accept(
    fake: FakeHub, catalogue: Catalogue, checkpoints: Path, status: int
) -> None:
    fake.gated["owner/model"] = status
    with pytest.raises(WorldtuneError) as caught:
        fetch(catalogue.find("owner/model/base.pt"), checkpoints, hub=anonymous(fake))
    for part in (
        "owner/model is gated",
        "no token is set",
        f"{fake.endpoint}/owner/model",
        "the test licence",
        "HF_TOKEN",
    ):
        assert part in str(caught.value)


def test_a_token_opens_a_gated_repository(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    fake.gated["owner/model"] = 403
    hub = Hub(endpoint=fake.endpoint, token="hf_test")
    assert fetch(catalogue.find("owner/model/base.pt"), checkpoints, hub=hub).read_bytes() == WEIGHTS
    assert [headers["authorization"] for headers in fake.downloads()] == ["Bearer hf_test"]


def test_missing_things_are_named(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"owner/model has no absent\.pt; it has .*base\.pt"):
        fetch(catalogue.find("owner/model/absent.pt"), checkpoints, hub=anonymous(fake))
    del fake.repositories["owner/model"]
    with pytest.raises(WorldtuneError, match="owner/model does not exist or may not be seen"):
        fetch(catalogue.find("owner/model/base.pt"), checkpoints, hub=anonymous(fake))
    del fake.repositories["owner/text"]["pytorch_model.bin"]
    with pytest.raises(WorldtuneError, match=r"no model\*\.safetensors\* or pytorch_model"):
        fetch(catalogue.find("owner/text"), checkpoints, hub=anonymous(fake))


def test_no_network_is_explained(catalogue: Catalogue, checkpoints: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"owner/model/base\.pt .*HF_TOKEN"):
        fetch(catalogue.find("owner/model/base.pt"), checkpoints, hub=Hub("http://127.0.0.1:9", token=False))


def test_a_full_disk_is_found_before_the_download(
    fake: FakeHub, catalogue: Catalogue, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(checkpoints)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(WorldtuneError, match=r"but 0\.0 GB are free"):
        fetch(catalogue.find("owner/model/base.pt"), checkpoints, hub=anonymous(fake))
    assert fake.downloads() == []


def test_a_disk_that_fills_up_during_the_download_is_no_matter_of_the_network(
    fake: FakeHub, catalogue: Catalogue, full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "SPARE_BYTES", 0)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    usage = shutil.disk_usage(full_disk)
    # Another program takes the space after it was looked at.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**12))
    leave_free(full_disk, 64 * 1024)
    request = catalogue.find("owner/model/base.pt")
    message = error_of(lambda: fetch(request, full_disk, hub=anonymous(fake)))
    partial = full_disk / ".store/owner/model" / COMMIT / "base.pt.part"
    assert message.startswith(f"error: {partial}: No space left on device. Free space")
    assert "network" not in message
    assert not request.output(full_disk).exists()
    kept = partial.stat().st_size
    assert 0 < kept < len(WEIGHTS)
    leave_free(full_disk, 10**6)
    fake.requests.clear()
    assert fetch(request, full_disk, hub=anonymous(fake)).read_bytes() == WEIGHTS
    assert [headers["range"] for headers in fake.downloads()] == [f"bytes={kept}-"]


def test_a_name_that_leaves_the_folder_is_refused(fake: FakeHub, catalogue: Catalogue, checkpoints: Path) -> None:
    fake.repositories["owner/text"]["../../evil.json"] = b"{}"
    with pytest.raises(WorldtuneError, match="unsafe name"):
        fetch(catalogue.find("owner/text"), checkpoints, hub=anonymous(fake))


def test_generated_entries_are_not_fetched(catalogue: Catalogue, checkpoints: Path) -> None:
    with pytest.raises(WorldtuneError, match="a rule of the workflow makes it"):
        fetch(catalogue.find("owner/made/base.pt"), checkpoints, hub=Hub("http://127.0.0.1:9", token=False))


def test_a_file_list_hashes_what_it_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(CONFIG)
    path = write_file_list(tmp_path, ["config.json", "big"], {"big": "0" * 64})
    assert read_json(path) == {"config.json": hashlib.sha256(CONFIG).hexdigest(), "big": "0" * 64}


def test_the_script_takes_its_hub_from_the_environment(
    fake: FakeHub, catalogue: Catalogue, checkpoints: Path, tmp_path: Path
) -> None:
    def script(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
        arguments = [name, "--checkpoints", str(checkpoints), "--catalogue", str(tmp_path / "catalogue.toml")]
        return subprocess.run(
            [sys.executable, ROOT / "src/scripts/fetch_checkpoint.py", *arguments],
            env=os.environ | {"HF_ENDPOINT": fake.endpoint, "HF_HOME": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    offline = script("owner/model/base.pt", HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert "Traceback" not in offline.stderr
    done = script("owner/model/base.pt", HF_HUB_OFFLINE="0", HF_TOKEN="hf_env")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == WEIGHTS
    assert fake.downloads()[-1]["authorization"] == "Bearer hf_env"
