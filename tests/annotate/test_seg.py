import numpy as np

from worldtune.annotate.seg import scene_cuts
from worldtune.annotate.tracking import ClipFrames
from worldtune.media.video import write_video


def test_a_cut_is_the_first_frame_of_the_new_scene(tmp_path):
    frames = np.zeros((40, 32, 48, 3), np.uint8)
    frames[:20, :, :24] = (200, 30, 30)
    frames[20:, 16:] = (30, 60, 220)
    write_video(tmp_path / "a.mp4", frames, 24)
    assert scene_cuts(ClipFrames(tmp_path / "a.mp4", 40, 32, 48), 24.0) == [20]
