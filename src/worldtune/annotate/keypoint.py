"""Whole-body keypoints of each frame's people by rtmlib and onnxruntime (spec/transfer1-training.md 5.10, 6.6).

A detector finds people, a pose network finds the 133 keypoints of each. rtmlib prepares the pictures and reads the
networks' answers; here the people of several frames go through the pose network at once. T frames, H height, W width.
"""

import contextlib
import itertools
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from rtmlib import YOLOX, RTMPose

from worldtune.annotate.protocol import ClipToAnnotate, NetworkFailedError, choose_device
from worldtune.common.errors import WorldtuneError
from worldtune.formats.keypoints import NUM_KEYPOINTS, Person, person_fields, write_keypoints
from worldtune.media.video import iterate_frames

logger = logging.getLogger(__name__)

VERSION = 1

FRAMES_PER_WINDOW = 8
"""Frames that are in memory at once."""
PEOPLE_PER_BATCH = 16
"""People that go through the pose network at once, where it takes several."""
CUDA = "CUDAExecutionProvider"
NETWORK_ERRORS = tuple(
    getattr(onnxruntime_errors, name)
    for name in (
        *("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded"),
        *("NoModel", "NoSuchFile", "NotImplemented", "RuntimeException"),
    )
)


@dataclass(frozen=True)
class _Found:
    """A person that the detector found."""

    frame: int
    box: np.ndarray
    """Left, top, right, bottom in pixels, float [4]; it may reach out of the frame."""
    confidence: float


class WholeBody:
    """A detector and a pose network from local files."""

    def __init__(
        self,
        detector: Path,
        pose: Path,
        device: str,
        *,
        person_confidence_min: float,
        keypoint_confidence_min: float,
        max_people: int,
    ) -> None:
        """Load both; nothing is fetched.

        Args:
            detector: a YOLOX in ONNX that suppresses overlapping boxes itself: picture [1, 3, h, w] to boxes [1, N, 5].
            pose: an RTMPose or RTMW in ONNX: pictures [n, 3, h, w] to SimCC [n, 133, 2 w] and [n, 133, 2 h].
            device: "cuda", "cpu", or "auto" for CUDA where there is one and onnxruntime-gpu is installed.
            person_confidence_min: less certain people are left out.
            keypoint_confidence_min: the face's box is drawn around face points of this confidence.
            max_people: most people of a frame.

        Raises:
            WorldtuneError: a file is missing or no such network, or CUDA is asked for and cannot be used.
        """
        self.person_confidence_min, self.max_people = person_confidence_min, max_people
        self.keypoint_confidence_min = keypoint_confidence_min
        chosen = _choose_device(device)
        self._detector = _load(YOLOX, detector, chosen)
        height, width, _ = _input_size(self._detector, detector)
        self._detector.model_input_size = (height, width)
        self._pose = _load(RTMPose, pose, chosen)
        height, width, several = _input_size(self._pose, pose)
        self._pose.model_input_size = (width, height)
        self._people_per_batch = PEOPLE_PER_BATCH if several else 1
        self._check_answers(detector, pose)

    def _check_answers(self, detector: Path, pose: Path) -> None:
        grey = np.full((64, 64, 3), 114, np.uint8)
        boxes = self._detector.inference(self._detector.preprocess(grey)[0])[0]
        if boxes.ndim != 3 or boxes.shape[-1] != 5:
            raise WorldtuneError(
                f"{detector} gives {list(boxes.shape)}; expected boxes with a confidence, [1, N, 5]. Take a YOLOX that "
                "suppresses overlapping boxes itself, such as those of OpenMMLab's onnx_sdk."
            )
        width, height = self._pose.model_input_size
        shapes = [list(output.shape) for output in self._run_pose(np.zeros((1, 3, height, width), np.float32))]
        expected = [[1, NUM_KEYPOINTS, 2 * width], [1, NUM_KEYPOINTS, 2 * height]]
        if shapes != expected:
            raise WorldtuneError(
                f"{pose} gives {shapes}; expected {expected}. Take an RTMPose or RTMW of the whole body."
            )

    def annotate(self, clip: ClipToAnnotate, target: Path) -> None:
        """Write the people of every frame; see protocol.ClipAnnotator and formats.keypoints.person_fields."""
        frames: list[list[Person]] = []
        decoded = iterate_frames(clip.video)
        while window := list(itertools.islice(decoded, FRAMES_PER_WINDOW)):
            frames += self.people(window)
        write_keypoints(target, frames)

    def people(self, frames: list[np.ndarray]) -> list[list[Person]]:
        """Return the people of each frame (uint8 [H, W, 3]), the most certain ones first.

        Raises:
            WorldtuneError: a network fails, or gives places that are not finite.
        """
        # rtmlib's networks take the channels in OpenCV's order.
        pictures = [np.ascontiguousarray(frame[..., ::-1]) for frame in frames]
        try:
            found = [person for number, picture in enumerate(pictures) for person in self._detect(number, picture)]
            people: list[list[Person]] = [[] for _ in frames]
            for person, points in self._points(pictures, found):
                height, width = frames[person.frame].shape[:2]
                people[person.frame].append(self._fields(person, points, (width, height)))
        except NETWORK_ERRORS as error:
            raise NetworkFailedError(f"a network failed: {error}") from error
        return people

    def _detect(self, number: int, picture: np.ndarray) -> list[_Found]:
        prepared, ratio = self._detector.preprocess(picture)
        boxes = self._detector.inference(prepared)[0]
        confidence = boxes[0, :, 4]
        # rtmlib leaves out boxes too and says nothing of their confidence: all that it gets here are left in.
        kept = confidence > self.person_confidence_min
        places = self._detector.postprocess(boxes[:, kept].copy(), ratio)
        height, width = picture.shape[:2]
        found = [
            _Found(number, place, float(certain))
            for place, certain in zip(places, confidence[kept], strict=True)
            if (_extent(place, (width, height)) >= 1).all()
        ]
        return sorted(found, key=lambda person: -person.confidence)[: self.max_people]

    def _points(self, pictures: list[np.ndarray], found: list[_Found]) -> Iterator[tuple[_Found, np.ndarray]]:
        """Yield each person with its keypoints, float64 [133, 3]: x and y in pixels, confidence."""
        remaining = iter(found)
        while batch := list(itertools.islice(remaining, self._people_per_batch)):
            prepared = [self._pose.preprocess(pictures[person.frame], person.box) for person in batch]
            inputs = np.stack([crop.transpose(2, 0, 1) for crop, _, _ in prepared]).astype(np.float32)
            answers = self._run_pose(inputs)
            for index, (person, (_, center, scale)) in enumerate(zip(batch, prepared, strict=True)):
                own = [answer[index : index + 1] for answer in answers]
                places, confidence = self._pose.postprocess(own, center, scale)
                yield person, np.concatenate([places[0], confidence[0][:, None]], axis=1)

    def _run_pose(self, inputs: np.ndarray) -> list[np.ndarray]:
        session = self._pose.session
        outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: inputs})
        return outputs

    def _fields(self, person: _Found, points: np.ndarray, size_wh: tuple[int, int]) -> Person:
        if not np.isfinite(points).all():
            raise WorldtuneError("the pose network gave places that are not finite")
        scale = np.array(size_wh, np.float64)
        shares = np.concatenate([points[:, :2] / scale, points[:, 2:]], axis=1)
        first = np.clip(person.box[:2], 0, scale) / scale
        box = np.concatenate([first, _extent(person.box, size_wh) / scale, [person.confidence]])
        return person_fields(shares, box, size_wh, face_confidence_min=self.keypoint_confidence_min)


def _extent(box: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """Return width and height in pixels of the part of a box (left, top, right, bottom) that lies in the frame."""
    extent: np.ndarray = np.clip(box[2:], 0, size_wh) - np.clip(box[:2], 0, size_wh)
    return extent


def _choose_device(device: str) -> str:
    """Return "cuda" or "cpu", as rtmlib names them."""
    usable = CUDA in onnxruntime.get_available_providers()
    if device == "cuda" and not usable:
        raise WorldtuneError(
            "onnxruntime was built without CUDA. Install onnxruntime-gpu in its place, or work on the CPU."
        )
    wanted = choose_device(device)
    if wanted == "cuda" and not usable:
        logger.warning("keypoints are made on the CPU: onnxruntime-gpu, in place of onnxruntime, would use the GPU")
        return "cpu"
    return wanted


def _load(kind: type[YOLOX] | type[RTMPose], path: Path, device: str) -> YOLOX | RTMPose:
    # rtmlib would take a missing file's name for an address and fetch it.
    if not path.is_file():
        raise WorldtuneError(
            f"{path} does not exist; a network in ONNX is expected there. Fetch the folder, or name the file that it "
            "has (annotate.keypoint.detector, annotate.keypoint.pose)."
        )
    try:
        # It prints a line for each network; the script's output is the manifest's path.
        with contextlib.redirect_stdout(sys.stderr):
            network = kind(str(path), backend="onnxruntime", device=device)
    except NETWORK_ERRORS as error:
        raise WorldtuneError(f"{path} cannot be loaded as a network in ONNX: {error}. Fetch it again.") from error
    if device == "cuda" and CUDA not in network.session.get_providers():
        raise WorldtuneError(
            f"onnxruntime cannot use CUDA for {path}; the log above says why. Install the CUDA libraries that this "
            "onnxruntime-gpu asks for, or install onnxruntime in its place to work on the CPU."
        )
    return network


def _input_size(network: YOLOX | RTMPose, path: Path) -> tuple[int, int, bool]:
    """Return height and width of a network's input, and whether it takes several pictures at once."""
    shape = network.session.get_inputs()[0].shape
    if len(shape) != 4 or shape[1] != 3 or not all(isinstance(side, int) for side in shape[2:]):
        raise WorldtuneError(f"{path} takes {shape}; expected pictures of a fixed size, [n, 3, height, width].")
    return shape[2], shape[3], not isinstance(shape[0], int)
