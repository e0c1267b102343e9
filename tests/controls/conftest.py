import numpy as np
import pytest

from worldtune.controls.protocol import ControlSource
from worldtune.recipe.schema import Control


@pytest.fixture
def frames():
    """Smooth noise of 4 frames, 48 high and 64 wide."""
    coarse = np.random.default_rng(3).integers(0, 256, (4, 12, 16, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


@pytest.fixture
def source_of(frames):
    def make(file=None, *, start=0, frames=frames, size_wh=(32, 24)) -> ControlSource:
        return ControlSource(frames=frames, start=start, file=file, size_wh=size_wh)

    return make


@pytest.fixture
def config_of():
    def make(kind: str, **keys) -> Control:
        return Control.model_validate({"kind": kind, **keys})

    return make
