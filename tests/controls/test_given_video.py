import numpy as np
import pytest

from worldtune.controls.registry import CONTROL_KINDS
from worldtune.media.video import read_frames, write_video


@pytest.mark.parametrize("kind", ["depth", "hdmap", "lidar"])
def test_hint_is_the_controls_frames_at_the_windows_place(kind, tmp_path, source_of, config_of, frames):
    path = tmp_path / "given.mp4"
    write_video(path, np.concatenate([255 - frames, frames]), 24)
    source = source_of(path, start=3, frames=frames)
    for controlled in (
        CONTROL_KINDS[kind].training(source, config_of(kind), np.random.default_rng(0)),
        CONTROL_KINDS[kind].evaluation(source, config_of(kind)),
    ):
        assert np.array_equal(controlled.hint, read_frames(path, 0, 8)[3:7])
