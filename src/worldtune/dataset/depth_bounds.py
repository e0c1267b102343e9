"""Bounds of depth for a whole dataset, measured on a sample of its clips: two numbers for its configuration.

They are written into the configuration by hand, and not into a file by a rule: a clip more would change a measurement,
and with it every depth file that is there.
"""

import itertools
from pathlib import Path

import numpy as np

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest
from worldtune.common.progress import progress
from worldtune.dataset.clips import shard_names, video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.ingest import COLUMNS, STAGE
from worldtune.dataset.manifest import manifest_path, read_manifest

PERCENTILES = (0.1, 99.9)
"""Depths beyond are few: the network's mistakes, and what is at the lens."""
FRAME_STEP, PIXEL_STEP = 8, 4


def measure_depth_bounds(
    name: str,
    config: DatasetConfig,
    *,
    datasets: Path = Path("datasets"),
    checkpoints: Path = Path("checkpoints"),
    device: str = "auto",
    num_clips: int = 64,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the depths, in the units of the dataset's network, that may be black and white in all its clips.

    Args:
        name: the dataset's name.
        config: the dataset's configuration, which annotates depth.
        datasets: folder of all datasets.
        checkpoints: folder of all checkpoints, which holds the network.
        device: "cuda", "cpu" or "auto".
        num_clips: clips of the sample; each eighth frame of them is looked at.
        seed: another seed takes another sample. A clip more in the dataset changes the sample by one clip at most.

    Raises:
        WorldtuneError: the dataset does not annotate depth, has no usable clip, or the network cannot be loaded.
    """
    # Imported here: the network's libraries take seconds.
    from worldtune.annotate.depth import DepthNetwork
    from worldtune.media.video import iterate_frames

    annotator = config.annotate.depth
    if annotator is None:
        raise WorldtuneError(f"dataset {name} has no annotator of depth (datasets.{name}.annotate.depth).")
    root = datasets / name
    rows = [
        row
        for shard in shard_names(config.num_shards)
        for row in read_manifest(manifest_path(root, STAGE, shard), COLUMNS)
        if row["status"] == "ok"
    ]
    if not rows:
        raise WorldtuneError(f"dataset {name} has no usable clip to measure. Look at its manifests of stage {STAGE}.")
    clips = sorted((row["clip_id"] for row in rows), key=lambda clip: digest({"seed": seed, "clip": clip}))[:num_clips]
    network = DepthNetwork(checkpoints / annotator.model, device)
    depths = []
    for clip in progress(clips, f"depth of {name}"):
        frames = itertools.islice(iterate_frames(video_path(root, clip)), 0, None, FRAME_STEP)
        for window in network.predictions(frames):
            depths.append(window[:, ::PIXEL_STEP, ::PIXEL_STEP].float().cpu().numpy().ravel())
    low, high = np.percentile(np.concatenate(depths), PERCENTILES)
    if not np.isfinite((low, high)).all() or not low < high:
        raise WorldtuneError(f"{annotator.model} gave depths from {low} to {high}, which are no bounds.")
    return float(low), float(high)
