"""Stage ingest: source videos become clips, videos/<clip_id>.mp4, each decoded once from its first frame to its last.

A file that training can read as it is is copied, or put into an MP4 container without encoding. It is encoded
again (H.264, crf 18, at its average frame rate) where a time range is cut out, where frames last for different times,
where the picture is to be turned or its pixels are not square, and where the codec is none of KEPT_CODECS. A constant
rate is needed since the network is told one rate a clip.
"""

import logging
import os
import subprocess
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from worldtune.common.disk import disk_error_in_words
from worldtune.common.files import atomic_path, copy_file, sha256_file
from worldtune.dataset.clips import clip_id, video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.ledger import open_ledger
from worldtune.dataset.listing import Listing, list_source
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, write_manifest
from worldtune.dataset.work import Outcome, Task, do_tasks
from worldtune.media.looks import Looks
from worldtune.media.video import (
    MAX_PIXELS,
    OPEN_OPTIONS,
    X264_REPRODUCIBLE,
    VideoError,
    VideoInfo,
    check_video,
    ffmpeg_executable,
    probe,
)

VERSION = 5

STAGE = "ingest"
KEPT_CODECS = frozenset({"h264", "hevc", "vp9", "av1"})
"""Codecs that are kept as they are."""
INPUT_LIMITS = [
    "-err_detect",
    "explode",
    *(part for name, value in OPEN_OPTIONS.items() for part in (f"-{name}", value)),
]
MP4_FORMAT = "mov,mp4,m4a,3gp,3g2,mj2"

logger = logging.getLogger(__name__)

Action = Literal["copy", "remux", "encode"]

COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "num_frames": pa.int64(),
    "width": pa.int64(),
    "height": pa.int64(),
    "fps": pa.float64(),
    "video_sha256": pa.string(),
    "fingerprint": pa.string(),
    "brightness": pa.float64(),
    "motion": pa.float64(),
    "action": pa.string(),
    "source_codec": pa.string(),
    "source_num_frames": pa.int64(),
    "source_fps": pa.float64(),
    "source_variable_frame_rate": pa.bool_(),
    "source_rotation_degrees": pa.int64(),
}
"""Columns of the manifest; fingerprint, brightness and motion are those of media.looks."""


@dataclass(frozen=True, kw_only=True)
class IngestJob:
    """One clip to read."""

    clip_id: str
    key: str
    source: Path
    """Folder of the key."""
    target: Path
    """The clip's file."""
    start_s: float | None
    end_s: float | None
    min_frames: int
    problem: str = ""
    """Why the clip cannot be used, known before it is read."""


def ingest(
    name: str, config: DatasetConfig, shard: str, *, datasets: Path = Path("datasets"), processes: int = 1
) -> Path:
    """Read the videos of a shard and write its manifest; only clips whose source changed are read.

    Args:
        name: the dataset's name.
        config: the dataset's configuration.
        shard: four digits.
        datasets: folder of all datasets.
        processes: worker processes.

    Returns:
        The manifest's path. It has a row for each clip of the listing, with the reason where a clip cannot be used.

    Raises:
        WorldtuneError: the source folder does not exist, or this kind of dataset cannot be read.
    """
    root = datasets / name
    listing = list_source(name, config, datasets)
    path = manifest_path(root, STAGE, shard)
    with open_ledger(root, STAGE, shard) as ledger:
        tasks = _tasks(root, listing, shard, config.min_frames)
        rows = do_tasks(ledger, tasks, ingest_clip, _died, label=f"{STAGE} {name} {shard}", processes=processes)
        write_manifest(path, rows, COLUMNS)
    return path


def _tasks(root: Path, listing: Listing, shard: str, min_frames: int) -> list[Task[IngestJob]]:
    tasks = []
    for clip in listing.clips(shard):
        if not clip.has_video:
            continue
        identifier = clip_id(clip.key, clip.start_s, clip.end_s)
        job = IngestJob(
            clip_id=identifier,
            key=clip.key,
            source=listing.source,
            target=video_path(root, identifier),
            start_s=clip.start_s,
            end_s=clip.end_s,
            min_frames=min_frames,
            problem=clip.problem,
        )
        tasks.append(Task(clip_id=identifier, inputs=_inputs(job), argument=job))
    return tasks


def _inputs(job: IngestJob) -> dict[str, Any]:
    try:
        status = (job.source / job.key).stat()
        file = [status.st_size, status.st_mtime_ns]
    except OSError:
        file = None
    # The span is in the clip's id.
    inputs = {"file": file, "min_frames": job.min_frames, "version": VERSION}
    return inputs | ({"problem": job.problem} if job.problem else {})


def _row(job: IngestJob, status: str, reason: str, **facts: Any) -> dict[str, Any]:
    known = {
        "clip_id": job.clip_id,
        "source_key": job.key,
        "start_s": job.start_s,
        "end_s": job.end_s,
        "status": status,
        "reason": reason,
        **facts,
    }
    return {column: known.get(column) for column in COLUMNS}


def _died(job: IngestJob) -> Outcome:
    return Outcome(row=_row(job, "unusable", "decoder died: the process that read the video ended without a word"))


def ingest_clip(job: IngestJob) -> Outcome:
    """Check one source video, make its clip, and return the clip's row."""
    if job.problem:
        job.target.unlink(missing_ok=True)
        return Outcome(row=_row(job, "unusable", job.problem))
    path = job.source / job.key
    looks = Looks()
    try:
        whole = job.start_s is None
        # A cut is decoded when it is made, and looked through afterwards.
        source = check_video(path, looks.see) if whole else probe(path)
        facts = {
            "source_codec": source.codec,
            "source_num_frames": source.num_frames,
            "source_fps": source.fps,
            "source_variable_frame_rate": source.variable_frame_rate,
            "source_rotation_degrees": source.rotation_degrees,
        }
        problem = _problem(job, source)
        if problem:
            job.target.unlink(missing_ok=True)
            return Outcome(row=_row(job, "unusable", problem, **facts))
        clip, action = _make_clip(job, path, source, looks)
    except VideoError as error:
        job.target.unlink(missing_ok=True)
        # Rows are the same wherever the source folder lies.
        reason = str(error).replace(str(path), job.key).replace(str(job.target), "the clip")
        label = _label(error) if path.exists() else "no video"
        return Outcome(row=_row(job, "unusable", f"{label}: {reason}"))
    if clip.num_frames < job.min_frames:
        job.target.unlink(missing_ok=True)
        return Outcome(row=_row(job, "unusable", _too_short(clip.num_frames, job.min_frames), **facts, action=action))
    row = _row(
        job,
        "ok",
        "",
        num_frames=clip.num_frames,
        width=clip.width,
        height=clip.height,
        fps=clip.fps,
        video_sha256=sha256_file(job.target),
        action=action,
        **looks.facts(),
        **facts,
    )
    return Outcome(row=row, outputs=(job.target,))


def _label(error: VideoError) -> str:
    """Return the words that such errors are counted under."""
    words = {"EmptyVideoError": "empty video", "TruncatedVideoError": "truncated video"}
    return words.get(type(error).__name__, "unreadable video")


def _too_short(num_frames: int, min_frames: int) -> str:
    return f"too short: {num_frames} frames; at least {min_frames} are needed"


def _problem(job: IngestJob, source: VideoInfo) -> str:
    """Return why a readable source cannot become a clip, or an empty text."""
    if job.start_s is None or job.end_s is None:
        # A changed rate changes the number of frames a little, so such a clip is counted after it was encoded.
        if source.num_frames < job.min_frames and not source.variable_frame_rate:
            return _too_short(source.num_frames, job.min_frames)
    elif job.end_s > source.duration_s + 1 / source.fps:
        return f"time range outside the video: it ends at {job.end_s:g} s, the video at {source.duration_s:.3f} s"
    return ""


def _action(job: IngestJob, source: VideoInfo) -> Action:
    odd = source.width % 2 or source.height % 2
    if (
        job.start_s is not None
        or source.variable_frame_rate
        or source.rotation_degrees
        or not source.square_pixels
        or source.codec not in KEPT_CODECS
        or odd
    ):
        return "encode"
    return "copy" if source.container == MP4_FORMAT else "remux"


def _make_clip(job: IngestJob, path: Path, source: VideoInfo, looks: Looks) -> tuple[VideoInfo, Action]:
    """Make the clip's file and return its facts and how it was made."""
    action = _action(job, source)
    if action == "copy":
        # Not a link: the file is the user's, who may write it in place.
        copy_file(path, job.target)
        return source, action
    with atomic_path(job.target) as temporary:
        if action == "remux":
            _run_ffmpeg(path, temporary, _ffmpeg_options(job, source, "remux"))
            clip = probe(temporary)
            if not clip.variable_frame_rate and clip.num_frames == source.num_frames:
                # The rate of the new file is an average of rounded times; the source's header has the rate itself.
                return replace(clip, fps=source.fps), action
            # The coarse clock of Matroska can make a fast constant rate look variable.
            logger.info("%s: cannot be put into an MP4 container as it is; it is encoded", job.key)
        _run_ffmpeg(path, temporary, _ffmpeg_options(job, source, "encode"))
        clip = check_video(temporary, looks.see)
        if clip.variable_frame_rate:
            raise VideoError(f"{path} has no constant frame rate after encoding. Encode it yourself.")
    return clip, "encode"


def _ffmpeg_options(job: IngestJob, source: VideoInfo, action: Action) -> tuple[list[str], list[str]]:
    """Return ffmpeg's options for the input and for the output."""
    # Nothing that depends on the time or the build goes into the file.
    output = ["-map", "0:v:0", "-map_metadata", "-1", "-fflags", "+bitexact", "-movflags", "+faststart"]
    if action == "remux":
        return [], [*output, "-c:v", "copy"]
    span, times = [], ""
    if job.start_s is not None and job.end_s is not None:
        # The first frame seldom lies at the start of the span, and a late one would be doubled.
        times = "setpts=PTS-STARTPTS,"
        span = ["-ss", f"{job.start_s:.6f}", "-t", f"{job.end_s - job.start_s:.6f}"]
    rate = Fraction(source.fps).limit_denominator(1001)
    picture = "scale=max(2\\,trunc(iw*if(sar\\,sar\\,1)/2)*2):max(2\\,trunc(ih/2)*2):flags=bicubic,setsar=1"
    # One thread: the number of threads changes the bytes, and there is a process for each core already.
    encoder = ["-c:v", "libx264", "-crf", "18", "-preset", "medium", "-pix_fmt", "yuv420p", "-threads", "1"]
    encoder += ["-x264-params", X264_REPRODUCIBLE]
    output += ["-vf", times + picture]
    return span, [*output, "-fps_mode", "cfr", "-r", str(rate), "-flags:v", "+bitexact", *encoder]


def _run_ffmpeg(path: Path, target: Path, options: tuple[list[str], list[str]]) -> None:
    before, after = options
    # A path that begins with a protocol's name would be taken for one.
    files = ["-i", f"file:{path}"], [f"file:{target}"]
    # Frames may be larger than the header says; the readers here have the same limit.
    limits = [*INPUT_LIMITS, "-max_pixels", str(MAX_PIXELS)]
    command = [ffmpeg_executable(), "-nostdin", "-v", "error", "-xerror", "-y", *limits, *before, *files[0]]
    done = subprocess.run([*command, *after, *files[1]], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        number = disk_error_in_words(done.stderr)
        if number is not None:
            # No fault of the video: it must not be kept as one that cannot be used.
            raise OSError(number, os.strerror(number), str(target))
        last = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise VideoError(f"{path} cannot be made into a clip: ffmpeg says {last[0]}.".replace(str(target), "the clip"))
