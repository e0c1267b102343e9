import hashlib
import json
import multiprocessing
import os
import signal
from collections import Counter

import pytest
from chat_service import chat_service

import worldtune.annotate.chat_server as chat_server
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.dataset.captioner import DENSE_PROMPT, STRUCTURED_PROMPT
from worldtune.dataset.clips import caption_path, clip_id, load_dataset
from worldtune.dataset.ledger import ledger_path
from worldtune.dataset.make_captions import COLUMNS, MAX_FAILURES
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.parameters import stage_values
from worldtune.dataset.validate import conclude, examine
from worldtune.demo.vision_language import write_vision_language_model
from worldtune.formats.structured_caption import MEDIA_FIELDS, caption_text

STRUCTURED = {
    "temporal_caption": "A thing moves.",
    "subjects": [{"description": "a thing"}],
    "background_setting": "sky",
}


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setattr(chat_server, "FIRST_WAIT_S", 0.001)
    with chat_service() as state:
        yield state


@pytest.fixture
def asked(source, service):
    """Three clips, the second with a caption of its own, whose others a server makes."""
    source.add("a.mp4", caption=None, seed=1)
    source.add("b.mp4", caption="Its own.", seed=2)
    source.add("c.mp4", caption=None, num_frames=9, seed=3)
    set_captioner(source, service)
    source.ingest()
    return source


def set_captioner(source, service, **options):
    captioner = {"model": "qwen", "server": service.address, "num_frames": 3, "retries": 1, "timeout_s": 5.0}
    source.options["captioner"] = captioner | options


def rows_by_key(manifest):
    return {row["source_key"]: row for row in read_manifest(manifest, COLUMNS)}


def text_of(source, key):
    return caption_path(source.root, clip_id(key)).read_text()


def facts_of(source, key):
    return read_json(caption_path(source.root, clip_id(key)).with_suffix(".json"))


def times_of(payload):
    return [part["text"] for part in payload["messages"][0]["content"][:-1] if part["type"] == "text"]


def test_only_captions_that_are_not_there_are_made(asked, service):
    rows = rows_by_key(asked.make_captions())
    assert {key: (row["status"], row["made_by"], row["num_tries"]) for key, row in rows.items()} == {
        "a.mp4": ("ok", "qwen", 1),
        "b.mp4": ("ok", None, None),
        "c.mp4": ("ok", "qwen", 1),
    }
    texts = {"a.mp4": "A thing moves.\n", "b.mp4": "Its own.\n", "c.mp4": "A thing moves.\n"}
    assert {key: text_of(asked, key) for key in rows} == texts
    facts = facts_of(asked, "a.mp4")
    assert (facts["caption"], facts["source_key"]) == ("A thing moves.", "a.mp4")
    assert facts["made_by"]["model"] == "qwen"
    assert facts["made_by"]["prompt"] == "dense-1"
    assert "made_by" not in facts_of(asked, "b.mp4")
    assert all(payload["messages"][0]["content"][-1]["text"] == DENSE_PROMPT for payload in service.requests)
    # Six and nine frames at 24 a second: the first, the middle one, the last.
    assert sorted(map(times_of, service.requests)) == [
        ["<0.0 seconds>", "<0.1 seconds>", "<0.2 seconds>"],
        ["<0.0 seconds>", "<0.2 seconds>", "<0.3 seconds>"],
    ]


def test_given_captions_can_be_passed_over(asked, service):
    set_captioner(asked, service, only_missing=False)
    rows = rows_by_key(asked.make_captions())
    assert {row["made_by"] for row in rows.values()} == {"qwen"}
    set_captioner(asked, service)
    asked.make_captions()
    assert text_of(asked, "b.mp4") == "Its own.\n"
    assert len(service.requests) == 3


def test_only_what_changed_is_asked_again(asked, service):
    first = asked.make_captions().read_bytes()
    service.requests.clear()
    service.address = "http://127.0.0.1:9/v1"
    set_captioner(asked, service, concurrency=1, retries=0, tries=1)
    assert asked.make_captions().read_bytes() == first
    (asked.folder / "b.txt").write_text("Another one.")
    assert rows_by_key(asked.make_captions())["b.mp4"]["num_characters"] == 12
    assert service.requests == []


@pytest.mark.parametrize("change", ["video", "prompt", "model", "frames"])
def test_what_a_caption_depends_on_is_asked_again(asked, service, change):
    asked.make_captions()
    service.requests.clear()
    if change == "video":
        asked.add("c.mp4", caption=None, seed=4)
        asked.ingest()
    else:
        options = {"prompt": {"prompt": "What?"}, "model": {"model": "other"}, "frames": {"num_frames": 2}}
        set_captioner(asked, service, **options[change])
    asked.make_captions()
    assert len(service.requests) == (1 if change == "video" else 2)


def test_structured_captions_keep_their_order_and_get_the_facts_of_the_file(asked, service):
    set_captioner(asked, service, format="structured")
    service.reply = lambda payload: f"```json\n{json.dumps(STRUCTURED | {'fps': 1})}\n```"
    rows = rows_by_key(asked.make_captions())
    caption = facts_of(asked, "c.mp4")["caption_json"]
    assert list(caption) == [*STRUCTURED, *MEDIA_FIELDS]
    assert caption["resolution"] == {"H": 32, "W": 48}
    assert (caption["aspect_ratio"], caption["duration"], caption["fps"]) == ("3,2", "0s", 24)
    assert text_of(asked, "c.mp4") == "A thing moves.\n"
    assert rows["c.mp4"]["caption_sha256"] == hashlib.sha256(caption_text(caption).encode()).hexdigest()
    [payload, _] = service.requests
    assert payload["messages"][0]["content"][-1]["text"] == STRUCTURED_PROMPT
    assert payload["response_format"]["type"] == "json_schema"


def test_an_answer_that_is_no_caption_is_asked_for_again_and_then_a_row(asked, service):
    set_captioner(asked, service, format="structured", tries=2)
    answers = Counter()

    def reply(payload):
        clip = str(times_of(payload))
        answers[clip] += 1
        first = "<0.1 seconds>" in clip and answers[clip] == 2
        return json.dumps(STRUCTURED) if first else {"message": {"content": '{"sub'}, "finish_reason": "length"}

    service.reply = reply
    rows = rows_by_key(asked.make_captions())
    assert (rows["a.mp4"]["status"], rows["a.mp4"]["num_tries"]) == ("ok", 2)
    assert rows["c.mp4"]["status"] == "unusable"
    assert rows["c.mp4"]["reason"].startswith("no structured caption: in 2 answers none was one; of the last: it is no")
    assert "cut off at 2048 tokens" in rows["c.mp4"]["reason"]
    assert not caption_path(asked.root, clip_id("c.mp4")).exists()
    # The next job asks about that clip alone.
    service.requests.clear()
    service.reply = lambda payload: json.dumps(STRUCTURED)
    assert rows_by_key(asked.make_captions())["c.mp4"]["status"] == "ok"
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("<think>Hm.</think>\nTwo\nlines\x00 .", "Two lines ."),
        ({"message": {"content": "One. Two! Thr"}, "finish_reason": "length"}, "One. Two!"),
        ({"message": {"content": "No end"}, "finish_reason": "length"}, "No end"),
        ({"message": {"content": "\ud800 half"}}, "half"),
    ],
)
def test_dense_captions_are_one_line_of_whole_sentences(asked, service, answer, text):
    service.reply = lambda payload: answer
    rows = rows_by_key(asked.make_captions())
    assert text_of(asked, "a.mp4") == text + "\n"
    assert rows["a.mp4"]["cut_off"] == (isinstance(answer, dict) and "finish_reason" in answer)


def test_a_clip_that_the_server_cannot_answer_is_a_row(asked, service):
    for status, reason in ((400, "no caption: the server refuses the request: status 400"), (500, "no answer: ")):
        service.reply = lambda payload, status=status: status if "<0.3 seconds>" in times_of(payload) else "A thing."
        rows = rows_by_key(asked.make_captions())
        assert rows["a.mp4"]["status"] == "ok"
        assert rows["c.mp4"]["reason"].startswith(reason)


def test_a_server_that_is_down_fails_the_stage_and_keeps_what_is_done(asked, service):
    set_captioner(asked, service, concurrency=1)
    service.reply = lambda payload: "A thing." if len(service.requests) == 1 else 503
    with pytest.raises(WorldtuneError, match=r"does not answer: status 503.*finished clips are kept"):
        asked.make_captions()
    service.requests.clear()
    service.reply = lambda payload: "A thing."
    assert {row["status"] for row in rows_by_key(asked.make_captions()).values()} == {"ok"}
    assert len(service.requests) == 1


def test_a_server_that_answers_nobody_fails_the_stage(source, service):
    for number in range(MAX_FAILURES):
        source.add(f"{number}.mp4", caption=None, seed=number)
    set_captioner(source, service, retries=0)
    source.ingest()
    service.reply = lambda payload: 500
    with pytest.raises(WorldtuneError, match=f"none of {MAX_FAILURES} clips got an answer"):
        source.make_captions()


def make_captions_of(source):
    source.make_captions()


def test_a_killed_job_goes_on_where_it_stood(source, service):
    for number in range(6):
        source.add(f"{number}.mp4", caption=None, seed=number)
    set_captioner(source, service, concurrency=1)
    source.ingest()
    service.reply = lambda payload: None if len(service.requests) == 4 else "A thing."
    ledger = ledger_path(source.root, "captions", "0000")
    process = multiprocessing.get_context("fork").Process(target=make_captions_of, args=(source,))
    process.start()
    # The answers reach the ledger a moment after they were given.
    while len(service.requests) < 4 or ledger.read_text().count('"row"') < 3:
        process.join(0.02)
        assert process.is_alive()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    service.requests.clear()
    rows = rows_by_key(source.make_captions())
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert len(rows) == 6
    assert len(service.requests) == 3


def test_wrong_captions_and_videos_are_told_as_ever(asked, service):
    (asked.folder / "c.json").write_text("{")
    (asked.folder / "d.mp4").write_bytes(b"no video")
    (asked.folder / "alone.txt").write_text("No video.")
    asked.ingest()
    rows = rows_by_key(asked.make_captions())
    assert {key: row["reason"].partition(":")[0] for key, row in rows.items()} == {
        "a.mp4": "",
        "b.mp4": "",
        "c.mp4": "caption unreadable",
        "alone.txt": "no video",
    }
    (asked.folder / "c.json").write_text('{"caption": " "}')
    assert rows_by_key(asked.make_captions())["c.mp4"]["made_by"] == "qwen"


def test_a_dataset_may_get_and_lose_its_captioner(asked, service):
    captioner = asked.options.pop("captioner")
    asked.captions()
    assert not caption_path(asked.root, clip_id("a.mp4")).exists()
    asked.options["captioner"] = captioner | {"only_missing": False}
    asked.make_captions()
    assert text_of(asked, "b.mp4") == "A thing moves.\n"
    del asked.options["captioner"]
    asked.captions()
    assert text_of(asked, "b.mp4") == "Its own.\n"
    assert not caption_path(asked.root, clip_id("a.mp4")).exists()
    with pytest.raises(WorldtuneError, match="tiny has no captioner"):
        asked.make_captions()


def test_made_captions_reach_the_table_of_clips(asked, fake_encoder):
    asked.make_captions()
    asked.t5()
    asked.controls()
    conclude(examine("tiny", asked.config, datasets=asked.datasets))
    dataset = load_dataset(asked.root)
    assert [clip.source_key for clip in dataset.unusable] == []
    assert read_json(asked.root / "dataset.json")["captions_made_by"] == ["qwen"]
    hashes = {clip.source_key: clip.caption_sha256 for clip in dataset.clips}
    assert hashes == {key: row["caption_sha256"] for key, row in rows_by_key(asked.make_captions()).items()}
    assert Counter(fake_encoder.texts) == {"A thing moves.": 2, "Its own.": 1}


def test_a_model_of_the_real_class_makes_captions(source):
    write_vision_language_model(source.checkpoints / "worldtune/qwen", seed=0)
    for number in range(3):
        source.add(f"{number}.mp4", caption=None, num_frames=6 + number, seed=number)
    source.options["captioner"] = {"model": "worldtune/qwen", "max_new_tokens": 6, "batch_size": 2, "num_frames": 3}
    source.ingest()
    first = source.make_captions()
    rows = rows_by_key(first)
    assert all(row["status"] == "ok" and row["cut_off"] for row in rows.values())
    assert all(text_of(source, key).strip() for key in rows)
    kept = first.read_bytes()
    assert source.make_captions().read_bytes() == kept
    # A random model knows no JSON.
    source.options["captioner"] |= {"format": "structured", "tries": 2}
    rows = rows_by_key(source.make_captions())
    assert all(row["reason"].startswith("no structured caption: in 2 answers") for row in rows.values())
    # Other weights, other captions.
    source.options["captioner"] |= {"format": "dense"}
    write_vision_language_model(source.checkpoints / "worldtune/qwen", seed=1)
    assert source.make_captions().read_bytes() != kept


def test_what_says_where_and_how_fast_changes_no_job(asked, service):
    def values(**options):
        set_captioner(asked, service, **options)
        return stage_values("make_captions", "tiny", asked.config, shard="0000")["captioner"]

    same = values()
    service.address = "http://elsewhere/v1"
    assert values(concurrency=2, timeout_s=1.0, retries=9, api_key_env="KEY") == same
    for change in ({"prompt": "What?"}, {"tries": 9}, {"only_missing": False}, {"sends": "video"}):
        assert values(**change) != same
    set_captioner(asked, service, api_key_env="NO_SUCH_KEY")
    with pytest.raises(WorldtuneError, match="'NO_SUCH_KEY', but there is no such environment variable"):
        asked.make_captions()


def test_captions_are_made_and_given_in_turn(asked, service):
    stages = [asked.root / f"manifests/{stage}/0000.parquet" for stage in ("captions", "make_captions")]
    set_captioner(asked, service, only_missing=False)
    asked.make_captions()
    assert [path.exists() for path in stages] == [False, True]
    captioner = asked.options.pop("captioner")
    asked.captions()
    assert [path.exists() for path in stages] == [True, False]
    assert text_of(asked, "b.mp4") == "Its own.\n"
    asked.options["captioner"] = captioner
    asked.make_captions()
    assert [path.exists() for path in stages] == [False, True]
    assert text_of(asked, "b.mp4") == "A thing moves.\n"
