import numpy as np
import pytest

import worldtune.media.grey16 as grey16
from worldtune.common.errors import WorldtuneError
from worldtune.media.grey16 import grey16_writer, iterate_grey16
from worldtune.media.video import probe, write_video

FRAMES = np.random.default_rng(0).integers(0, 65_536, (5, 6, 10), dtype=np.uint16)
FRAMES[0, 0, :4] = 0, 1, 255, 65_535


def write(path, frames=FRAMES):
    with grey16_writer(path, 30_000 / 1001) as append:
        append(frames[:2])
        append(frames[2:])
    return path


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path / "a.mkv")
    np.testing.assert_array_equal(np.stack(list(iterate_grey16(path))), FRAMES)
    assert probe(path).fps == pytest.approx(30_000 / 1001, abs=1e-12)
    assert write(tmp_path / "b.mkv").read_bytes() == path.read_bytes()


def test_a_frame_of_eight_thousand_columns(tmp_path):
    frames = np.zeros((1, 4320, 7680), np.uint16)
    frames[0, ::700, ::900] = 65_535
    with grey16_writer(tmp_path / "a.mkv", 24) as append:
        append(frames)
    assert np.array_equal(next(iterate_grey16(tmp_path / "a.mkv")), frames[0])


def test_frames_larger_than_any_that_is_decoded_are_refused(monkeypatch, tmp_path):
    path = write(tmp_path / "a.mkv")
    monkeypatch.setattr(grey16, "MAX_PIXELS", 59)
    with pytest.raises(WorldtuneError, match="cannot be decoded"):
        next(iterate_grey16(path))


def test_other_frames_and_names_are_refused(tmp_path):
    with pytest.raises(WorldtuneError, match=r"uint8.*expected uint16"):
        write(tmp_path / "a.mkv", FRAMES.astype(np.uint8))
    with pytest.raises(WorldtuneError, match=r"written as \.mkv"):
        write(tmp_path / "a.mp4")
    with pytest.raises(WorldtuneError, match="no frame"), grey16_writer(tmp_path / "a.mkv", 24):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path):
    with pytest.raises(WorldtuneError, match="does not exist"):
        next(iterate_grey16(tmp_path / "a.mkv"))
    (tmp_path / "a.mkv").write_bytes(b"nonsense")
    with pytest.raises(WorldtuneError, match="cannot be decoded"):
        next(iterate_grey16(tmp_path / "a.mkv"))
    write_video(tmp_path / "b.mkv", FRAMES.astype(np.uint8), 24, lossless=True)
    with pytest.raises(WorldtuneError, match="expected gray16le"):
        next(iterate_grey16(tmp_path / "b.mkv"))
