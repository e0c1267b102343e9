"""The edge control: Canny edges of each frame (spec/transfer1-training.md 5.6). T frames, H height, W width."""

import cv2
import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.controls.protocol import Controlled, ControlSource, draw_integer
from worldtune.controls.shrink import SHRINK_RESOLUTION, shrink, shrink_target, shrunk_size
from worldtune.media.threads import for_each_frame
from worldtune.media.video import read_frames
from worldtune.recipe.schema import Control, EdgeControl

PRESETS: dict[str, tuple[int, int]] = {
    "none": (20, 50),
    "very_low": (20, 50),
    "low": (50, 100),
    "medium": (100, 200),
    "high": (200, 300),
    "very_high": (300, 400),
}
"""Fixed (lower, upper) thresholds by name."""

EDGE_RESOLUTION = SHRINK_RESOLUTION
"""Row of the size table to which larger frames are shrunk before their edges are found, whatever is trained."""
LARGEST_THRESHOLD = 255


def draw_thresholds(config: EdgeControl, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the (lower, upper) thresholds of one clip; both ends of each range are included."""
    low = draw_integer(rng, config.threshold_low_min, config.threshold_low_max)
    gap = draw_integer(rng, config.threshold_gap_min, config.threshold_gap_max)
    return low, min(LARGEST_THRESHOLD, low + gap)


def edge_map(frame: np.ndarray, low: int, high: int, size_wh: tuple[int, int]) -> np.ndarray:
    """Return the edges of one frame (uint8 [H, W, 3]) as uint8 [h, w], 0 or 255.

    A frame that is larger than `size_wh` (width, height) is first shrunk into it, keeping its aspect ratio; a smaller
    one keeps its size.
    """
    return cv2.Canny(np.ascontiguousarray(shrink(frame, size_wh)), low, high)


def canny(frames: np.ndarray, low: int, high: int, size_wh: tuple[int, int]) -> np.ndarray:
    """Return the edges of uint8 [T, H, W, 3] as uint8 [T, h, w, 3], 0 or 255; see edge_map for h and w."""
    width, height = shrunk_size((frames.shape[2], frames.shape[1]), size_wh)
    edges = np.empty((len(frames), height, width, 3), np.uint8)

    def find(index: int) -> None:
        cv2.cvtColor(edge_map(frames[index], low, high, size_wh), cv2.COLOR_GRAY2RGB, dst=edges[index])

    for_each_frame(find, len(frames))
    return edges


class Edge:
    """Edges at drawn thresholds; those of the stored map (at the "medium" thresholds) in evaluation."""

    def training(self, source: ControlSource, config: Control, rng: np.random.Generator) -> Controlled:
        """Return the edges of the window; see protocol.ControlKind."""
        low, high = draw_thresholds(config.edge, rng)
        return Controlled(video=source.frames, hint=canny(source.frames, low, high, shrink_target(source.frames)))

    def evaluation(self, source: ControlSource, config: Control) -> Controlled:
        """Return the stored edges of the window; see protocol.ControlKind."""
        path = source.control_file()
        hint = read_frames(path, source.start, len(source.frames))
        height, width = source.frames.shape[1:3]
        expected = shrunk_size((width, height), shrink_target(source.frames))
        found = (hint.shape[2], hint.shape[1])
        if found != expected:
            raise WorldtuneError(
                f"{path} is {found[0]}x{found[1]}; the edges of a clip of {width}x{height} are "
                f"{expected[0]}x{expected[1]}. Delete it, then: `snakemake "
                f"datasets/{path.parent.parent.name}/dataset.json --forcerun controls`."
            )
        return Controlled(video=source.frames, hint=hint)
