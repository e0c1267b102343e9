"""A stand-in for the server of W&B: it keeps the history and the summary of one run, as far as its client asks."""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class WandbServer(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.upserts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        entity = {"id": "1", "name": "me"}
        if query.startswith("query Viewer"):
            return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if query.startswith("query RunResumeStatus"):
            return {"model": {"id": "1", "name": "worldtune", "entity": entity, "bucket": self._run()}}
        if query.startswith("mutation UpsertBucket"):
            self.upserts.append(variables)
            project = {"name": "worldtune", "entity": entity}
            bucket = {"id": "2", "name": variables["name"], "displayName": "toy", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": len(self.upserts) == 1}}
        if query.startswith("mutation CreateRunFiles"):
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "abcd", "uploadHeaders": [], "files": files}}
        return {}

    def _run(self) -> dict[str, Any] | None:
        if not self.history:
            return None
        return {
            "id": "2",
            "name": "abcd",
            "displayName": "toy",
            "summaryMetrics": json.dumps(self.summary),
            "logLineCount": 0,
            "historyLineCount": len(self.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(self.history[-1])]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            # Without this key a run was made, but has not begun.
            "wandbConfig": '{"t": 1}',
        }

    def take(self, files: dict[str, Any]) -> None:
        if "wandb-history.jsonl" in files:
            part = files["wandb-history.jsonl"]
            self.history[part["offset"] :] = map(json.loads, part["content"])
        if "wandb-summary.json" in files:
            self.summary |= json.loads(files["wandb-summary.json"]["content"][-1])


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            request = json.loads(body)
            answer = {"data": self.server.answer(request["query"].strip(), request.get("variables") or {})}
        elif self.path.endswith("/file_stream"):
            self.server.take(json.loads(body).get("files") or {})
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
