"""A server on this machine that speaks the OpenAI protocol as far as captioning needs it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | int | bytes | dict[str, Any] | None
"""An answer's text, a status without one, the body of a response, a whole message, or None: no answer in time."""


class ChatService:
    """Answers by `reply`, a function of the request's payload; `requests` lists what was asked."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Reply] = lambda payload: "A thing moves."
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.model_status = 200
        self.address = ""
        self.released = threading.Event()


@contextmanager
def chat_service() -> Iterator[ChatService]:
    state = ChatService()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def send(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send(state.model_status if self.path == "/v1/models" else 404, b"{}")

        def do_POST(self) -> None:
            payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self.send(404, b"")
                return
            with lock:
                state.requests.append(payload)
                state.keys.append(self.headers["Authorization"])
                reply = state.reply(payload)
            if reply is None:
                state.released.wait(10)
            elif isinstance(reply, int):
                self.send(reply, json.dumps({"error": f"this is a {reply}"}).encode())
            elif isinstance(reply, bytes):
                self.send(200, reply)
            else:
                choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
                choice |= reply if isinstance(reply, dict) else {}
                self.send(200, json.dumps({"choices": [choice]}).encode())

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    state.address = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    yield state
    state.released.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()
