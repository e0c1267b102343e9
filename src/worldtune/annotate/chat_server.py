"""Answers about videos by a server that speaks the OpenAI protocol (vLLM, SGLang and others), over HTTP.

What fails for a while (no connection, no answer in time, status 429 or 5xx) is asked again, after waits that double.
Where that does not help, the server is asked for its list of models: if it answers, only this clip has no answer, else
the server is down and nothing more is asked of it.

A client of its own, and not huggingface_hub's: that one refuses to work where the hub is switched off, sends the hub's
token to any server, and rewrites the schema of an answer into a form that vLLM passes over.
"""

import base64
import io
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Self

import httpx2
from PIL import Image

from worldtune.annotate.answers import Answer, Question, RefusedError, SampledClip, Sampling, UnansweredError
from worldtune.common.errors import WorldtuneError

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
PROBE_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 20.0
JPEG_QUALITY = 90
CLIP_STATUS = frozenset({400, 413, 422})
"""Status codes that say that this request cannot be answered."""
BUSY_STATUS = frozenset({429, 502, 503, 504})
"""Status codes that say that the server is not ready, whatever is asked."""
PASSING_STATUS = BUSY_STATUS | {408, 409, 425, 500}
SHOWN_CHARACTERS = 300

logger = logging.getLogger(__name__)


class ServerError(WorldtuneError):
    """The server is down, or refuses to work for us at all."""


class _PassingError(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, text: str, *, is_busy: bool = False) -> None:
        super().__init__(text)
        self.is_busy = is_busy


class ChatServer:
    """A server's model; its methods may be called by several threads."""

    def __init__(
        self,
        address: str,
        model: str,
        *,
        api_key: str = "",
        timeout_s: float,
        retries: int,
        max_frame_pixels: int,
        sends_video: bool = False,
    ) -> None:
        """Make a client; nothing is sent yet.

        Args:
            address: what the server's paths begin with, such as http://localhost:8000/v1.
            model: the name that the server knows the model by.
            api_key: sent as a bearer token; empty where the server asks for none.
            timeout_s: seconds to wait for an answer.
            retries: how often a request that failed for a while is sent again.
            max_frame_pixels: larger frames are made smaller before they are sent.
            sends_video: whether the clip's file is sent, and not its sampled frames.
        """
        self.address = address.rstrip("/")
        self.model = model
        self.retries = retries
        self.max_frame_pixels = max_frame_pixels
        self.sends_video = sends_video
        self._closing = threading.Event()
        self._reason = f"{self.address} is asked no more"
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        timeout = httpx2.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        self._client = httpx2.Client(headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        """Return itself; connections are closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections; requests that wait to be sent again give up."""
        self._closing.set()
        self._client.close()

    def answer(self, clips: Sequence[SampledClip], question: Question, sampling: Sampling | None) -> list[Answer]:
        """Return the model's answer about each clip, asked one after another.

        Raises:
            RefusedError: the server says that it cannot answer this.
            UnansweredError: the server lives, but has not answered this.
            ServerError: the server is down, or refuses to work for us.
        """
        return [self._answer(clip, question, sampling) for clip in clips]

    def _answer(self, clip: SampledClip, question: Question, sampling: Sampling | None) -> Answer:
        payload: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": self._content(clip, question.prompt)}],
            "max_tokens": question.max_new_tokens,
            "temperature": 0.0,
        }
        if sampling is not None:
            payload |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        if question.schema is not None:
            schema = {"name": "caption", "schema": question.schema}
            payload["response_format"] = {"type": "json_schema", "json_schema": schema}
        for attempt in range(self.retries + 1):
            if self._closing.is_set():
                raise ServerError(self._reason)
            try:
                return self._request(payload)
            except _PassingError as error:
                last = error
            if attempt < self.retries:
                wait_s = min(FIRST_WAIT_S * 2**attempt, LONGEST_WAIT_S)
                logger.info("%s: %s; asked again in %.1f s", self.address, last, wait_s)
                self._closing.wait(wait_s)
        if last.is_busy or not self._is_alive():
            self._give_up(f"{self.address} does not answer: {last}. Start it, or wait until it is less busy")
        raise UnansweredError(f"the server gives none: {last}") from last

    def _content(self, clip: SampledClip, prompt: str) -> list[dict[str, Any]]:
        text = {"type": "text", "text": prompt}
        if self.sends_video:
            data = base64.b64encode(clip.video.read_bytes()).decode()
            return [{"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}, text]
        parts: list[dict[str, Any]] = []
        for frame, time_s in zip(clip.frames, clip.times_s, strict=True):
            url = f"data:image/jpeg;base64,{base64.b64encode(self._jpeg(frame)).decode()}"
            # The times are written as Qwen3-VL knows them from videos.
            parts.append({"type": "text", "text": f"<{time_s:.1f} seconds>"})
            parts.append({"type": "image_url", "image_url": {"url": url}})
        return [*parts, text]

    def _jpeg(self, frame: Any) -> bytes:
        picture = Image.fromarray(frame)
        pixels = picture.width * picture.height
        if pixels > self.max_frame_pixels:
            scale = math.sqrt(self.max_frame_pixels / pixels)
            size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
        return file.getvalue()

    def _request(self, payload: dict[str, Any]) -> Answer:
        with _passing_errors():
            response = self._client.post(f"{self.address}/chat/completions", json=payload)
        status = response.status_code
        said = f"status {status}: {' '.join(response.text.split())[:SHOWN_CHARACTERS]}"
        if status in PASSING_STATUS:
            raise _PassingError(said, is_busy=status in BUSY_STATUS)
        if status in CLIP_STATUS:
            raise RefusedError(f"the server refuses the request: {said}")
        if status != httpx2.codes.OK:
            self._give_up(
                f"{self.address} refuses model {self.model!r}: {said}. Correct captioner.server, model or api_key_env"
            )
        return _read_answer(response)

    def _is_alive(self) -> bool:
        """Return whether the server answers at all."""
        try:
            return self._client.get(f"{self.address}/models", timeout=PROBE_TIMEOUT_S).status_code < 500
        except httpx2.HTTPError as error:
            logger.info("%s: %s", self.address, error)
            return False

    def _give_up(self, reason: str) -> NoReturn:
        # The other threads need not find out one by one.
        self._reason = f"{reason}; then run the same command again: finished clips are kept."
        self._closing.set()
        raise ServerError(self._reason)


@contextmanager
def _passing_errors() -> Iterator[None]:
    """Turn errors of the connection into those that may pass."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise _PassingError(f"no answer in time ({type(error).__name__})") from error
    except httpx2.RequestError as error:
        raise _PassingError(f"{error or 'the connection broke'} ({type(error).__name__})") from error


def _read_answer(response: httpx2.Response) -> Answer:
    """Return the answer in a response.

    Raises:
        _PassingError: the response is none of a chat.
    """
    try:
        choice = response.json()["choices"][0]
        text, end = choice["message"]["content"], choice.get("finish_reason")
        if not isinstance(text, str):
            raise TypeError(f"content is {text!r}")
    # RecursionError: JSON may be nested without end.
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _PassingError(f"the response is none of a chat ({error!r})"[:SHOWN_CHARACTERS]) from error
    return Answer(text=text.strip(), is_whole=end != "length")
