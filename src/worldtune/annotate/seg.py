"""Masks of the objects of a clip: GroundingDINO finds them, SAM2 follows them (spec/transfer1-training.md 5.9, 6.6)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worldtune.annotate.detection import Detector, caption_prompt
from worldtune.annotate.objects import Candidate, even_key_frames, key_frames_of_scenes
from worldtune.annotate.protocol import ClipToAnnotate
from worldtune.annotate.seg_prompts import read_prompts
from worldtune.annotate.tracking import ClipFrames, Tracker, track_objects
from worldtune.common.errors import WorldtuneError
from worldtune.formats.segmentation import write_segmentation

logger = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SegSettings:
    """How objects are found; the fields are those of the dataset's configuration."""

    prompt: str
    key_frames: int
    key_frames_at: Literal["even", "cuts"]
    box_threshold: float
    text_threshold: float
    retry_threshold: float
    same_object_iou: float
    max_objects: int
    keep_empty: bool


class SegmentationNetworks:
    """A detector and a tracker."""

    def __init__(self, detector: Detector, tracker: Tracker, settings: SegSettings) -> None:
        """Take networks that are loaded."""
        self.detector, self.tracker, self.settings = detector, tracker, settings

    def annotate(self, clip: ClipToAnnotate, target: Path) -> None:
        """Write the masks of the clip's objects; see protocol.ClipAnnotator."""
        frames = ClipFrames(clip.video, clip.num_frames, clip.height, clip.width)
        if clip.prompts is not None:
            candidates = read_prompts(clip.prompts, clip.num_frames, clip.height, clip.width)
            same_object_iou = None
        else:
            candidates = self._search(clip, frames)
            same_object_iou = self.settings.same_object_iou
        objects = track_objects(
            self.tracker,
            frames,
            candidates,
            same_object_iou=same_object_iou,
            max_objects=self.settings.max_objects,
        )
        if not objects:
            if not self.settings.keep_empty:
                raise WorldtuneError("no object was found in it")
            logger.warning("%s: no object was found; its file has none, so that its control is black", clip.clip_id)
        write_segmentation(target, [(thing.candidate.phrase, thing.mask) for thing in objects])

    def _search(self, clip: ClipToAnnotate, frames: ClipFrames) -> dict[int, list[Candidate]]:
        settings = self.settings
        prompt = settings.prompt or caption_prompt(clip.caption or "")
        if not prompt:
            raise WorldtuneError("it has no caption to search for; write one, or set annotate.seg.prompt")
        scores = {frame: self.detector.search(frames[frame], prompt) for frame in self._key_frames(clip, frames)}
        retry = settings.retry_threshold
        for box_threshold, text_threshold in ((settings.box_threshold, settings.text_threshold), (retry, retry)):
            found = {
                frame: self.detector.candidates(score, box_threshold, text_threshold) for frame, score in scores.items()
            }
            if any(found.values()):
                break
        return found

    def _key_frames(self, clip: ClipToAnnotate, frames: ClipFrames) -> Sequence[int]:
        count = self.settings.key_frames
        if self.settings.key_frames_at == "even":
            return even_key_frames(len(frames), count)
        return key_frames_of_scenes(len(frames), count, scene_cuts(frames, clip.fps))


def load_segmentation(
    detector: Path, tracker: Path, backend: Literal["transformers", "sam2"], settings: SegSettings, device: str
) -> SegmentationNetworks:
    """Load both networks from their folders, the tracker by one of the two libraries that have it.

    Raises:
        WorldtuneError: a folder holds no such network, or the library is not installed.
    """
    found: Tracker
    if backend == "sam2":
        from worldtune.annotate.sam2_package import PackageTracker

        found = PackageTracker(tracker, device)
    else:
        from worldtune.annotate.sam2_transformers import TransformersTracker

        found = TransformersTracker(tracker, device)
    return SegmentationNetworks(Detector(detector, device), found, settings)


def scene_cuts(frames: ClipFrames, fps: float) -> list[int]:
    """Return the first frames of a clip's scenes but the first, by PySceneDetect's ContentDetector as it comes."""
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

    detector = ContentDetector()
    cuts = []
    for number in range(len(frames)):
        # OpenCV's order: blue, green, red.
        cuts += detector.process_frame(FrameTimecode(number, fps), frames[number][..., ::-1].copy())
    return [cut.frame_num for cut in cuts]
