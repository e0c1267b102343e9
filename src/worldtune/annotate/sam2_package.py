"""SAM2 as the package sam2 has it: the optional extra `segmentation`. H height, W width, S side of its picture."""

import contextlib
import functools
import pickle
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from worldtune.annotate.objects import Candidate
from worldtune.annotate.protocol import choose_device
from worldtune.annotate.tracking import IMAGENET_MEAN, IMAGENET_STD, ClipFrames, PreparedFrames
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json

OVERRIDES_FILE = "overrides.json"
"""Numbers of a network that differ from the package's configuration of that name, such as {"model.image_size": 512}."""
OVERRIDE_KEY = re.compile(r"model(\.[a-z][a-z0-9_]*)+")
POSTPROCESSING = (
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
    "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
    "++model.binarize_mask_from_pts_for_mem_enc=true",
)
"""What the package calls post-processing, without the filling of holes, for which it must be compiled."""

_SCHEMAS: list[torch.library.Library] = []
"""Operators that were declared; torch forgets them with the last reference."""


def make_torchvision_importable() -> None:
    """Import torchvision; where it is built for CUDA and torch is not, declare the operators whose absence stops it.

    sam2 needs torchvision's transforms only. Call this before transformers is used in the same process, since it looks
    for torchvision as well.

    Raises:
        WorldtuneError: torchvision is not installed or cannot be used.
    """
    try:
        import torchvision
    except ImportError as error:
        raise _not_installed(error) from error
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise WorldtuneError(f"torchvision cannot be used with this torch: {error}") from error
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _SCHEMAS.append(library)
        import torchvision  # noqa: F401


def _not_installed(error: ImportError) -> WorldtuneError:
    return WorldtuneError(
        f"tracker_backend 'sam2' needs packages that are not installed ({error}). Install the extra [segmentation] "
        "as README.md says under 'Annotations made by networks', or choose tracker_backend 'transformers'."
    )


def read_overrides(folder: Path) -> list[str]:
    """Return the overrides of a folder's file in hydra's form; none without the file.

    Raises:
        WorldtuneError: a key is no path below `model`, or a value is no number or list of numbers; texts are not
            admitted, since a configuration names the code that is run.
    """
    path = folder / OVERRIDES_FILE
    if not path.exists():
        return []
    values = read_json(path)
    if not isinstance(values, dict):
        raise WorldtuneError(f"{path} must be an object of numbers.")
    for key, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        if not OVERRIDE_KEY.fullmatch(key) or not all(isinstance(number, int | float) for number in numbers):
            raise WorldtuneError(f"{path}: {key}: {value!r}; expected a number or a list of numbers for model.PART.")
    return [f"++{key}={value}".replace(" ", "") for key, value in values.items()]


def released_networks() -> dict[str, str]:
    """Return file name -> the package's configuration of each released network.

    Raises:
        WorldtuneError: sam2 is not installed.
    """
    make_torchvision_importable()
    try:
        from sam2.build_sam import HF_MODEL_ID_TO_FILENAMES
    except ImportError as error:
        raise _not_installed(error) from error
    return {file: configuration for configuration, file in HF_MODEL_ID_TO_FILENAMES.values()}


def build_predictor(network: str, file: Path | None, device: str, overrides: Sequence[str]) -> Any:
    """Return the package's SAM2VideoPredictor; the file is read by torch without running what it says.

    Args:
        network: file name of a released network, whose configuration is taken.
        file: its weights; None keeps random ones.
        device: "cuda" or "cpu".
        overrides: what differs from the configuration, from read_overrides.

    Raises:
        WorldtuneError: sam2 is not installed, or the file does not hold this network.
    """
    configuration = released_networks()[network]
    import sam2.sam2_video_predictor
    import sam2.utils.misc
    from sam2.build_sam import build_sam2_video_predictor

    # A bar a walk and a clip would fill the job's log; the stage has one of its own.
    for module in (sam2.sam2_video_predictor, sam2.utils.misc):
        module.tqdm = functools.partial(tqdm, disable=True)

    extra = [*POSTPROCESSING, *overrides]
    try:
        return build_sam2_video_predictor(
            configuration,
            None if file is None else str(file),
            device=device,
            hydra_overrides_extra=extra,
            apply_postprocessing=False,
        )
    except (OSError, RuntimeError, KeyError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WorldtuneError(f"{file} cannot be loaded as SAM2: {error}. Fetch it again.") from error


class PackageTracker:
    """SAM2's video predictor from a folder with its .pt file: bfloat16 autocast on a GPU, float32 on the CPU."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load it from `folder`; nothing is fetched.

        Args:
            folder: holds one file named as the released ones are, such as sam2_hiera_large.pt.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.

        Raises:
            WorldtuneError: sam2 is not installed, or the folder holds no such network.
        """
        names = released_networks()
        files = sorted(path for path in folder.glob("*.pt") if path.name in names)
        if len(files) != 1:
            raise WorldtuneError(
                f"{folder} has {len(files)} files of SAM2; expected one of {', '.join(sorted(names))}. Fetch it again, "
                "or choose tracker_backend 'transformers'."
            )
        self.model = build_predictor(files[0].name, files[0], choose_device(device), read_overrides(folder))

    def open(self, frames: ClipFrames, *, reverse: bool) -> "_Session":
        """Begin to follow objects; see tracking.Tracker."""
        return _Session(self.model, frames, reverse)


class _Session:
    """Objects that are followed; see tracking.TrackingSession."""

    def __init__(self, model: Any, frames: ClipFrames, reverse: bool) -> None:
        self._model, self._frames, self._reverse = model, frames, reverse
        self._state = self._new_state()
        self._steps: Iterator[tuple[int, list[int], torch.Tensor]] | None = None

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        cuda = self._model.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext()

    def _new_state(self) -> dict[str, Any]:
        # The package begins with a folder of JPEG files; all but the frames' size and number stays as it makes it.
        with tempfile.TemporaryDirectory() as folder, self._autocast():
            Image.new("RGB", (self._frames.width, self._frames.height)).save(Path(folder) / "0.jpg")
            state: dict[str, Any] = self._model.init_state(folder, offload_video_to_cpu=True)
        state["images"] = PreparedFrames(self._frames, self._prepare)
        state["num_frames"] = len(self._frames)
        state["cached_features"].clear()
        return state

    def _prepare(self, frame: NDArray[np.uint8]) -> torch.Tensor:
        """Return float32 [3, S, S] as the package's reader of JPEG files does it: Pillow's filter, ImageNet's norm."""
        side = self._model.image_size
        pixels = np.array(Image.fromarray(frame).resize((side, side)), np.float32) / 255.0
        normal = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        return torch.from_numpy(normal).permute(2, 0, 1)

    def _prompt(self, state: dict[str, Any], frame: int, number: int, candidate: Candidate) -> torch.Tensor:
        """Give a candidate to a state; returns the logits, [N, 1, H, W], of all of its objects."""
        places = {"points": np.array(candidate.points, np.float32), "labels": np.array(candidate.labels, np.int32)}
        with self._autocast():
            logits: torch.Tensor = self._model.add_new_points_or_box(
                state,
                frame,
                number,
                box=None if candidate.box is None else np.array(candidate.box, np.float32),
                **(places if candidate.points else {}),
            )[2]
        return logits

    def segment(self, frame: int, candidates: Sequence[Candidate]) -> NDArray[np.bool_]:
        """Return masks of candidates by themselves."""
        state = self._new_state()
        # The frame's features are the same for all objects.
        state["cached_features"] = self._state["cached_features"]
        masks = []
        for candidate in candidates:
            masks.append((self._prompt(state, frame, 0, candidate)[0, 0] > 0).cpu().numpy())
            self._model.reset_state(state)
        return np.stack(masks)

    def add(self, frame: int, candidates: Mapping[int, Candidate]) -> None:
        """Follow candidates from this frame on."""
        for number, candidate in candidates.items():
            self._prompt(self._state, frame, number, candidate)
        # A walk through the frames knows the objects that it began with. Begun here, since backwards none may begin at
        # the first frame; objects that were there before are done once more in this frame, with the same result.
        self._steps = None
        if not (self._reverse and frame == 0):
            self._steps = self._model.propagate_in_video(self._state, frame, reverse=self._reverse)
            self._next()
            self._forget(frame)

    def _next(self) -> tuple[int, dict[int, NDArray[np.bool_]]]:
        assert self._steps is not None
        with self._autocast():
            frame, numbers, logits = next(self._steps)
        return frame, dict(zip(numbers, (logits[:, 0] > 0).cpu().numpy(), strict=True))

    def step(self, frame: int) -> dict[int, NDArray[np.bool_]]:
        """Return the masks in the next frame."""
        if self._steps is None:
            return {}
        reached, masks = self._next()
        assert reached == frame
        self._forget(frame)
        return masks

    def _forget(self, frame: int) -> None:
        """Drop what no later frame reads; see sam2_transformers, whose network reads the same."""
        towards_start = 1 if self._reverse else -1
        without_memory = frame + towards_start * self._model.num_maskmem
        without_pointer = frame + towards_start * self._model.max_obj_ptrs_in_encoder
        for index, outputs in self._state["output_dict_per_obj"].items():
            tracked = outputs["non_cond_frame_outputs"]
            for key in ("pred_masks", "maskmem_features", "maskmem_pos_enc"):
                tracked.get(without_memory, {}).pop(key, None)
            tracked.pop(without_pointer, None)
            self._state["frames_tracked_per_obj"][index].pop(without_pointer, None)
