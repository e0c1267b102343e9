"""SAM2 as transformers has it. N objects, C channels, H height, W width, S side of the network's picture."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from worldtune.annotate.objects import Candidate
from worldtune.annotate.pretrained import load_network
from worldtune.annotate.protocol import choose_device
from worldtune.annotate.tracking import IMAGENET_MEAN, IMAGENET_STD, ClipFrames, PreparedFrames
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json

PROCESSOR_FILES = (
    ("processor_config.json", "video_processor"),
    ("video_preprocessor_config.json", None),
    ("preprocessor_config.json", None),
)
"""Where transformers writes it: file and key in it, the first that is there holds."""
CANDIDATES_AT_ONCE = 32
"""Candidates that go through the mask decoder together; each takes masks of the network's size."""
BOX_LABELS = (2, 3)
"""Labels of a box's first and last corner, which the network reads as points."""


def prepare_frame(
    frame: NDArray[np.uint8], side: int, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> torch.Tensor:
    """Return a frame, uint8 [H, W, 3], as float32 [3, S, S], as Sam2VideoVideoProcessor makes it.

    Its arithmetic (transformers, class attributes and TorchvisionBackend): bilinear with antialiasing, without regard
    to the aspect ratio, rounded to 8 bits; then (x - 255 mean) / (255 std). The class itself needs torchvision.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).to(device).permute(2, 0, 1)[None].float()
    resized = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    shift, scale = (torch.tensor(values, device=device)[:, None, None] * 255 for values in (mean, std))
    return (resized[0].round() - shift) / scale


def prompt_points(candidate: Candidate) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return a candidate's places, float32 [P, 2] in pixels, a box's corners first, and their labels, int32 [P]."""
    corners = [candidate.box[:2], candidate.box[2:]] if candidate.box else []
    places = np.array([*corners, *candidate.points], np.float32).reshape(-1, 2)
    labels = np.array([*(BOX_LABELS if candidate.box else ()), *candidate.labels], np.int32)
    return places, labels


class TransformersTracker:
    """A Sam2VideoModel from a local folder: bfloat16 autocast on a GPU, float32 on the CPU."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load it from `folder`; nothing is fetched.

        Args:
            folder: a folder as transformers writes it.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.

        Raises:
            WorldtuneError: the folder holds no such network; see pretrained.load_network.
        """
        self.device = torch.device(choose_device(device))
        self.model = load_network(Sam2VideoModel, folder, "SAM2", dtype=torch.float32).to(self.device)
        self.mean, self.std = read_normalisation(folder)

    def open(self, frames: ClipFrames, *, reverse: bool) -> "_Session":
        """Begin to follow objects; see tracking.Tracker."""
        return _Session(self, frames, reverse)


def read_normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of red, green and blue, 0 to 1, of a folder's processor.

    Raises:
        WorldtuneError: the folder's processor does something else than to resize, scale and normalise.
    """
    for name, key in PROCESSOR_FILES:
        if not (folder / name).exists():
            continue
        values = read_json(folder / name)
        values = values.get(key) if key and isinstance(values, dict) else values
        if not isinstance(values, dict):
            continue
        mean, std = (tuple(values.get(part, ())) for part in ("image_mean", "image_std"))
        # 2 is the bilinear filter of Pillow.
        expected = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2}
        other = sorted(part for part, value in expected.items() if values.get(part, value) != value)
        if other or len(mean) != 3 or len(std) != 3 or not all(std):
            wrong = other[0] if other else "image_mean or image_std"
            raise WorldtuneError(f"{folder / name}: {wrong} is not as SAM2's processor has it. Fetch the folder again.")
        return mean, std
    return IMAGENET_MEAN, IMAGENET_STD


class _Session:
    """Objects that are followed; see tracking.TrackingSession."""

    def __init__(self, tracker: TransformersTracker, frames: ClipFrames, reverse: bool) -> None:
        self._tracker, self._frames, self._reverse = tracker, frames, reverse
        self._config = tracker.model.config
        self._state = self._new_state()

    def _new_state(self) -> Sam2VideoInferenceSession:
        device = self._tracker.device
        state = Sam2VideoInferenceSession(
            video_height=self._frames.height,
            video_width=self._frames.width,
            inference_device=device,
            inference_state_device=device,
            video_storage_device=device,
            dtype=torch.float32,
        )
        # In place of a table of all frames in float32: it is only asked for its length and for single frames.
        state.processed_frames = PreparedFrames(self._frames, self._prepare)
        return state

    def _prepare(self, frame: NDArray[np.uint8]) -> torch.Tensor:
        tracker = self._tracker
        return prepare_frame(frame, self._config.image_size, tracker.mean, tracker.std, tracker.device)

    def _prompt(self, state: Sam2VideoInferenceSession, frame: int, candidates: Mapping[int, Candidate]) -> None:
        scale = [self._config.image_size / self._frames.width, self._config.image_size / self._frames.height]
        for number, candidate in candidates.items():
            places, labels = prompt_points(candidate)
            inputs = {
                "point_coords": (torch.from_numpy(places) * torch.tensor(scale))[None, None],
                "point_labels": torch.from_numpy(labels)[None, None],
            }
            state.add_point_inputs(state.obj_id_to_idx(number), frame, inputs)
        state.obj_with_new_inputs = list(candidates)

    def _run(self, state: Sam2VideoInferenceSession, frame: int, *, remember: bool) -> dict[int, NDArray[np.bool_]]:
        model, cuda = self._tracker.model, self._tracker.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext():
            output = model(state, frame_idx=frame, reverse=self._reverse, run_mem_encoder=remember)
        size = (self._frames.height, self._frames.width)
        logits = functional.interpolate(output.pred_masks.float(), size, mode="bilinear", align_corners=False)
        return dict(zip(output.object_ids, (logits[:, 0] > 0).cpu().numpy(), strict=True))

    def segment(self, frame: int, candidates: Sequence[Candidate]) -> NDArray[np.bool_]:
        """Return masks of candidates by themselves."""
        masks: list[NDArray[np.bool_]] = []
        for first in range(0, len(candidates), CANDIDATES_AT_ONCE):
            state = self._new_state()
            # The frame's features are the same for all objects.
            state.cache = self._state.cache
            self._prompt(state, frame, dict(enumerate(candidates[first : first + CANDIDATES_AT_ONCE])))
            masks += self._run(state, frame, remember=False).values()
        return np.stack(masks)

    def add(self, frame: int, candidates: Mapping[int, Candidate]) -> None:
        """Follow candidates from this frame on."""
        self._prompt(self._state, frame, candidates)
        # Objects that were there before are done once more in this frame, with the same result.
        self._run(self._state, frame, remember=True)
        self._forget(frame)

    def step(self, frame: int) -> dict[int, NDArray[np.bool_]]:
        """Return the masks in the next frame."""
        if not self._state.obj_ids:
            return {}
        masks = self._run(self._state, frame, remember=True)
        self._forget(frame)
        return masks

    def _forget(self, frame: int) -> None:
        """Drop what no later frame reads, so that memory does not grow with the clip.

        A frame reads the memory of the `num_maskmem` - 1 frames before it and the object pointers of the
        `max_object_pointers_in_encoder` - 1 frames before it; transformers keeps everything. One more of each stays,
        since `add` does a frame again.
        """
        towards_start = 1 if self._reverse else -1
        without_memory = frame + towards_start * self._config.num_maskmem
        without_pointer = frame + towards_start * self._config.max_object_pointers_in_encoder
        for index, outputs in self._state.output_dict_per_obj.items():
            for part in outputs.values():
                part.get(frame, {}).pop("high_res_masks", None)
            tracked: dict[int, dict[str, Any]] = outputs["non_cond_frame_outputs"]
            tracked.get(frame, {}).pop("pred_masks", None)
            for key in ("maskmem_features", "maskmem_pos_enc"):
                tracked.get(without_memory, {}).pop(key, None)
            tracked.pop(without_pointer, None)
            self._state.frames_tracked_per_obj[index].pop(without_pointer, None)
