"""What a training job reads: the dataset, the split checkpoints and the tokenizer, with the hashes that name them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from worldtune.checkpoint.splitting import MANIFEST_SUFFIX, read_manifest, read_shard, shard_name
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, read_json, sha256_file
from worldtune.dataset.clips import Dataset, load_dataset
from worldtune.dataset.latents import VERSION as LATENTS_VERSION
from worldtune.dataset.latents import LatentCache, find_latents
from worldtune.recipe.identity import identity
from worldtune.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class SplitCheckpoint:
    """A checkpoint that was split over tensor ranks."""

    source: str
    """Path of the whole checkpoint below checkpoints/."""
    source_sha256: str
    """SHA-256 of the whole checkpoint, so that the same weights have one name under every degree."""
    split_file: Path
    """`<stem>.split.json` of the recipe's degree; the ranks' files lie beside it."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that a training job reads."""

    dataset: Dataset
    base: SplitCheckpoint
    control: SplitCheckpoint | None
    """None starts the control branch from the base's first blocks."""
    tokenizer_name: str
    """Path of the tokenizer's folder below checkpoints/."""
    tokenizer: Path
    """Folder of the video tokenizer."""
    tokenizer_sha256: str
    """Digest of the names and hashes of its files."""
    latents: LatentCache | None
    """The videos' latents; None encodes them in training."""

    def identity(self, recipe: Recipe, trainer_version: int) -> str:
        """Return the attempt's identity."""
        return identity(
            recipe,
            base_sha256=self.base.source_sha256,
            control_sha256=self.control.source_sha256 if self.control else None,
            tokenizer_sha256=self.tokenizer_sha256,
            dataset_digest=self.dataset.digest,
            latents_version=LATENTS_VERSION if self.latents else None,
            trainer_version=trainer_version,
        )

    def describe(self) -> dict[str, Any]:
        """Return names and hashes for manifests."""
        checkpoints = {"base": self.base} | ({"control": self.control} if self.control else {})
        return {
            "dataset": {"name": self.dataset.name, "digest": self.dataset.digest},
            "checkpoints": {
                **{
                    which: {"path": checkpoint.source, "sha256": checkpoint.source_sha256}
                    for which, checkpoint in checkpoints.items()
                },
                "tokenizer": {"path": self.tokenizer_name, "sha256": self.tokenizer_sha256},
            },
        }


def find_inputs(recipe: Recipe, *, datasets: Path, checkpoints: Path) -> Inputs:
    """Find what a recipe names.

    Args:
        recipe: the resolved recipe.
        datasets: folder of all datasets.
        checkpoints: folder of all checkpoints.

    Raises:
        WorldtuneError: something is missing; the message names the target that makes it.
    """
    chosen = recipe.checkpoints
    root = datasets / recipe.data.dataset
    _require(root / "dataset.json", f"data.dataset = {recipe.data.dataset!r}")
    file_list = checkpoints / chosen.tokenizer / "files.json"
    _require(file_list, f"checkpoints.tokenizer = {chosen.tokenizer!r}")
    dataset, tokenizer_sha256 = load_dataset(root), digest(read_json(file_list))
    return Inputs(
        dataset=dataset,
        base=_find_split(checkpoints, chosen.base, recipe.parallel.tensor, "checkpoints.base"),
        control=(
            _find_split(
                checkpoints,
                chosen.start,
                recipe.parallel.tensor,
                "checkpoints.init_from" if chosen.init_from else "checkpoints.control",
            )
            if chosen.start
            else None
        ),
        tokenizer_name=chosen.tokenizer,
        tokenizer=file_list.parent,
        tokenizer_sha256=tokenizer_sha256,
        latents=find_latents(dataset, recipe, tokenizer_sha256) if recipe.data.cache_latents else None,
    )


def read_own_shard(checkpoint: SplitCheckpoint, degree: int, rank: int) -> dict[str, Tensor]:
    """Return the pieces of one tensor rank, mapped from disk, after a comparison of the whole file with its hash.

    Args:
        checkpoint: the split.
        degree: number of tensor ranks.
        rank: the tensor rank.

    Raises:
        WorldtuneError: the split is of another degree, or the rank's file is missing or not the one that was written.
    """
    split = checkpoint.split_file
    stem = split.name.removesuffix(MANIFEST_SUFFIX)
    piece = split.with_name(shard_name(stem, rank))
    expected = read_manifest(split.parent, stem, degree).files.get(piece.name)
    found = sha256_file(piece) if piece.is_file() else "missing"
    if found != expected:
        raise WorldtuneError(
            f"{piece} is not the file that was written: its SHA-256 is {found}, {split.name} says {expected}. Delete "
            f"{split} and make it again: `snakemake {split}`."
        )
    return read_shard(split.parent, stem, degree, rank)


def _find_split(checkpoints: Path, name: str, degree: int, key: str) -> SplitCheckpoint:
    source = checkpoints / name
    split_file = source.parent / f"checkpoints_tp_{degree}" / f"{source.stem}.split.json"
    _require(split_file, f"{key} = {name!r} with parallel.tensor = {degree}")
    record = read_json(split_file)
    if not isinstance(record, dict) or record.get("degree") != degree or "source_sha256" not in record:
        raise WorldtuneError(f"{split_file} is no split file of degree {degree}. Delete it: `snakemake {split_file}`.")
    return SplitCheckpoint(source=name, source_sha256=record["source_sha256"], split_file=split_file)


def _require(path: Path, key: str) -> None:
    if not path.is_file():
        raise WorldtuneError(f"{path} does not exist, which {key} needs. Make it: `snakemake {path}`.")
