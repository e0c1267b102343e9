"""What config/config.yaml may say of the networks that annotate clips, a description under each field."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Annotator(BaseModel):
    """One network, or several, that make a control from a clip's frames."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def models(self) -> tuple[str, ...]:
        """Folders below checkpoints/ that hold the networks."""
        raise NotImplementedError

    @property
    def reads_captions(self) -> bool:
        """Whether a clip's caption tells what to look for."""
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


class Annotators(BaseModel):
    """Controls that are made from the clips' frames; the others that a dataset has are given beside its videos."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    depth: DepthAnnotator | None = None
    """Depth by a network; null where it is given."""
    keypoint: KeypointAnnotator | None = None
    """Keypoints by networks; null where they are given."""

    def find(self, kind: str) -> Annotator | None:
        """Return what makes a kind of control; None where it is given or computed."""
        found = getattr(self, kind, None)
        return found if isinstance(found, Annotator) else None
