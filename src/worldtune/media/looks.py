"""What a video looks like, in a few numbers that are gathered while it is decoded anyway.

The fingerprint is a perceptual hash: copies that were scaled, encoded again or made brighter have nearly the same bits.
All sums are of whole numbers, so that every processor finds the same ones. H height, W width.
"""

import functools

import av
import numpy as np
from numpy.typing import NDArray

HASHED_FRAMES = 4
"""Frames of a fingerprint, evenly over the video."""
HASH_SIDE = 8
"""A frame's hash has HASH_SIDE x HASH_SIDE bits."""
FINGERPRINT_BITS = HASHED_FRAMES * HASH_SIDE**2
SMALL_SIDE = 32
"""Frames are averaged to a square of this side before they are hashed."""
DCT_SCALE = 1 << 12
MEAN_SCALE = 16
FLAT = 1.0
"""Largest frequency component, in grey levels, of a frame that shows nothing; its bits would be those of noise."""
STEP = 16
"""Brightness and motion are taken from every so manieth pixel of every so manieth row."""
BLACK = 20
"""Brightest luma of a black frame: 16 in video range, and what an encoder adds to it."""
PLAIN_SPREAD = BLACK - 16
"""Largest difference of luma in a frame of one level, for the same reason."""


def luma(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Return the brightness of a decoded frame as uint8 [H, W]; a view of the decoder's own where that is possible."""
    first = frame.format.components[0]
    if first.is_luma and first.bits == 8 and (frame.format.is_planar or len(frame.format.components) == 1):
        plane = frame.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        return rows[: frame.height, : frame.width]
    return frame.to_ndarray(format="gray")


def is_plain(frame: av.VideoFrame) -> bool:
    """Return whether a decoded frame shows nothing: it is black, or of one level of grey."""
    pixels = luma(frame)
    brightest = int(pixels.max())
    return brightest <= BLACK or brightest - int(pixels.min()) <= PLAIN_SPREAD


@functools.cache
def _cosines() -> NDArray[np.int64]:
    """Return the first HASH_SIDE rows of the orthonormal DCT-II of SMALL_SIDE values, times DCT_SCALE."""
    places = (np.arange(SMALL_SIDE) + 0.5) * np.pi / SMALL_SIDE
    rows = np.cos(np.outer(np.arange(HASH_SIDE), places)) * np.sqrt(2 / SMALL_SIDE)
    rows[0] /= np.sqrt(2)
    return np.round(rows * DCT_SCALE).astype(np.int64)


def _averaged(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return a picture (uint8 [H, W]) averaged to SMALL_SIDE x SMALL_SIDE, times MEAN_SCALE."""
    sums, areas = pixels, np.ones((), np.int64)
    for axis, length in enumerate(pixels.shape):
        begins = np.arange(SMALL_SIDE) * length // SMALL_SIDE
        sums = np.add.reduceat(sums, begins, axis=axis, dtype=np.int64)
        # A picture of fewer rows repeats them.
        counts = np.maximum(np.diff(begins, append=length), 1)
        areas = areas * np.expand_dims(counts, 1 - axis)
    return np.asarray(sums * MEAN_SCALE // areas, np.int64)


def frame_hash(pixels: NDArray[np.uint8]) -> int:
    """Return the perceptual hash of a picture (uint8 [H, W]): 64 bits, whether each low frequency is above the median.

    The mean (frequency 0) has no bit of its own, so that a brighter copy is a copy. The method is pHash's: Zauner,
    "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), 3.2.1.
    """
    cosines = _cosines()
    frequencies = (cosines @ _averaged(pixels) @ cosines.T).reshape(-1)[1:]
    if np.abs(frequencies).max() <= FLAT * SMALL_SIDE * MEAN_SCALE * DCT_SCALE**2 / 2:
        return 0
    bits = frequencies > np.sort(frequencies)[frequencies.size // 2]
    return int.from_bytes(np.packbits(np.append(False, bits)).tobytes(), "big")


class Looks:
    """Gathers a video's looks frame by frame; the first frame of a video begins anew."""

    def __init__(self) -> None:
        """Begin with no frame."""
        self._begin()

    def _begin(self) -> None:
        self._hashes: list[int] = []
        self._brightness = 0
        self._motion = 0
        self._pixels = 0
        self._before: NDArray[np.int16] | None = None

    def see(self, number: int, num_frames: int, frame: av.VideoFrame) -> None:
        """Take in frame `number` of `num_frames`; they come in order."""
        if number == 0:
            self._begin()
        pixels = luma(frame)
        for index in range(HASHED_FRAMES):
            if (2 * index + 1) * num_frames // (2 * HASHED_FRAMES) == number:
                self._hashes.append(frame_hash(pixels))
        few = pixels[::STEP, ::STEP].astype(np.int16)
        self._brightness += int(few.sum())
        if self._before is not None:
            self._motion += int(np.abs(few - self._before).sum())
        self._before = few
        self._pixels += few.size

    def facts(self) -> dict[str, str | float]:
        """Return what was seen, once all frames were.

        Returns:
            fingerprint: FINGERPRINT_BITS as hexadecimal digits; brightness: the mean luma, 0 to 255; motion: the mean
            change of luma from a frame to the next one.
        """
        changes = self._pixels - (self._before.size if self._before is not None else 0)
        return {
            "fingerprint": "".join(f"{value:016x}" for value in self._hashes),
            "brightness": round(self._brightness / max(self._pixels, 1), 2),
            "motion": round(self._motion / max(changes, 1), 3),
        }
