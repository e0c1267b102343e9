"""Grey videos of 16 bits without loss: FFV1 in Matroska (.mkv). T frames, H height, W width."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path
from worldtune.media.video import MAX_PIXELS, OPEN_OPTIONS, Append, UndecodableVideoError

PIXELS = "gray16le"
FOUR_SLICES_PIXELS = 31_500_000
"""Largest frame that FFV1 writes in four slices, about: a slice has 2^27 bits at most, 17 for each pixel."""


@contextlib.contextmanager
def grey16_writer(path: Path, fps: float) -> Iterator[Append]:
    """Give a function that appends frames (uint16 [T, H, W]) to a new video.

    The file appears when the block ends without an error, and equal frames give equal bytes.

    Raises:
        WorldtuneError: the path does not end in .mkv, frames are anything else, or none was given.
    """
    if path.suffix != ".mkv":
        raise WorldtuneError(f"{path}: a video of 16 bits is written as .mkv; rename it.")
    rate = Fraction(fps).limit_denominator(1001)
    with atomic_path(path) as temporary, av.open(temporary, "w") as container:
        # Matroska would otherwise store a random number.
        container.flags |= av.container.Flags.bitexact.value
        stream: av.VideoStream | None = None

        def append(frames: np.ndarray) -> None:
            nonlocal stream
            if frames.dtype != np.uint16 or frames.ndim != 3:
                raise WorldtuneError(f"{path}: frames are {frames.dtype} {frames.shape}; expected uint16 [T, H, W].")
            if stream is None:
                slices = 4 if frames.shape[1] * frames.shape[2] <= FOUR_SLICES_PIXELS else 16
                # One thread: the number of threads may change the bytes.
                options = {"level": "3", "slices": str(slices), "slicecrc": "1", "threads": "1"}
                stream = container.add_stream("ffv1", rate=rate, options=options)
                stream.height, stream.width = frames.shape[1:]
                stream.pix_fmt = PIXELS
            for pixels in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=PIXELS)
                container.mux(stream.encode(frame))

        yield append
        if stream is None:
            raise WorldtuneError(f"{path}: no frame was given; expected at least one.")
        container.mux(stream.encode(None))


def iterate_grey16(path: Path) -> Iterator[np.ndarray]:
    """Yield every frame of a grey video of 16 bits as uint16 [H, W], in order, exactly as it was written.

    Raises:
        WorldtuneError: the file is missing, cannot be decoded, or has other pixels.
    """
    if not path.is_file():
        raise WorldtuneError(f"{path} does not exist. Run the rule that makes it.")
    try:
        with av.open(path, metadata_errors="replace", options=OPEN_OPTIONS) as container:
            if not container.streams.video:
                raise UndecodableVideoError(f"{path} has no video stream. Make it again.")
            stream = container.streams.video[0]
            # A small file can hold a frame that fills the memory.
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            for frame in container.decode(stream):
                if frame.format.name != PIXELS:
                    raise UndecodableVideoError(f"{path} has pixels {frame.format.name}; expected {PIXELS}.")
                yield frame.to_ndarray()
    except FFmpegError as error:
        raise UndecodableVideoError(f"{path} cannot be decoded: {error}. Make it again.") from error
