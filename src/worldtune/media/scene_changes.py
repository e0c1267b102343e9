"""Where the scenes of a video change, by PySceneDetect's content detector."""

import bisect
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from worldtune.media.video import VideoInfo, check_video, frame_times, probe

DETECTION_WIDTH = 256
"""Pixels of a row to which larger frames are shrunk before they are compared, as PySceneDetect does by itself."""


@dataclass(frozen=True, kw_only=True)
class SceneChanges:
    """The scenes of one video."""

    times_s: tuple[float, ...]
    """Presentation time of each frame, and the end of the last one."""
    starts: tuple[int, ...]
    """Number of the first frame of each scene but the first one."""

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return len(self.times_s) - 1

    @property
    def frame_s(self) -> float:
        """Usual duration of a frame in seconds."""
        return (self.times_s[-1] - self.times_s[0]) / self.num_frames

    def duration_s(self, start: int, end: int) -> float:
        """Return how long the frames `start` to `end` - 1 last, in seconds."""
        return self.times_s[end] - self.times_s[start]

    def last_within(self, start: int, seconds: float) -> int:
        """Return the end of the longest part from frame `start` on that lasts `seconds` at most, and a frame at least.

        Half a frame more is admitted, since frames seldom make up exactly a time that somebody wrote down.
        """
        limit = self.times_s[start] + seconds + self.frame_s / 2
        return min(max(bisect.bisect_right(self.times_s, limit) - 1, start + 1), self.num_frames)

    def span_s(self, start: int, end: int) -> tuple[float, float]:
        """Return a time range that holds the frames `start` to `end` - 1 and no other, in seconds.

        Its ends lie midway between two frames, where no rounding of times can move a frame over them.
        """
        before = 0.0 if start == 0 else (self.times_s[start - 1] + self.times_s[start]) / 2
        return round(before, 6), round((self.times_s[end - 1] + self.times_s[end]) / 2, 6)


def find_scene_changes(path: Path, threshold: float | None) -> SceneChanges:
    """Decode a whole video once and return where its scenes change.

    Args:
        path: the video.
        threshold: mean change of hue, saturation and brightness from a frame to the next (0 to 255) that is a change
            of scene; None looks for none.

    Raises:
        VideoError: the video cannot be decoded from its first frame to its last; see check_video.
    """
    if threshold is None:
        info, starts = check_video(path), []
    else:
        detector = _Detector(threshold, probe(path))
        info = check_video(path, lambda _number, _total, frame: detector.look(frame))
        starts = detector.starts
    times = frame_times(path)
    return SceneChanges(times_s=(*times, times[-1] + 1 / info.fps), starts=tuple(starts))


class _Detector:
    """PySceneDetect's detector, which is shown one frame after the other."""

    def __init__(self, threshold: float, info: VideoInfo) -> None:
        # Imported here: it loads OpenCV, and planning the workflow imports this module.
        from scenedetect import ContentDetector, FrameTimecode

        # Its own filter would merge short scenes, and leave clips with a change of scene inside.
        self._detector = ContentDetector(threshold=threshold, min_scene_len=0)
        self._timecode = FrameTimecode
        self._rate = Fraction(info.fps).limit_denominator(1001)
        width = min(info.width, DETECTION_WIDTH)
        self._size_wh = width, max(2, round(info.height * width / info.width))
        self._num_frames = 0
        self.starts: list[int] = []

    def look(self, frame: Any) -> None:
        """Take the next frame, one of PyAV's."""
        width, height = self._size_wh
        pixels = frame.reformat(width=width, height=height, format="bgr24", interpolation="AREA").to_ndarray()
        number = self._timecode(self._num_frames, self._rate)
        self.starts += [change.frame_num for change in self._detector.process_frame(number, pixels)]
        self._num_frames += 1
