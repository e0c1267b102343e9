"""Video files: probe, check, exact frame access, writing. T frames, H height, W width; colours are RGB."""

import contextlib
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import median

import av
import imageio_ffmpeg
import numpy as np
from av.error import FFmpegError

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path

OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
}
"""What ffmpeg may open: formats of one file that holds the video. A playlist could name any file or address."""
MAX_PIXELS = 8192 * 8192
"""Largest frame that is decoded: a file of a few bytes can hold one that fills the memory."""
X264_REPRODUCIBLE = "cpu-independent=1"
"""Parameters of x264 without which equal frames have other bytes on another processor, or even in another process."""
RATE_TOLERANCE = 0.1
"""Largest departure of one frame's duration from the usual one, as a part of it, in a constant-rate video."""


Watch = Callable[[int, int, av.VideoFrame], None]


class VideoError(WorldtuneError):
    """A video file that cannot be used; the subclasses say how."""


class EmptyVideoError(VideoError):
    """A file of 0 bytes, or without a video frame."""


class TruncatedVideoError(VideoError):
    """A file that ends before the last frame that its header announces."""


class UndecodableVideoError(VideoError):
    """A file that is no video, or whose frames cannot be decoded."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """Facts about a video file's first video stream."""

    num_frames: int
    """Frames that a reader sees."""
    width: int
    """Pixels of a row."""
    height: int
    """Rows of a frame."""
    fps: float
    """Average frames a second."""
    duration_s: float
    """num_frames / fps."""
    variable_frame_rate: bool
    """Whether frames last for different times."""
    container: str = ""
    """Container format, as ffmpeg names it."""
    codec: str = ""
    """Codec, as ffmpeg names it."""
    rotation_degrees: int = 0
    """Turn that a player is asked to apply; read_frames does not apply it."""
    square_pixels: bool = True
    """Whether a pixel is as wide as it is high."""


@dataclass(frozen=True)
class _Index:
    """What the container says about each frame, in the order of display; times are in units of `time_base`."""

    times: tuple[int, ...]
    """Presentation times; empty where the container has none."""
    seeks: tuple[tuple[int, int], ...]
    """(presentation time, decoding time) of each keyframe."""
    num_frames: int
    num_announced: int
    """Frames that the header announces; 0 where it does not say."""
    ends_early: bool
    """Whether the last frame ends well before the duration in the header."""
    time_base: Fraction
    average_rate: Fraction | None


@functools.cache
def ffmpeg_executable() -> str:
    """Return the path of ffmpeg: the system's where there is one, else the one in the imageio-ffmpeg wheel.

    Raises:
        WorldtuneError: there is neither.
    """
    system = shutil.which("ffmpeg")
    if system:
        return system
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        raise WorldtuneError(
            "There is no ffmpeg: install it, or reinstall imageio-ffmpeg, which brings one."
        ) from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a file for reading and turn every failure of ffmpeg inside the block into a named error."""
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is no file. Give the path of a video.")
    if path.stat().st_size == 0:
        raise EmptyVideoError(f"{path} has 0 bytes; expected a video. Fetch or render it again.")
    try:
        with av.open(path, metadata_errors="replace", options=OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise UndecodableVideoError(f"{path} has no video stream. Remove it, or give a video.")
            _limit_size(path, container.streams.video[0])
            yield container
    except FFmpegError as error:
        if _ends_inside_a_box(path):
            raise TruncatedVideoError(f"{path} ends before the length that it announces. Fetch it again.") from error
        reason = f"{error.strerror or error} ({type(error).__name__})"
        raise UndecodableVideoError(f"{path} cannot be decoded: {reason}. Fetch or re-encode it.") from error


def _limit_size(path: Path, stream: av.VideoStream) -> None:
    if stream.codec_context is None:
        raise UndecodableVideoError(f"{path} is in a codec that nothing here can decode. Fetch or re-encode it.")
    if stream.width * stream.height > MAX_PIXELS:
        raise UndecodableVideoError(
            f"{path} has frames of {stream.width}x{stream.height}; at most {MAX_PIXELS} pixels are decoded. Make them "
            "smaller."
        )
    # For frames that are larger than the header says.
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}


def _ends_inside_a_box(path: Path) -> bool:
    """Return whether an MP4 file is shorter than the boxes at its top level say; False for other formats."""
    size = path.stat().st_size
    offset = 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            header = file.read(16)
            if offset == 0 and header[4:8] != b"ftyp":
                return False
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            # 0 means "to the end of the file".
            if length < 8:
                return False
            offset += length
    return offset > size


def _header_duration(stream: av.VideoStream) -> float | None:
    """Return the duration that a Matroska header gives for the stream, in seconds."""
    text = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _read_index(path: Path) -> _Index:
    with _open(path) as container:
        stream = container.streams.video[0]
        num_packets = 0
        times_shown: list[int | None] = []
        seeks: list[tuple[int, int]] = []
        # One after the other: packets that are kept hold the whole file in memory.
        for packet in container.demux(stream):
            if not packet.size or packet.is_corrupt:
                continue
            num_packets += 1
            if not packet.is_discard:
                times_shown.append(packet.pts)
            if packet.is_keyframe and packet.pts is not None:
                seeks.append((packet.pts, packet.dts if packet.dts is not None else packet.pts))
        times = [time for time in times_shown if time is not None]
        complete = len(times) == len(times_shown) and len(set(times)) == len(times)
        time_base = Fraction(stream.time_base or 1)
        rate = stream.average_rate or stream.guessed_rate
        duration = _header_duration(stream)
        ends_early = False
        if duration is not None and times and rate:
            ends_early = float(max(times) * time_base) + 2.5 / float(rate) < duration
        return _Index(
            times=tuple(sorted(times)) if complete else (),
            seeks=tuple(sorted(seeks)),
            num_frames=len(times_shown),
            num_announced=max(stream.frames - (num_packets - len(times_shown)), 0) if stream.frames else 0,
            ends_early=ends_early,
            time_base=time_base,
            average_rate=Fraction(rate) if rate else None,
        )


@functools.lru_cache(maxsize=4096)
def _cached_index(path: str, size: int, mtime_ns: int) -> _Index:
    # Size and time are only the key: a file that was replaced is read anew.
    return _read_index(Path(path))


def _index(path: Path) -> _Index:
    if not path.is_file():
        raise VideoError(f"{path} does not exist or is no file. Give the path of a video.")
    status = os.stat(path)
    return _cached_index(str(path), status.st_size, status.st_mtime_ns)


def _is_variable(times: tuple[int, ...]) -> bool:
    steps = [after - before for before, after in itertools.pairwise(times)]
    if len(steps) < 2:
        return False
    usual = median(steps)
    # Containers with a coarse clock (Matroska: 1 ms) round each time, which moves a step by one tick.
    return max(abs(step - usual) for step in steps) > max(1.5, RATE_TOLERANCE * usual)


def _fps(path: Path, index: _Index) -> float:
    """Return the average rate: of the frames' own times if they vary, else as the header has it."""
    if index.times and _is_variable(index.times):
        return float((len(index.times) - 1) / ((index.times[-1] - index.times[0]) * index.time_base))
    if index.average_rate is None:
        raise UndecodableVideoError(f"{path} does not say its frame rate. Re-encode it with a constant rate.")
    return float(index.average_rate)


def probe(path: Path) -> VideoInfo:
    """Read what the container says about a video; only the first frame is decoded.

    Raises:
        EmptyVideoError, UndecodableVideoError: the file cannot be used at all. A file whose end is missing may pass;
            check_video finds it.
    """
    path = Path(path)
    index = _index(path)
    if not index.num_frames:
        raise EmptyVideoError(f"{path} has no video frame. Fetch or render it again.")
    fps = _fps(path, index)
    with _open(path) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UndecodableVideoError(f"{path}: no frame of {index.num_frames} can be decoded. Fetch it again.")
        ratio = stream.sample_aspect_ratio
        return VideoInfo(
            num_frames=index.num_frames,
            width=frame.width,
            height=frame.height,
            fps=fps,
            duration_s=index.num_frames / fps,
            variable_frame_rate=_is_variable(index.times),
            container=container.format.name,
            codec=stream.codec_context.name,
            rotation_degrees=int(frame.rotation) % 360,
            square_pixels=not ratio or ratio == 1,
        )


def frame_times(path: Path) -> list[float]:
    """Return the presentation time of each frame in seconds after the first frame's, rising.

    Raises:
        VideoError: the file cannot be read.
    """
    path = Path(path)
    index = _index(path)
    if index.times:
        return [float((time - index.times[0]) * index.time_base) for time in index.times]
    fps = _fps(path, index)
    return [number / fps for number in range(index.num_frames)]


def check_video(path: Path, watch: Watch | None = None) -> VideoInfo:
    """Decode every frame of a video and return its facts.

    Args:
        path: the video.
        watch: called with the number of each frame, how many there are, and the decoded frame, so that whoever wants
            to know more of the pixels need not decode them again.

    Raises:
        EmptyVideoError: 0 bytes or no frame.
        TruncatedVideoError: fewer frames than the header announces.
        UndecodableVideoError: no video, damaged frames, or frames of different sizes.
    """
    path = Path(path)
    info = probe(path)
    index = _index(path)
    if index.num_frames < index.num_announced or index.ends_early:
        announced = f"of the {index.num_announced} announced" if index.num_announced else "before the announced end"
        raise TruncatedVideoError(f"{path} ends after {index.num_frames} frames {announced}. Fetch it again.")
    num_frames = 0
    with _open(path) as container:
        stream = container.streams.video[0]
        # Without this the decoder paints over damage and reports nothing.
        stream.codec_context.options = {**stream.codec_context.options, "err_detect": "explode"}
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise UndecodableVideoError(f"{path}: frame {num_frames} is damaged. Fetch it again.")
            if (frame.width, frame.height) != (info.width, info.height):
                raise UndecodableVideoError(
                    f"{path}: frame {num_frames} is {frame.width}x{frame.height} after {info.width}x{info.height}. "
                    "Re-encode it with one size."
                )
            if watch is not None:
                watch(num_frames, info.num_frames, frame)
            num_frames += 1
    if num_frames != info.num_frames:
        raise UndecodableVideoError(
            f"{path}: {num_frames} of {info.num_frames} frames can be decoded. Fetch or re-encode it."
        )
    return info


def iterate_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield every frame of a video as uint8 [H, W, 3], in order, with little memory."""
    with _open(Path(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            yield frame.to_ndarray(format="rgb24")


def read_frames(path: Path, start: int, count: int) -> np.ndarray:
    """Return `count` consecutive frames from frame `start` on, as uint8 [T, H, W, 3].

    The frames are found by their presentation times, not by rate times number, so they are the right ones in files of
    any rate, and decoding starts at the nearest keyframe.

    Raises:
        WorldtuneError: the video has no such frames, or cannot be decoded.
    """
    path = Path(path)
    index = _index(path)
    if start < 0 or count < 1 or start + count > index.num_frames:
        raise VideoError(
            f"{path} has {index.num_frames} frames; frames {start} to {start + count - 1} were asked for. "
            "Ask for fewer, or leave this clip out."
        )
    for time in _seek_times(index, start):
        frames = _read_by_time(path, index, start, count, time)
        if frames is not None:
            return frames
    frames_by_count = list(itertools.islice(iterate_frames(path), start, start + count))
    if len(frames_by_count) < count:
        raise UndecodableVideoError(
            f"{path}: only {len(frames_by_count)} of frames {start} to {start + count - 1} can be decoded."
        )
    return np.stack(frames_by_count)


def _seek_times(index: _Index, start: int) -> tuple[int | None, ...]:
    """Return the times to seek to for a frame, the best first; None begins with the file, and without times is none."""
    if not index.times:
        return ()
    before = [seek for seek in index.seeks if seek[0] <= index.times[start]]
    if not start or not before:
        return (None,)
    # Some containers, MP4 among them, look for a presentation time; in those that look for a decoding time, it may be
    # behind the next keyframe's.
    return before[-1]


def _read_by_time(path: Path, index: _Index, start: int, count: int, time: int | None) -> np.ndarray | None:
    """Return the frames from a seek on, or None where the decoder does not give exactly the expected times."""
    wanted = index.times[start : start + count]
    frames: np.ndarray | None = None
    found = 0
    with _open(path) as container:
        stream = container.streams.video[0]
        if time is not None:
            container.seek(time, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is None or frame.pts > wanted[found]:
                return None
            if frame.pts < wanted[found]:
                continue
            pixels = frame.to_ndarray(format="rgb24")
            if frames is None:
                frames = np.empty((count, *pixels.shape), np.uint8)
            elif frames.shape[1:] != pixels.shape:
                raise UndecodableVideoError(f"{path}: frame {start + found} has another size. Re-encode the video.")
            frames[found] = pixels
            found += 1
            if found == count:
                return frames
    return None


Append = Callable[[np.ndarray], None]


@contextlib.contextmanager
def video_writer(path: Path, fps: float, *, lossless: bool = False) -> Iterator[Append]:
    """Give a function that appends frames (uint8 [T, H, W, 3], or [T, H, W] for grey) to a new video.

    The file appears when the block ends without an error, and equal frames give equal bytes. Lossless files are FFV1
    in Matroska (.mkv), grey if the frames are; others are H.264 in MP4, whose width and height must be even.
    """
    path = Path(path)
    suffix = ".mkv" if lossless else ".mp4"
    if path.suffix != suffix:
        raise WorldtuneError(
            f"{path}: a {'lossless' if lossless else 'lossy'} video is written as {suffix}; rename it."
        )
    rate = Fraction(fps).limit_denominator(1001)
    with atomic_path(path) as temporary, av.open(temporary, "w") as container:
        # Matroska would otherwise store a random number.
        container.flags |= av.container.Flags.bitexact.value
        stream: av.VideoStream | None = None

        def append(frames: np.ndarray) -> None:
            nonlocal stream
            if stream is None:
                stream = _add_stream(path, container, rate, frames, lossless=lossless)
            form = "gray" if frames.ndim == 3 else "rgb24"
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=form)
                # Left to the encoder, this conversion now and then gives other pixels for the same frame.
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))

        yield append
        if stream is None:
            raise WorldtuneError(f"{path}: no frame was given; expected at least one.")
        container.mux(stream.encode(None))


def _add_stream(
    path: Path, container: av.container.OutputContainer, rate: Fraction, frames: np.ndarray, *, lossless: bool
) -> av.VideoStream:
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or (frames.ndim == 4 and frames.shape[3] != 3):
        raise WorldtuneError(f"{path}: frames are {frames.dtype} {frames.shape}; expected uint8 [T, H, W, 3].")
    height, width = frames.shape[1:3]
    if not lossless and (height % 2 or width % 2):
        raise WorldtuneError(f"{path}: frames are {width}x{height}; H.264 needs an even width and height. Crop by one.")
    # One thread: the number of threads may change the bytes.
    if lossless:
        options = {"level": "3", "slices": "4", "slicecrc": "1", "threads": "1"}
        stream = container.add_stream("ffv1", rate=rate, options=options)
        stream.pix_fmt = "gray" if frames.ndim == 3 else "bgr0"
    else:
        options = {"crf": "18", "threads": "1", "x264-params": X264_REPRODUCIBLE}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
    stream.width, stream.height = width, height
    return stream


def write_video(path: Path, frames: np.ndarray, fps: float, *, lossless: bool = False) -> None:
    """Write frames (uint8 [T, H, W, 3], or [T, H, W] for grey) as a video; see video_writer."""
    if not len(frames):
        raise WorldtuneError(f"{path}: no frame was given; expected at least one.")
    with video_writer(path, fps, lossless=lossless) as append:
        append(frames)
