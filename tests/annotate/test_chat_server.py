import base64
import io
import itertools

import numpy as np
import pytest
from chat_service import chat_service
from PIL import Image

import worldtune.annotate.chat_server as chat_server
from worldtune.annotate.answers import Answer, Question, RefusedError, SampledClip, Sampling, UnansweredError
from worldtune.annotate.chat_server import ChatServer, ServerError

QUESTION = Question(prompt="What happens?", max_new_tokens=50)


@pytest.fixture
def service():
    with chat_service() as state:
        yield state


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(chat_server, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"the clip's bytes")
    # Smooth, so that JPEG keeps it nearly as it is.
    rows = np.linspace(0, 200, 30, dtype=np.uint8)
    frames = np.stack([np.broadcast_to((rows + shift)[:, None, None], (30, 40, 3)) for shift in (0, 50)])
    return SampledClip(frames=frames, times_s=(0.0, 2.5), video=path)


def ask(service, clip, *, question=QUESTION, sampling=None, **options):
    settings = {"timeout_s": 5.0, "retries": 2, "max_frame_pixels": 10_000}
    with ChatServer(service.address, "qwen", **{**settings, **options}) as server:
        return server.answer([clip], question, sampling)[0]


def replies(*values):
    """A reply for each request; the last one for all that follow."""
    rest = itertools.chain(values, itertools.repeat(values[-1]))
    return lambda payload: next(rest)


def data_of(url):
    kind, _, content = url.partition(";base64,")
    return kind, base64.b64decode(content)


def test_frames_are_sent_with_their_times(service, clip):
    assert ask(service, clip) == Answer(text="A thing moves.", is_whole=True)
    [payload] = service.requests
    assert (payload["model"], payload["max_tokens"], payload["temperature"]) == ("qwen", 50, 0.0)
    assert "seed" not in payload
    assert "response_format" not in payload
    first_time, first, second_time, second, prompt = payload["messages"][0]["content"]
    assert [part["text"] for part in (first_time, second_time, prompt)] == [
        "<0.0 seconds>",
        "<2.5 seconds>",
        "What happens?",
    ]
    for part, frame in zip((first, second), clip.frames, strict=True):
        kind, content = data_of(part["image_url"]["url"])
        assert kind == "data:image/jpeg"
        np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(content))).astype(int), frame, atol=4)


def test_large_frames_are_made_smaller(service, clip):
    ask(service, clip, max_frame_pixels=300)
    picture = service.requests[0]["messages"][0]["content"][1]
    assert Image.open(io.BytesIO(data_of(picture["image_url"]["url"])[1])).size == (20, 15)


def test_whole_videos_and_schemas_can_be_sent(service, clip):
    question = Question(prompt="What?", max_new_tokens=5, schema={"type": "object"})
    sampling = Sampling(seed=7)
    service.reply = replies({"message": {"content": "{"}, "finish_reason": "length"})
    assert ask(service, clip, question=question, sampling=sampling, sends_video=True, api_key="secret") == Answer(
        text="{", is_whole=False
    )
    [payload] = service.requests
    video, _ = payload["messages"][0]["content"]
    assert data_of(video["video_url"]["url"]) == ("data:video/mp4", b"the clip's bytes")
    assert payload["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (payload["seed"], payload["temperature"]) == (7, sampling.temperature)
    assert service.keys == ["Bearer secret"]


def test_the_token_of_the_hub_is_sent_to_no_server(service, clip, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    ask(service, clip)
    assert service.keys == [None]


@pytest.mark.parametrize("failure", [500, 503, 429, b"no JSON", b'{"choices": []}', b"[" * 100_000])
def test_what_passes_is_asked_again(service, clip, failure):
    service.reply = replies(failure, failure, "At last.")
    assert ask(service, clip).text == "At last."
    assert len(service.requests) == 3


def test_an_answer_that_does_not_come_is_asked_for_again(service, clip):
    service.reply = replies(None, "At last.")
    assert ask(service, clip, timeout_s=0.3).text == "At last."


@pytest.mark.parametrize(
    ("reply", "named"),
    [(500, "status 500"), (b"no JSON", "none of a chat"), (b'{"choices": [{"message": {"content": null}}]}', "None")],
)
def test_only_a_clip_has_no_answer_where_the_server_lives(service, clip, reply, named):
    service.reply = replies(reply)
    with pytest.raises(UnansweredError, match=f"the server gives none: .*{named}"):
        ask(service, clip)
    assert len(service.requests) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_request_is_not_repeated(service, clip, status):
    service.reply = replies(status)
    with pytest.raises(RefusedError, match=f"refuses the request: status {status}.*this is a {status}"):
        ask(service, clip)
    assert len(service.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_server_that_knows_neither_us_nor_the_model_is_no_fault_of_the_clip(service, clip, status):
    service.reply = replies(status)
    with pytest.raises(ServerError, match=f"refuses model 'qwen': status {status}.*captioner.server"):
        ask(service, clip)


def test_a_busy_or_dead_server_is_no_fault_of_the_clip(service, clip):
    service.reply = replies(503)
    with pytest.raises(ServerError, match="does not answer: status 503"):
        ask(service, clip)
    service.reply, service.model_status = replies(500), 500
    with pytest.raises(ServerError, match="does not answer: status 500"):
        ask(service, clip)
    service.address = "http://127.0.0.1:9/v1"
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9/v1 does not answer: .*ConnectError"):
        ask(service, clip)


def test_nothing_more_is_asked_of_a_server_that_failed(service, clip):
    service.reply = replies(503)
    with ChatServer(service.address, "qwen", timeout_s=5.0, retries=0, max_frame_pixels=10_000) as server:
        for _ in range(2):
            with pytest.raises(ServerError, match="status 503"):
                server.answer([clip], QUESTION, None)
    assert len(service.requests) == 1
