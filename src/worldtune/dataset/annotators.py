"""What config/config.yaml may say of the networks that annotate clips, a description under each field."""

from pydantic import BaseModel, ConfigDict


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
    """The network, as a folder below checkpoints/."""

    @property
    def models(self) -> tuple[str, ...]:
        """Folders below checkpoints/ that hold the networks."""
        return (self.model,)


class Annotators(BaseModel):
    """Controls that are made from the clips' frames; the others that a dataset has are given beside its videos."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    depth: DepthAnnotator | None = None
    """Depth by a network; null where it is given."""

    def find(self, kind: str) -> Annotator | None:
        """Return what makes a kind of control; None where it is given or computed."""
        found = getattr(self, kind, None)
        return found if isinstance(found, Annotator) else None
