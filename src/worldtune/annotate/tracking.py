"""Following objects through a clip, both ways in time, whatever network does it.

H height, W width, S side of a network's picture.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from worldtune.annotate.objects import Candidate, choose_new
from worldtune.formats.segmentation import ClipMask
from worldtune.media.video import read_frames

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue with which SAM2 was trained, 0 to 1."""
MAX_CACHED_BYTES = 2 << 30
"""Memory for decoded frames: 800 of 1280x704. A shorter clip is decoded once, a longer one in windows."""


class ClipFrames:
    """The frames of a clip, uint8 [H, W, 3] each, in any order; memory is bounded, whatever its length."""

    def __init__(
        self, video: Path, num_frames: int, height: int, width: int, max_bytes: int = MAX_CACHED_BYTES
    ) -> None:
        """Decode nothing yet."""
        self.video, self.num_frames, self.height, self.width = video, num_frames, height, width
        self._window_frames = min(num_frames, max(1, max_bytes // (height * width * 3)))
        self._start = 0
        self._window = np.zeros((0, height, width, 3), np.uint8)

    def __len__(self) -> int:
        """Return the number of frames of the clip."""
        return self.num_frames

    def __getitem__(self, frame: int) -> NDArray[np.uint8]:
        """Return one frame; neighbours in the direction of reading are decoded with it.

        Raises:
            IndexError: the clip has no such frame.
            WorldtuneError: it cannot be decoded.
        """
        if not 0 <= frame < self.num_frames:
            raise IndexError(f"frame {frame} of a clip of {self.num_frames}")
        if not self._start <= frame < self._start + len(self._window):
            backwards = len(self._window) and frame < self._start
            start = frame - self._window_frames + 1 if backwards else frame
            self._start = min(max(start, 0), self.num_frames - self._window_frames)
            # The old one goes before the new one is read.
            self._window = self._window[:0].copy()
            self._window = read_frames(self.video, self._start, self._window_frames)
        pixels: NDArray[np.uint8] = self._window[frame - self._start]
        return pixels


class PreparedFrames:
    """The frames of a clip as a network reads them, each made when it is asked for; nothing is kept."""

    def __init__(self, frames: ClipFrames, prepare: Callable[[NDArray[np.uint8]], torch.Tensor]) -> None:
        """Make nothing yet."""
        self._frames, self._prepare = frames, prepare

    def __len__(self) -> int:
        """Return the number of frames of the clip."""
        return len(self._frames)

    def __getitem__(self, frame: int) -> torch.Tensor:
        """Return float32 [3, S, S]."""
        return self._prepare(self._frames[frame])


class TrackingSession(Protocol):
    """Objects that are followed in one direction of time; frames are visited in that order, and none is left out."""

    def segment(self, frame: int, candidates: Sequence[Candidate]) -> NDArray[np.bool_]:
        """Return the masks, bool [N, H, W], that candidates have in a frame by themselves; nothing is remembered."""
        ...

    def add(self, frame: int, candidates: Mapping[int, Candidate]) -> None:
        """Follow candidates of a frame from here on, under the given numbers; after the frame's `step`."""
        ...

    def step(self, frame: int) -> dict[int, NDArray[np.bool_]]:
        """Return the mask, bool [H, W], of each object that is followed, in the next frame."""
        ...


class Tracker(Protocol):
    """A loaded network that follows objects."""

    def open(self, frames: ClipFrames, *, reverse: bool) -> TrackingSession:
        """Begin to follow objects in a clip, from its end to its beginning if `reverse`."""
        ...


@dataclass(kw_only=True)
class TrackedObject:
    """An object that was followed through the clip."""

    candidate: Candidate
    found_at: int
    """The frame in which it was found."""
    mask: ClipMask = field(repr=False)


def track_objects(
    tracker: Tracker,
    frames: ClipFrames,
    candidates: Mapping[int, Sequence[Candidate]],
    *,
    same_object_iou: float | None,
    max_objects: int,
) -> list[TrackedObject]:
    """Follow what was found in key frames through the whole clip; an object seen in several of them is one.

    The clip is walked through once forwards, where each key frame adds what is not tracked there already, and once
    backwards with the objects that were found after the first frame.

    Args:
        tracker: the network.
        frames: the clip.
        candidates: by key frame, what was found there.
        same_object_iou: overlap from which two are one object; None where every candidate is one, as a person said so.
        max_objects: objects that are followed at most; the least certain of the key frame that reaches it are left out.

    Returns:
        The objects, the most certain first, then the largest, without those that are seen nowhere.
    """
    objects: dict[int, TrackedObject] = {}
    session = tracker.open(frames, reverse=False)
    for frame in range(len(frames)):
        seen = session.step(frame) if objects else {}
        for number, mask in seen.items():
            objects[number].mask.put(frame, mask)
        found = candidates.get(frame, ())
        if not found:
            continue
        masks = session.segment(frame, found)
        if same_object_iou is None:
            new = list(range(len(found)))
        else:
            tracked = np.stack(list(seen.values())) if seen else np.zeros((0, *masks.shape[1:]), bool)
            new = choose_new(found, masks, tracked, same_object_iou)
        room = max_objects - len(objects)
        if len(new) > room:
            logger.warning("%s, frame %d: %d objects are left out", frames.video.name, frame, len(new) - room)
        added = {}
        for index in new[:room]:
            number = len(objects)
            clip_mask = ClipMask(len(frames), frames.height, frames.width)
            clip_mask.put(frame, masks[index])
            objects[number] = TrackedObject(candidate=found[index], found_at=frame, mask=clip_mask)
            added[number] = found[index]
        if added:
            session.add(frame, added)
    del session
    _track_backwards(tracker, frames, {number: thing for number, thing in objects.items() if thing.found_at})
    kept = [thing for thing in objects.values() if thing.mask.area]
    return sorted(kept, key=lambda thing: (-thing.candidate.score, -thing.mask.area))


def _track_backwards(tracker: Tracker, frames: ClipFrames, late: Mapping[int, TrackedObject]) -> None:
    if not late:
        return
    session = tracker.open(frames, reverse=True)
    last = max(thing.found_at for thing in late.values())
    for frame in range(last, -1, -1):
        if frame < last:
            for number, mask in session.step(frame).items():
                late[number].mask.put(frame, mask)
        joining = {number: thing.candidate for number, thing in late.items() if thing.found_at == frame}
        if joining:
            session.add(frame, joining)
