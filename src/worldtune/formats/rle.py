"""Run-length encoded masks in COCO's compressed text form, for whole clips.

A mask is one column of pixels. Its runs alternate between 0 and 1, beginning with 0 (the first may be empty). From the
fourth run on, the difference from the run two before is stored. Each number is cut into groups of five bits, lowest
first; a group is one printable byte: value + 48, with 0x20 set where another group follows and 0x10 of the last group
as the sign.
"""

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worldtune.common.errors import WorldtuneError

GROUP_BITS = 5
MORE = 0x20
SIGN = 0x10
OFFSET = 48
MAX_GROUPS = 12
MAX_PIXELS = 1 << 62
"""Of a mask, and of all differences between its runs: larger sums would wrap around in int64."""


def runs_of(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the run lengths (int64) of a one-dimensional bool mask, beginning with the zeros."""
    changes = np.flatnonzero(mask[1:] != mask[:-1]) + 1
    # The runs of a mask that begins with ones begin with none of zeros.
    start = [0, 0] if mask.size and mask[0] else [0]
    return np.diff(np.concatenate([start, changes, [mask.size]])).astype(np.int64)


def encode_runs(runs: NDArray[np.int64]) -> bytes:
    """Return run lengths (int64 [N]) as COCO's compressed bytes."""
    values = runs.astype(np.int64)
    values[3:] -= runs[1:-2]
    groups: list[NDArray[np.uint8]] = []
    written: list[NDArray[np.bool_]] = []
    alive = np.ones(values.size, dtype=bool)
    while alive.any():
        group = values & (2**GROUP_BITS - 1)
        values = values >> GROUP_BITS
        more = np.where(group & SIGN, values != -1, values != 0) & alive
        groups.append((group + MORE * more + OFFSET).astype(np.uint8))
        written.append(alive)
        alive = more
    if not groups:
        return b""
    return np.stack(groups, axis=1)[np.stack(written, axis=1)].tobytes()


def decode_runs(counts: bytes | str) -> NDArray[np.int64]:
    """Return the run lengths (int64) of COCO's compressed bytes or text.

    Raises:
        WorldtuneError: it is no text, has characters outside the code, ends within a number, or gives a negative run or
            more pixels than any mask has.
    """
    if not isinstance(counts, bytes | bytearray | str):
        raise WorldtuneError(f"a mask's RLE text is a {type(counts).__name__}; expected bytes or text")
    # In this encoding no character outside of the code becomes one of it.
    data = counts.encode("utf-8", errors="surrogatepass") if isinstance(counts, str) else counts
    groups = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - OFFSET
    if groups.size == 0:
        return np.zeros(0, dtype=np.int64)
    if groups.min() < 0 or groups.max() >= 2 * MORE:
        raise WorldtuneError("a mask's RLE text holds characters outside COCO's code (bytes 48 to 111): write it again")
    last = np.flatnonzero((groups & MORE) == 0)
    if last.size == 0 or last[-1] != groups.size - 1:
        raise WorldtuneError("a mask's RLE text ends within a number: the file was cut; write it again")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > MAX_GROUPS:
        raise WorldtuneError(f"a mask's RLE text holds a number of {lengths.max()} groups; at most {MAX_GROUPS} fit")
    shifts = GROUP_BITS * (np.arange(groups.size) - np.repeat(first, lengths))
    values = np.add.reduceat((groups & (MORE - 1)) << shifts, first)
    values -= np.where(groups[last] & SIGN, np.int64(1) << (GROUP_BITS * lengths), 0)
    _check_sum(values)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0:
        raise WorldtuneError("a mask's RLE text gives a negative run: the file is damaged; write it again")
    _check_sum(values)
    return values


def _check_sum(values: NDArray[np.int64]) -> None:
    # Floating point: whole numbers would wrap around unseen.
    if np.abs(values).sum(dtype=np.float64) >= MAX_PIXELS:
        raise WorldtuneError("a mask's RLE text gives more pixels than any clip has: the file is damaged")


def encode_clip_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a clip's mask (bool [T, H, W]) as the entry `segmentation_mask_rle` of a segmentation file."""
    column = np.ascontiguousarray(mask).reshape(-1)
    data = {"size": [int(column.size), 1], "counts": encode_runs(runs_of(column))}
    return {"data": data, "mask_shape": tuple(int(size) for size in mask.shape)}


def mask_shape(entry: dict[str, Any]) -> tuple[int, int, int]:
    """Return (T, H, W) that an entry `segmentation_mask_rle` states.

    Raises:
        WorldtuneError: it states anything else.
    """
    try:
        num_frames, height, width = whole_numbers(entry["mask_shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise WorldtuneError(
            f"a segmentation entry needs mask_shape, whole numbers (T, H, W); found keys {sorted(entry)} ({error})"
        ) from error
    return num_frames, height, width


def whole_numbers(value: Any) -> tuple[int, ...]:
    """Return a list, tuple or array [N] of whole numbers as a tuple.

    Raises:
        TypeError: it is anything else.
    """
    return tuple(operator.index(number) for number in value)


def decode_clip_mask(entry: dict[str, Any], start: int, count: int) -> NDArray[np.bool_]:
    """Return frames `start` to `start + count` of an entry `segmentation_mask_rle` as bool [count, H, W].

    Only the wanted frames are unfolded, so memory is theirs, whatever length the entry states.

    Raises:
        WorldtuneError: the entry's parts contradict each other, or the frames are outside the clip.
    """
    _, height, width = mask_shape(entry)
    runs = np.diff(_ends_in_window(entry, start, count), prepend=0).astype(np.int64)
    values = np.arange(runs.size) % 2 == 1
    return np.repeat(values, runs).reshape(count, height, width)


def clip_mask_spans(entry: dict[str, Any], start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the object is in frames `start` to `start + count`: where its spans begin and end, int64 [N] each.

    Places are those of the frames' pixels in the order (T, H, W). Errors as those of `decode_clip_mask`.
    """
    edges = _ends_in_window(entry, start, count)
    ends = edges[1::2]
    begins = edges[::2][: ends.size]
    shown = ends > begins
    return begins[shown], ends[shown]


def _ends_in_window(entry: dict[str, Any], start: int, count: int) -> NDArray[np.int64]:
    """Return where each run ends in the flattened pixels of a window, 0 or their number for runs outside of it."""
    num_frames, height, width = mask_shape(entry)
    try:
        counts = entry["data"]["counts"]
    except (LookupError, TypeError) as error:
        raise WorldtuneError(f"a segmentation entry needs data.counts; found keys {sorted(entry)}") from error
    if min(num_frames, height, width) < 1:
        raise WorldtuneError(f"a segmentation entry states mask_shape {(num_frames, height, width)}: sizes start at 1")
    if start < 0 or count < 1 or start + count > num_frames:
        raise WorldtuneError(f"frames {start} to {start + count} were asked of a mask of {num_frames} frames")
    ends = np.cumsum(decode_runs(counts))
    if ends.size == 0 or ends[-1] != num_frames * height * width:
        total = int(ends[-1]) if ends.size else 0
        raise WorldtuneError(
            f"a mask's runs cover {total} pixels, mask_shape {(num_frames, height, width)} has "
            f"{num_frames * height * width}: the mask belongs to another clip; write it again"
        )
    return np.clip(ends - start * height * width, 0, count * height * width)
