"""Run-length encoded masks: COCO's text, round trips, damaged input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worldtune.common.errors import WorldtuneError
from worldtune.formats.rle import decode_clip_mask, decode_runs, encode_clip_mask, encode_runs, runs_of


def reference_text(runs: list[int]) -> bytes:
    """The code spelled out number by number, as its description has it."""
    text = bytearray()
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        while True:
            group = value & 31
            value >>= 5
            done = value == (-1 if group & 16 else 0)
            text.append(48 + group + (0 if done else 32))
            if done:
                break
    return bytes(text)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_runs_survive(runs: list[int]) -> None:
    text = encode_runs(np.array(runs, dtype=np.int64))
    assert text == reference_text(runs)
    assert decode_runs(text).tolist() == runs
    assert decode_runs(text.decode()).tolist() == runs


@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))), st.data())
@settings(max_examples=150, deadline=None)
def test_any_clip_mask_survives(mask: np.ndarray, data: st.DataObject) -> None:
    entry = encode_clip_mask(mask)
    assert entry["mask_shape"] == mask.shape
    assert entry["data"]["size"] == [mask.size, 1]
    start = data.draw(st.integers(0, mask.shape[0] - 1))
    count = data.draw(st.integers(1, mask.shape[0] - start))
    np.testing.assert_array_equal(decode_clip_mask(entry, start, count), mask[start : start + count])


def test_known_text() -> None:
    assert runs_of(np.array([0, 0, 1, 1, 1, 0], dtype=bool)).tolist() == [2, 3, 1]
    assert runs_of(np.array([1, 0], dtype=bool)).tolist() == [0, 1, 1]
    assert encode_runs(np.array([2, 3, 1])) == b"231"
    # 40 = 8 + 32, so a first group of 8 with the mark for more (8 + 32 + 48 = X), then 1; the fourth run is 3 - 40.
    assert encode_runs(np.array([0, 40, 5, 3])) == b"0X15" + reference_text([0, 0, 0, 3 - 40])[3:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"size": [8, 1], "counts": b"2\x7f"}}, "outside COCO's code"),
        ({"data": {"size": [8, 1], "counts": b"2X"}}, "ends within a number"),
        ({"data": {"size": [8, 1], "counts": b"X" * 20 + b"1"}}, "groups"),
        ({"data": {"size": [8, 1], "counts": b"O"}}, "negative run"),
        ({"data": {"size": [8, 1], "counts": b"2"}}, "cover 2 pixels"),
        ({"data": {"size": [8, 1]}}, "needs data.counts"),
        ({"data": np.zeros(2)}, "needs data.counts"),
        ({"data": {"size": [8, 1], "counts": np.zeros(2, np.uint8)}}, "expected bytes or text"),
        # Some encodings make a question mark of it, which is one of the code's characters.
        ({"data": {"size": [8, 1], "counts": "2\u4e006"}}, "outside COCO's code"),
        ({"mask_shape": (2, 2)}, "needs mask_shape"),
        ({"mask_shape": np.full((3, 2), 2)}, "needs mask_shape"),
        ({"mask_shape": (2.5, 2, 2)}, "needs mask_shape"),
        ({"mask_shape": (0, 2, 2)}, "sizes start at 1"),
        ({"mask_shape": (3, 2, 2)}, "cover 8 pixels"),
    ],
)
def test_damage_is_named(change: dict, message: str) -> None:
    entry = {**encode_clip_mask(np.ones((2, 2, 2), dtype=bool)), **change}
    with pytest.raises(WorldtuneError, match=message):
        decode_clip_mask(entry, 0, 1)


@pytest.mark.parametrize("runs", [[1 << 57] * 128 + [8], [1 << 58, 0] * 64 + [8]])
def test_runs_that_wrap_around_to_the_size_of_the_clip_are_damage(runs: list[int]) -> None:
    assert sum(runs) % 2**64 == 8
    entry = {"data": {"size": [8, 1], "counts": reference_text(runs)}, "mask_shape": (2, 2, 2)}
    with pytest.raises(WorldtuneError, match="more pixels than any clip has"):
        decode_clip_mask(entry, 0, 2)


def test_frames_outside_the_clip_are_named() -> None:
    with pytest.raises(WorldtuneError, match="mask of 2 frames"):
        decode_clip_mask(encode_clip_mask(np.ones((2, 2, 2), dtype=bool)), 1, 2)
