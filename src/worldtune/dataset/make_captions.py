"""Stage make_captions: captions that clips do not have are made from their videos, by a model here or a server.

It stands in the place of stage captions where a dataset has a captioner, reads the captions that are given as that
stage does, and shares its ledger, since both write the files below metas/.

    metas/<clip_id>.txt     the text: the paragraph, of a structured caption its temporal_caption
    metas/<clip_id>.json    the same as "caption", a structured one whole as "caption_json", and "made_by": what made it
"""

import contextlib
import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from worldtune.annotate.protocol import folder_sha256
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_text
from worldtune.common.progress import progress
from worldtune.dataset.advice import force_command
from worldtune.dataset.captioner import CaptionerConfig
from worldtune.dataset.captions import COLUMNS as CAPTION_COLUMNS
from worldtune.dataset.captions import MAKING_STAGE, CaptionJob, caption_task, write_caption
from worldtune.dataset.captions import STAGE as CAPTION_STAGE
from worldtune.dataset.clips import caption_path, video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.ingest import COLUMNS as INGEST_COLUMNS
from worldtune.dataset.ingest import STAGE as INGEST_STAGE
from worldtune.dataset.ledger import Ledger, open_ledger
from worldtune.dataset.listing import Listing, list_source
from worldtune.dataset.manifest import (
    CLIP_COLUMNS,
    Columns,
    manifest_path,
    read_manifest,
    retire_manifests,
    write_manifest,
)
from worldtune.dataset.work import do_tasks
from worldtune.formats.structured_caption import add_media_fields, answer_schema, caption_text, parse_answer
from worldtune.media.video import iterate_frames

if TYPE_CHECKING:
    from worldtune.annotate.answers import Answer, Answerer, Question, SampledClip

VERSION = 1

STAGE = MAKING_STAGE
MAX_FAILURES = 8
"""Clips without a result after which the fault is looked for elsewhere, where no clip of the shard has one."""
SENTENCE_ENDS = (".", "!", "?")

COLUMNS: dict[str, pa.DataType] = {
    **CAPTION_COLUMNS,
    "made_by": pa.string(),
    "num_tries": pa.int64(),
    "cut_off": pa.bool_(),
}
"""Columns of the manifest; of a given caption the last three are null."""

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One clip that needs a caption."""

    clip: Row
    """Its row of stage ingest."""
    inputs: dict[str, Any]

    @property
    def clip_id(self) -> str:
        return str(self.clip["clip_id"])


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What asking about one clip gave."""

    job: _Job
    text: str = ""
    structured: dict[str, Any] | None = None
    num_tries: int
    cut_off: bool = False
    problem: str = ""
    """Why there is no caption; empty where there is one."""
    unanswered: bool = False
    """Whether the problem is that there was no answer at all."""


def caption_stage(config: DatasetConfig) -> tuple[str, Columns]:
    """Return the stage that a dataset's captions come from, and the columns of its manifests."""
    return (CAPTION_STAGE, CAPTION_COLUMNS) if config.captioner is None else (STAGE, COLUMNS)


def make_captions(
    name: str,
    config: DatasetConfig,
    shard: str,
    *,
    datasets: Path = Path("datasets"),
    checkpoints: Path = Path("checkpoints"),
    device: str = "auto",
) -> Path:
    """Make the captions of a shard that are not given and write its manifest; only clips that changed are asked about.

    Args:
        name: the dataset's name.
        config: the dataset's configuration; it has a captioner.
        shard: four digits.
        datasets: folder of all datasets.
        checkpoints: folder of all checkpoints, which holds the captioner's model where no server is asked.
        device: "cuda", "cpu" or "auto", for a model that runs here.

    Returns:
        The manifest's path. It has a row for each given caption, as that of stage captions, and for each usable clip of
        stage ingest, with the reason where it got no caption. What failed is tried again by the next job.

    Raises:
        WorldtuneError: the dataset has no captioner, there is no manifest of stage ingest, the model cannot be loaded,
            or the server is down. Captions that were made before are kept.
    """
    captioner = config.captioner
    if captioner is None:
        raise WorldtuneError(
            f"dataset {name} has no captioner. Describe one in the config file, or run stage captions."
        )
    root = datasets / name
    listing = list_source(name, config, datasets)
    path = manifest_path(root, STAGE, shard)
    label = f"{STAGE} {name} {shard}"
    with open_ledger(root, CAPTION_STAGE, shard) as ledger:
        retire_manifests(root, CAPTION_STAGE)
        clips = read_manifest(manifest_path(root, INGEST_STAGE, shard), INGEST_COLUMNS)
        rows = _take_given(listing, shard, captioner, ledger, label)
        given = {row["clip_id"] for row in rows}
        folder = None if captioner.server else checkpoints / captioner.model
        shared = _shared_inputs(captioner, folder)
        jobs = [
            _Job(clip=clip, inputs={"video_sha256": clip["video_sha256"], **shared})
            for clip in clips
            if clip["status"] == "ok" and clip["clip_id"] not in given
        ]
        rows += _caption(jobs, ledger, captioner, folder, device, label)
        write_manifest(path, rows, COLUMNS)
    return path


def _shared_inputs(captioner: CaptionerConfig, folder: Path | None) -> dict[str, Any]:
    """Return what the captions of all clips depend on."""
    inputs: dict[str, Any] = {"captioner": captioner.clip_values(), "make_captions_version": VERSION}
    if folder is None:
        return inputs
    return inputs | {"model_sha256": folder_sha256(folder)}


def _take_given(listing: Listing, shard: str, captioner: CaptionerConfig, ledger: Ledger, label: str) -> list[Row]:
    """Return the rows of the clips whose caption is given, as stage captions makes them."""
    tasks = [caption_task(ledger.root, listing, clip) for clip in listing.clips(shard)]
    kept = [task for task in tasks if _is_given(task.argument, captioner)]
    rows = do_tasks(ledger, kept, write_caption, write_caption, label=f"{label}, given", processes=1)
    return [row | {"made_by": None, "num_tries": None, "cut_off": None} for row in rows]


def _is_given(job: CaptionJob, captioner: CaptionerConfig) -> bool:
    """Return whether a clip's row comes from what is given: a caption, a damaged one, or one without a video."""
    _, _, clip, found = job
    if not clip.has_video:
        return True
    return captioner.only_missing and found is not None and found.text != ""


def _caption(
    jobs: list[_Job], ledger: Ledger, captioner: CaptionerConfig, folder: Path | None, device: str, label: str
) -> list[Row]:
    """Return a row for each clip, from the ledger where it is as it was."""
    ledger.adopt([job.clip_id for job in jobs])
    rows = []
    open_jobs = []
    for job in jobs:
        record = ledger.current(job.clip_id, job.inputs)
        if record is None:
            open_jobs.append(job)
        else:
            rows.append(record["row"])
    logger.info("%s: %d captions to make, %d as they were", label, len(jobs), len(rows))
    if not open_jobs:
        return rows
    ledger.start(*(job.clip_id for job in open_jobs))
    answered = bool(rows)
    unanswered = 0
    with _answerer(captioner, folder, device) as answerer:
        for _, made in zip(
            progress(open_jobs, label), _ask_all(open_jobs, ledger.root, answerer, captioner), strict=True
        ):
            row, outputs = _write(ledger.root, made, captioner)
            rows.append(row)
            if not made.problem:
                ledger.finish(made.job.clip_id, made.job.inputs, outputs, row)
            else:
                # Not kept in the ledger: the next job tries again.
                logger.warning("%s: %s: %s", label, row["source_key"], made.problem)
            answered = answered or not made.unanswered
            unanswered += made.unanswered
            if unanswered >= MAX_FAILURES and not answered:
                raise WorldtuneError(
                    f"{label}: none of {unanswered} clips got an answer; of the last one: {made.problem}. Look at the "
                    "server's log and at the dataset's captioner, then run the same command again."
                )
    return rows


@contextlib.contextmanager
def _answerer(captioner: CaptionerConfig, folder: Path | None, device: str) -> Iterator["Answerer"]:
    """Give the model or the server that a captioner asks."""
    if folder is not None:
        # Imported here: the model's libraries take seconds, and planning the workflow must not need them.
        from worldtune.annotate.vision_language import VisionLanguageModel

        yield VisionLanguageModel(folder, device, max_frame_pixels=captioner.max_frame_pixels)
        return
    from worldtune.annotate.chat_server import ChatServer

    key = captioner.api_key_env
    if key and not os.environ.get(key):
        raise WorldtuneError(f"captioner.api_key_env = {key!r}, but there is no such environment variable. Set it.")
    with ChatServer(
        captioner.server,
        captioner.model,
        api_key=os.environ[key] if key else "",
        timeout_s=captioner.timeout_s,
        retries=captioner.retries,
        max_frame_pixels=captioner.max_frame_pixels,
        sends_video=captioner.sends == "video",
    ) as server:
        yield server


def _ask_all(jobs: Sequence[_Job], root: Path, answerer: "Answerer", captioner: CaptionerConfig) -> Iterator[_Made]:
    """Yield what each clip got, as it comes."""
    if not captioner.server:
        for start in range(0, len(jobs), captioner.batch_size):
            yield from _ask(jobs[start : start + captioner.batch_size], root, answerer, captioner)
        return
    failure: WorldtuneError | None = None
    # Not an executor of concurrent.futures: a stopped process would wait for each answer that is on its way.
    with ThreadPool(min(captioner.concurrency, len(jobs))) as pool:
        results = pool.imap_unordered(lambda job: _ask([job], root, answerer, captioner), jobs)
        for _ in jobs:
            # Answers that are on their way when the server fails are kept too.
            try:
                yield from results.next()
            except WorldtuneError as error:
                failure = failure or error
    if failure is not None:
        raise failure


def _ask(jobs: Sequence[_Job], root: Path, answerer: "Answerer", captioner: CaptionerConfig) -> list[_Made]:
    """Return what some clips that are asked about together got; those without a caption are asked about again."""
    from worldtune.annotate.answers import Question, RefusedError, Sampling, UnansweredError

    schema = answer_schema() if captioner.format == "structured" else None
    question = Question(prompt=captioner.question, max_new_tokens=captioner.max_new_tokens, schema=schema)
    left = list(jobs)
    clips = {job.clip_id: _sample(root, job.clip, captioner) for job in jobs}
    results: dict[str, _Made] = {}
    for number in range(1, captioner.tries + 1):
        sampling = None if number == 1 else Sampling(seed=number)
        try:
            answers = answerer.answer([clips[job.clip_id] for job in left], question, sampling)
        except (RefusedError, UnansweredError) as error:
            label = "no caption" if isinstance(error, RefusedError) else "no answer"
            results |= {
                job.clip_id: _Made(job=job, num_tries=number, problem=f"{label}: {error}", unanswered=True)
                for job in left
            }
            break
        for job, answer in zip(left, answers, strict=True):
            results[job.clip_id] = _read(job, answer, question, number)
        left = [job for job in left if results[job.clip_id].problem]
        if not left:
            break
    return [results[job.clip_id] for job in jobs]


def _sample(root: Path, clip: Row, captioner: CaptionerConfig) -> "SampledClip":
    """Return the frames of a clip that the model sees."""
    import numpy as np

    from worldtune.annotate.answers import SampledClip

    path = video_path(root, clip["clip_id"])
    last = clip["num_frames"] - 1
    count = min(captioner.num_frames, last + 1)
    wanted = [round(index * last / max(count - 1, 1)) for index in range(count)]
    kept = set(wanted)
    frames = [frame for index, frame in enumerate(iterate_frames(path)) if index in kept]
    if len(frames) != count:
        raise WorldtuneError(
            f"{path} has fewer than its {last + 1} frames. Make it again: {force_command(root.name, INGEST_STAGE)}."
        )
    return SampledClip(frames=np.stack(frames), times_s=tuple(index / clip["fps"] for index in wanted), video=path)


def _read(job: _Job, answer: "Answer", question: "Question", number: int) -> _Made:
    """Return the caption in an answer, or why there is none."""
    if question.schema is None:
        text = _clean(answer.text.rpartition("</think>")[2])
        if text and not answer.is_whole:
            text = _whole_sentences(text)
        problem = "" if text else "no caption: the model's answer is empty"
        return _Made(job=job, text=text, num_tries=number, cut_off=not answer.is_whole, problem=problem)
    try:
        caption = parse_answer(answer.text)
    except WorldtuneError as error:
        cut = "" if answer.is_whole else f" It was cut off at {question.max_new_tokens} tokens (max_new_tokens)."
        problem = f"no structured caption: in {number} answers none was one; of the last: {error}{cut}"
        return _Made(job=job, num_tries=number, cut_off=not answer.is_whole, problem=problem)
    clip = job.clip
    facts = {key: clip[key] for key in ("width", "height", "num_frames", "fps")}
    text = _clean(str(caption["temporal_caption"]))
    return _Made(job=job, text=text, structured=add_media_fields(caption, **facts), num_tries=number)


def _clean(text: str) -> str:
    """Return a text on one line, without characters that cannot be shown or written."""
    shown = "".join(" " if unicodedata.category(sign)[0] == "C" else sign for sign in text)
    return " ".join(shown.split())


def _whole_sentences(text: str) -> str:
    """Return a text that was cut off up to the end of its last sentence; the whole where no sentence ends."""
    end = max(text.rfind(sign + " ") for sign in SENTENCE_ENDS)
    return text if end < 0 or text.endswith(SENTENCE_ENDS) else text[: end + 1]


def _write(root: Path, made: _Made, captioner: CaptionerConfig) -> tuple[Row, tuple[Path, ...]]:
    """Write the files of a clip's caption, or remove them, and return its row and the files."""
    clip = made.job.clip
    row = {column: clip[column] for column in CLIP_COLUMNS} | {
        "status": "unusable" if made.problem else "ok",
        "reason": made.problem,
        "caption_sha256": None,
        "num_characters": None,
        "made_by": captioner.model,
        "num_tries": made.num_tries,
        "cut_off": made.cut_off,
    }
    text_path = caption_path(root, made.job.clip_id)
    facts_path = text_path.with_suffix(".json")
    if made.problem:
        text_path.unlink(missing_ok=True)
        facts_path.unlink(missing_ok=True)
        return row, ()
    facts: dict[str, Any] = {"caption": made.text, **{key: clip[key] for key in ("source_key", "start_s", "end_s")}}
    facts["made_by"] = {
        "model": captioner.model,
        "where": "server" if captioner.server else "checkpoint",
        "prompt": captioner.prompt_name(),
        "video_sha256": clip["video_sha256"],
    }
    content = made.text
    if made.structured is not None:
        facts["caption_json"] = made.structured
        content = caption_text(made.structured)
    write_text(text_path, made.text + "\n")
    # Not sorted: the order of a structured caption's keys is part of what a model is trained on.
    write_text(facts_path, json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    row["caption_sha256"] = hashlib.sha256(content.encode()).hexdigest()
    row["num_characters"] = len(made.text)
    return row, (text_path, facts_path)
