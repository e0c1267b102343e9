"""Uploads by the real client to a small server on this machine that speaks the hub's protocol."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from worldtune.checkpoint.push import plan_push, push
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import sha256_file, write_json
from worldtune.common.hub import Hub

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 100


@dataclass
class FakeHub:
    """What a hub has received."""

    refuse: int = 0
    """Status that every request is answered with; 0 serves."""
    created: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Files of the newest commit."""
    cards: list[str] = field(default_factory=list)
    """Model cards that were sent to be looked through."""
    tokens: set[str] = field(default_factory=set)
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's protocol that an upload needs."""

    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.serve(b"")

    def do_POST(self) -> None:
        self.serve(self.body())

    def do_PUT(self) -> None:
        self.fake.stored[self.path.removeprefix("/store/")] = self.body()
        self.answer({}, ETag='"0"')

    def serve(self, body: bytes) -> None:
        self.fake.tokens.add(self.headers.get("Authorization", ""))
        if self.fake.refuse:
            self.answer({"error": "not for you"}, self.fake.refuse)
        elif self.path == "/api/repos/create":
            request = json.loads(body)
            self.fake.created.append(request)
            identifier = f"{request.get('organization') or 'me'}/{request['name']}"
            self.answer({"url": f"{self.fake.endpoint}/{identifier}", "name": identifier})
        elif self.path == "/api/validate-yaml":
            self.fake.cards.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[\w/-]+/preupload/main", self.path):
            files = [
                {"path": file["path"], "uploadMode": self.mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.fake.endpoint}/store/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif re.fullmatch(r"/api/models/[\w/-]+/commit/main", self.path):
            self.commit([json.loads(line) for line in body.splitlines()])
        elif "/api/models/" in self.path:
            self.answer({"id": "org/name", "sha": COMMIT, "siblings": []})
        else:
            self.answer({"error": f"unknown address {self.path}"}, 500)

    def mode(self, name: str) -> str:
        return "lfs" if name.endswith((".safetensors", ".pt")) else "regular"

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "lfsFile":
                self.fake.files[value["path"]] = self.fake.stored[value["oid"]]
            elif line["key"] == "file":
                self.fake.files[value["path"]] = base64.b64decode(value["content"])
        self.answer(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.fake.endpoint}/org/name/commit/{COMMIT}"}
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    # Its own protocol goes to another service; the hub still takes the one of Git LFS.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    fake.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """An export with what Snakemake and a person leave beside it."""
    model = tmp_path / "results/my_run/model"
    (model / "raw").mkdir(parents=True)
    (model / "control.safetensors").write_bytes(WEIGHTS)
    (model / "raw/control.safetensors").write_bytes(WEIGHTS[::-1])
    (model / "edge_control.pt").write_bytes(WEIGHTS[1:])
    write_json(model / "config.json", {"format": 1})
    hashes = {str(path.relative_to(model)): sha256_file(path) for path in sorted(model.rglob("*")) if path.is_file()}
    write_json(model / "provenance.json", {"identity": "abcd", "step": 60, "files": hashes})
    write_json(model.parent / "manifest.json", {"identity": "abcd", "final_step": 60})
    (model / "README.md").write_text("# my_run\n")
    (model / ".snakemake_timestamp").write_bytes(b"")
    (model / "stray.txt").write_text("not of the export")
    return model.parent


EXPORTED = [
    "README.md",
    "config.json",
    "control.safetensors",
    "edge_control.pt",
    "provenance.json",
    "raw/control.safetensors",
]


def test_exactly_the_export_arrives(fake: FakeHub, run_dir: Path) -> None:
    address = push(plan_push(run_dir, "org/name"), hub=Hub(fake.endpoint, token="hf_test"))
    assert address == f"{fake.endpoint}/org/name/commit/{COMMIT}"
    assert sorted(fake.files) == EXPORTED
    for name, content in fake.files.items():
        assert content == (run_dir / "model" / name).read_bytes(), name
    assert set(fake.stored) == {
        hashlib.sha256(content).hexdigest() for content in (WEIGHTS, WEIGHTS[::-1], WEIGHTS[1:])
    }
    [created] = fake.created
    assert (created["organization"], created["name"]) == ("org", "name")
    assert created.get("visibility") == "private" or created.get("private") is True
    assert set(fake.cards) == {"# my_run\n"}
    assert "Bearer hf_test" in fake.tokens


def test_without_a_name_the_run_gives_it(fake: FakeHub, run_dir: Path) -> None:
    push(plan_push(run_dir), hub=Hub(fake.endpoint, token="hf_test"), private=False)
    [created] = fake.created
    assert (created.get("organization"), created["name"]) == (None, "my_run")
    assert "private" not in (created.get("visibility"), created.get("private") and "private")
    assert sorted(fake.files) == EXPORTED


def test_a_plan_shows_files_sizes_and_card(run_dir: Path) -> None:
    text = plan_push(run_dir, "org/name").describe()
    assert "-> org/name" in text
    assert "attempt abcd, step 60" in text
    assert "25,600  control.safetensors" in text
    assert "# my_run" in text
    assert "snakemake" not in text


@pytest.mark.parametrize(("status", "message"), [(401, "token is not valid"), (403, "may not write"), (500, "later")])
def test_refusals_are_explained(
    fake: FakeHub, run_dir: Path, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.refuse = status
    with pytest.raises(WorldtuneError, match=message):
        push(plan_push(run_dir, "org/name"), hub=Hub(fake.endpoint, token="hf_test"))
    assert fake.files == {}


def test_no_token_and_no_network_are_explained(run_dir: Path) -> None:
    plan = plan_push(run_dir, "org/name")
    with pytest.raises(WorldtuneError, match="no token is set"):
        push(plan, hub=Hub("http://127.0.0.1:9", token=False))
    with pytest.raises(WorldtuneError, match="broke off"):
        push(plan, hub=Hub("http://127.0.0.1:9", token="hf_test"))


def test_a_missing_or_damaged_export_is_named(run_dir: Path) -> None:
    with pytest.raises(WorldtuneError, match=r"other/model holds no export.*snakemake"):
        plan_push(run_dir.parent / "other")
    with pytest.raises(WorldtuneError, match="no name of a repository"):
        plan_push(run_dir, "a/b/c")
    (run_dir / "model/config.json").write_text("{}")
    with pytest.raises(WorldtuneError, match=r"config\.json is not as it was exported"):
        plan_push(run_dir)
    (run_dir / "model/config.json").unlink()
    with pytest.raises(WorldtuneError, match=r"config\.json is missing"):
        plan_push(run_dir)


@pytest.mark.parametrize("newer", [{"identity": "efgh", "final_step": 60}, {"identity": "abcd", "final_step": 80}])
def test_an_export_of_other_weights_than_the_runs_is_refused(run_dir: Path, newer: dict[str, Any]) -> None:
    write_json(run_dir / "manifest.json", newer)
    named = rf"attempt {newer['identity']}, step {newer['final_step']}"
    with pytest.raises(WorldtuneError, match=rf"model is of attempt abcd, step 60, but .*manifest\.json .* {named}"):
        plan_push(run_dir)
    (run_dir / "manifest.json").unlink()
    with pytest.raises(WorldtuneError, match=r"manifest\.json does not exist"):
        plan_push(run_dir)


def test_the_script_sends_nothing_unless_told(fake: FakeHub, run_dir: Path) -> None:
    def script(*arguments: str, offline: str = "0") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, ROOT / "src/scripts/push.py", "--run", "my_run", "--results", run_dir.parent, *arguments],
            env=os.environ
            | {"HF_ENDPOINT": fake.endpoint, "HF_HOME": str(run_dir), "HF_TOKEN": "hf_env"}
            | {"HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    shown = script("--repo", "org/name")
    assert shown.returncode == 0, shown.stderr
    assert "nothing was sent" in shown.stdout
    assert fake.tokens == set()
    offline = script("--repo", "org/name", "--yes", offline="1")
    assert offline.returncode == 1
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert "Traceback" not in offline.stderr
    sent = script("--repo", "org/name", "--yes")
    assert sent.returncode == 0, sent.stderr
    assert f"pushed: {fake.endpoint}/org/name/commit/{COMMIT}" in sent.stdout
    assert sorted(fake.files) == EXPORTED
    assert "HTTP Request" not in sent.stderr
    assert "Bearer hf_env" in fake.tokens
