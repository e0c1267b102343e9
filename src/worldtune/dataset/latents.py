"""Cached latents (stage cache_latents): where they lie, what they are made from, what training asks of the manifests.

Without PyTorch: `worldtune.transfer1.latents` makes and reads the files. Latents are the normalised output of the
tokenizer, in the recipe's precision and not scaled by sigma_data, of the first frames of a clip, fitted to the recipe's
size. A dataset may hold several kinds, one for each tokenizer, number of frames, resolution and precision:

    latents/<tokenizer>/<frames>_<resolution>_<precision>/<clip_id>.safetensors
    manifests/latents/<tokenizer>/<frames>_<resolution>_<precision>/<shard>.parquet
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import canonical_json, digest
from worldtune.dataset.clips import Clip, Dataset
from worldtune.dataset.fitting import long_enough
from worldtune.dataset.manifest import CLIP_COLUMNS, manifest_path, read_manifest
from worldtune.media.geometry import nearest_aspect_ratio
from worldtune.recipe.schema import LATENT_CHANNELS, LATENT_FRAMES, LATENT_PIXELS, VIDEO_SIZES_WH, Recipe

VERSION = 1
"""Raised when equal clips give other latents; it enters the identity of attempts that train on them."""

STAGE = "cache_latents"
COLUMNS: dict[str, pa.DataType] = {
    **CLIP_COLUMNS,
    "key": pa.string(),
    "latents_sha256": pa.string(),
}
"""Columns of the manifest."""
SHOWN_CLIPS = 5


@dataclass(frozen=True, kw_only=True)
class LatentsKind:
    """One kind of cached latents of a dataset."""

    tokenizer: str
    """Folder of the video tokenizer below checkpoints/."""
    num_frames: int
    """Frames of the window, which begins with the clip; 8k + 1."""
    resolution: str
    """Row of the size table."""
    precision: str
    """Type of the tokenizer and its output, a value of training.precision."""

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the kind that a recipe trains on."""
        return cls(
            tokenizer=recipe.checkpoints.tokenizer,
            num_frames=recipe.data.num_frames,
            resolution=recipe.data.resolution,
            precision=recipe.training.precision,
        )

    @property
    def stage(self) -> str:
        """Name of the kind's ledgers and manifests, and its folder below the dataset's."""
        return f"latents/{self.tokenizer}/{self.num_frames}_{self.resolution}_{self.precision}"

    def size_wh(self, width: int, height: int) -> tuple[int, int]:
        """Return the pixels (width, height) that a clip of some size is fitted to."""
        return VIDEO_SIZES_WH[self.resolution][nearest_aspect_ratio(width, height)]

    def shape(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the shape [16, T, H, W] of the latents of a clip of some size."""
        fitted = self.size_wh(width, height)
        num_latent_frames = (self.num_frames - 1) // LATENT_FRAMES + 1
        return LATENT_CHANNELS, num_latent_frames, fitted[1] // LATENT_PIXELS, fitted[0] // LATENT_PIXELS

    def inputs(self, clip: Mapping[str, Any], tokenizer_sha256: str) -> dict[str, Any]:
        """Return all that the latents of a clip depend on, as JSON values.

        Args:
            clip: `video_sha256`, `width` and `height` of a usable clip.
            tokenizer_sha256: digest of the tokenizer's files.
        """
        return {
            "video_sha256": clip["video_sha256"],
            "tokenizer_sha256": tokenizer_sha256,
            "num_frames": self.num_frames,
            "size_wh": list(self.size_wh(clip["width"], clip["height"])),
            "precision": self.precision,
            "version": VERSION,
        }


def latents_path(root: Path, kind: LatentsKind, clip: str) -> Path:
    """Return where a clip's latents lie."""
    return root / kind.stage / f"{clip}.safetensors"


@dataclass(frozen=True, kw_only=True)
class LatentCache:
    """The latents that a recipe's training reads in the place of the video's."""

    root: Path
    """The dataset's folder."""
    kind: LatentsKind
    tokenizer_sha256: str
    """Digest of the tokenizer's files."""

    def path(self, clip: Clip) -> Path:
        """Return where a clip's latents lie."""
        return latents_path(self.root, self.kind, clip.clip_id)

    def inputs(self, clip: Clip) -> dict[str, Any]:
        """Return what a clip's latents must have been made from."""
        return self.kind.inputs(vars(clip), self.tokenizer_sha256)

    def shape(self, clip: Clip) -> tuple[int, int, int, int]:
        """Return the shape [16, T, H, W] that a clip's latents must have."""
        assert clip.width is not None
        assert clip.height is not None
        return self.kind.shape(clip.width, clip.height)

    def target(self) -> str:
        """Return the command that makes the latents, for error messages."""
        return f"`snakemake {manifest_path(self.root, self.kind.stage, '0000')}`, and so on for each shard"


def inputs_text(inputs: Mapping[str, Any]) -> str:
    """Return what latents were made from as the text that is in their file."""
    return canonical_json(dict(inputs))


def inputs_key(inputs: Mapping[str, Any]) -> str:
    """Return the digest that stands for these inputs in the manifest."""
    return digest(dict(inputs))


def find_latents(dataset: Dataset, recipe: Recipe, tokenizer_sha256: str) -> LatentCache:
    """Return the cache of a recipe's latents after a look at the shards' manifests; the files are checked when read.

    Raises:
        WorldtuneError: a clip that is long enough for the recipe has no latents, or they were made from something else.
    """
    cache = LatentCache(root=dataset.root, kind=LatentsKind.of(recipe), tokenizer_sha256=tokenizer_sha256)
    folder = manifest_path(cache.root, cache.kind.stage, "0000").parent
    # Other shards' manifests may lie there from a time of more shards; equal keys mean equal files.
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in read_manifest(path, COLUMNS)]
    found = {(row["clip_id"], row["key"]) for row in rows if row["status"] == "ok"}
    clips = long_enough(dataset.clips, recipe.data.num_frames)
    missing = [clip.clip_id for clip in clips if (clip.clip_id, inputs_key(cache.inputs(clip))) not in found]
    if missing:
        named = ", ".join(missing[:SHOWN_CLIPS]) + (", ..." if len(missing) > SHOWN_CLIPS else "")
        raise WorldtuneError(
            f"{folder} has no latents of {len(missing)} of {len(clips)} clips as they are now ({named}), which "
            f"data.cache_latents = true needs. Make them: {cache.target()}."
        )
    return cache
