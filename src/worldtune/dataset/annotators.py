"""What config/config.yaml may say of the networks that annotate clips, a description under each field."""

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator


class Annotator(BaseModel, ABC):
    """One network, or several, that make a control from a clip's frames."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    @abstractmethod
    def models(self) -> tuple[str, ...]:
        """Folders below checkpoints/ that hold the networks."""

    @property
    def reads_captions(self) -> bool:
        """Whether a clip's caption tells what to look for."""
        return False

    @property
    def reads_prompts(self) -> bool:
        """Whether a file beside a video may tell what to look for."""
        return False

    @property
    def makes_lossless(self) -> bool:
        """Whether each control gets a lossless file beside it."""
        return False


class DepthAnnotator(Annotator):
    """Depth by Depth-Anything-V2."""

    model: str = "depth-anything/Depth-Anything-V2-Small-hf"
    """The network, as a folder below checkpoints/: -Small-hf, -Base-hf or -Large-hf."""
    scale: Literal["clip"] | tuple[float, float] = "clip"
    """Which depths are black and white: each clip's smallest and largest, or two numbers in the network's units for all
    clips, which keeps clips comparable. `python src/scripts/measure_depth.py` proposes the numbers from a sample."""
    lossless: bool = False
    """Whether each clip gets depth/<clip_id>.mkv too, 16 bits without loss on the same scale."""

    @field_validator("scale")
    @classmethod
    def _rising(cls, scale: Literal["clip"] | tuple[float, float]) -> Literal["clip"] | tuple[float, float]:
        if scale != "clip" and not scale[0] < scale[1]:
            raise ValueError(f"the first number must be smaller than the second, not {list(scale)}")
        return scale

    @property
    def models(self) -> tuple[str, ...]:
        """Folders below checkpoints/ that hold the networks."""
        return (self.model,)

    @property
    def makes_lossless(self) -> bool:
        """Whether each control gets a lossless file beside it."""
        return self.lossless


class KeypointAnnotator(Annotator):
    """People's 133 whole-body keypoints by a detector and a pose network in ONNX, through rtmlib."""

    model: str = "SceneWorks/dwpose-onnx"
    """The networks, as a folder below checkpoints/."""
    detector: str = "yolox_m_8xb8-300e_humanart-c2c7a14a.onnx"
    """File in that folder: finds people. A YOLOX that suppresses overlapping boxes itself (OpenMMLab's onnx_sdk)."""
    pose: str = "rtmw-dw-x-l_simcc-cocktail14_270e-384x288_20231122.onnx"
    """File in that folder: finds a person's 133 keypoints. An RTMPose or RTMW with SimCC outputs."""
    person_confidence_min: float = Field(default=0.3, ge=0.3, lt=1.0)
    """Less certain people are left out. rtmlib itself leaves out those below 0.3."""
    keypoint_confidence_min: float = Field(default=0.3, ge=0.0, lt=1.0)
    """Face points that a face's box is drawn around. Files hold all keypoints with their confidence; what is drawn is
    the recipe's choice."""
    max_people: int = Field(default=32, ge=1)
    """Most people of one frame, the most certain ones."""

    @property
    def models(self) -> tuple[str, ...]:
        """Folders below checkpoints/ that hold the networks."""
        return (self.model,)


class SegAnnotator(Annotator):
    """Masks of objects: GroundingDINO finds them in key frames, SAM2 follows them both ways through the clip. Where a
    video has boxes or points of yours, as NAME.seg.json beside it, those are followed instead: {"objects": [{"phrase":
    "red cup", "frame": 0, "box": [left, top, right, bottom], "points": [{"x": 310, "y": 200, "label": 1}]}]}, in pixels
    of the video; label 0 lies beside the object, and box or points may be left out."""

    detector: str = "IDEA-Research/grounding-dino-tiny"
    """GroundingDINO, as a folder below checkpoints/."""
    tracker: str = "facebook/sam2-hiera-large"
    """SAM2, as a folder below checkpoints/."""
    tracker_backend: Literal["transformers", "sam2"] = "transformers"
    """What runs SAM2: transformers, or the package sam2, which is the extra `segmentation` and reads the folder's .pt
    file."""
    prompt: str = ""
    """What is searched for in every clip, phrases separated by periods: "person. red cup." Empty: the first 128 words
    of the clip's caption."""
    key_frames: PositiveInt = 5
    """Frames of a clip that are searched; what is found in one and followed already is no new object."""
    key_frames_at: Literal["even", "cuts"] = "even"
    """Where they lie: at equal distances, or at the beginning of each scene and, where there are fewer scenes, between
    them."""
    box_threshold: float = Field(default=0.15, ge=0.0, le=1.0)
    """Certainty above which something is an object."""
    text_threshold: float = Field(default=0.25, ge=0.0, le=1.0)
    """Certainty above which a word of the prompt belongs to an object's phrase."""
    retry_threshold: float = Field(default=0.1, ge=0.0, le=1.0)
    """Both, in a clip where nothing was found with the two above."""
    same_object_iou: float = Field(default=0.7, gt=0.0, le=1.0)
    """Overlap of masks or boxes (intersection over union) from which two are one object."""
    max_objects: PositiveInt = Field(default=100, le=1000)
    """Objects of a clip that are followed; the most certain ones of a key frame go first. The log counts the rest."""
    keep_empty: bool = True
    """Whether a clip in which nothing is found has a file without objects, which makes a black control; the log names
    it. Otherwise the clip is not used, with that reason."""

    @property
    def models(self) -> tuple[str, ...]:
        """Folders below checkpoints/ that hold the networks."""
        return (self.detector, self.tracker)

    @property
    def reads_captions(self) -> bool:
        """Whether a clip's caption tells what to look for."""
        return not self.prompt.strip()

    @property
    def reads_prompts(self) -> bool:
        """Whether a file beside a video may tell what to look for."""
        return True


class Annotators(BaseModel):
    """Controls that are made from the clips' frames; the others that a dataset has are given beside its videos."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    depth: DepthAnnotator | None = None
    """Depth by a network; null where it is given."""
    seg: SegAnnotator | None = None
    """Masks by networks; null where they are given."""
    keypoint: KeypointAnnotator | None = None
    """Keypoints by networks; null where they are given."""

    def find(self, kind: str) -> Annotator | None:
        """Return what makes a kind of control; None where it is given or computed."""
        found = getattr(self, kind, None)
        return found if isinstance(found, Annotator) else None
