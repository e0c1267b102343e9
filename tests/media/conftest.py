import numpy as np
import pytest


@pytest.fixture
def moving_frames():
    """Frames [T, H, W, 3] of which each differs clearly from all others."""

    def make(num_frames: int, height: int = 48, width: int = 64) -> np.ndarray:
        blocks = np.random.default_rng(0).integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
        return blocks.repeat(8, axis=1).repeat(8, axis=2)

    return make
