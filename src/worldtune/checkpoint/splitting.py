"""Cutting a checkpoint into one file for each tensor-parallel rank, and putting the pieces together again.

Layout of a split: `<stem>.pt` (a placeholder that the original's loader wants to see), `<stem>_model_mp_<rank>.pt` with
{"model": tensors, "ema": None}, and `<stem>.split.json`, written last. Names are those of the source file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from worldtune.checkpoint.reading import read_checkpoint
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, read_json, sha256_file, write_json
from worldtune.common.progress import progress
from worldtune.parallel.axes import shard, split_dim

VERSION = 1
"""Raised when a change of the split should make the existing ones anew."""

MANIFEST_SUFFIX = ".split.json"
"""End of a split's manifest."""
ROOT_NAME = "checkpoints"
"""Folder below which a checkpoint's path names its repository and file."""


class SplitTensor(BaseModel):
    """One tensor of a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, ...]
    dtype: str
    split_dim: int | None


class SplitManifest(BaseModel):
    """What a split is made of and from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    source: str
    source_sha256: str
    degree: PositiveInt
    files: dict[str, str]
    tensors: dict[str, SplitTensor]


def shard_name(stem: str, rank: int) -> str:
    """Return the name of the file that holds rank `rank`'s pieces of the checkpoint `stem`."""
    return f"{stem}_model_mp_{rank}.pt"


class JoinedCheckpoint(Mapping[str, Tensor]):
    """The full tensors of a split, put together one at a time as they are asked for."""

    def __init__(self, directory: Path, stem: str, degree: int) -> None:
        """Map the pieces of the checkpoint `stem` in `directory`.

        Raises:
            WorldtuneError: files are missing, damaged, or of another degree.
        """
        self.manifest = read_manifest(directory, stem, degree)
        for name, expected in self.manifest.files.items():
            if sha256_file(directory / name) != expected:
                raise WorldtuneError(
                    f"{directory / name} is not the file that was written. Split the checkpoint again."
                )
        self._pieces = [read_shard(directory, stem, degree, rank) for rank in range(degree)]

    def __getitem__(self, name: str) -> Tensor:
        """Return the full tensor `name`."""
        dim = self.manifest.tensors[name].split_dim
        if dim is None:
            return self._pieces[0][name]
        return torch.cat([pieces[name] for pieces in self._pieces], dim=dim)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the source file."""
        return iter(self._pieces[0])

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._pieces[0])


def split_checkpoint(source: Path, target_dir: Path, degree: int) -> Path:
    """Write the pieces of a checkpoint for `degree` ranks; returns the path of the manifest.

    One process on the CPU, which holds the pieces of one rank at a time. Equal sources give equal files.

    Args:
        source: a `.pt` or `.safetensors` checkpoint, or the manifest of a split of another degree.
        target_dir: folder for the split.
        degree: number of pieces.

    Raises:
        WorldtuneError: the source cannot be read, or a tensor cannot be cut into `degree` pieces.
    """
    if degree < 1:
        raise WorldtuneError(f"--degree {degree}: expected 1 or more.")
    if target_dir.resolve() == source.parent.resolve():
        raise WorldtuneError(f"--output-dir {target_dir} is the source's own folder, whose files would be replaced.")
    tensors: Mapping[str, Tensor]
    if source.name.endswith(MANIFEST_SUFFIX):
        stem = source.name.removesuffix(MANIFEST_SUFFIX)
        joined = JoinedCheckpoint(source.parent, stem, _read_manifest(source).degree)
        tensors, name, sha256 = joined, joined.manifest.source, joined.manifest.source_sha256
    else:
        stem, name, sha256 = source.stem, source_name(source), sha256_file(source) if source.is_file() else ""
        tensors = read_checkpoint(source)
    entries = {key: _entry(key, tensors[key], degree) for key in tensors}
    manifest_path = target_dir / f"{stem}{MANIFEST_SUFFIX}"
    # A split that is being replaced must not look whole.
    manifest_path.unlink(missing_ok=True)
    files = {f"{stem}.pt": _save(target_dir / f"{stem}.pt", {"grad_scaler": {}, "iteration": 0})}
    for rank in progress(range(degree), f"split {stem} for {degree} ranks"):
        pieces = {}
        for key in tensors:
            piece = shard(tensors[key], entries[key].split_dim, degree, rank, key)
            # A view would be saved with the whole tensor behind it.
            pieces[key] = piece.clone(memory_format=torch.contiguous_format)
        path = target_dir / shard_name(stem, rank)
        files[path.name] = _save(path, {"model": pieces, "ema": None})
    manifest = SplitManifest(format=1, source=name, source_sha256=sha256, degree=degree, files=files, tensors=entries)
    write_json(manifest_path, manifest.model_dump(mode="json"))
    return manifest_path


def _entry(name: str, tensor: Tensor, degree: int) -> SplitTensor:
    dim = split_dim(name)
    shard(tensor, dim, degree, 0, name)
    return SplitTensor(shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."), split_dim=dim)


def _save(path: Path, content: Any) -> str:
    with atomic_path(path) as temporary:
        # Given a path, torch.save puts its name into the file.
        with open(temporary, "wb") as file:
            torch.save(content, file)
        return sha256_file(temporary)


def source_name(source: Path) -> str:
    """Return a checkpoint's path below the folder "checkpoints" (repository and file), or else the file's name."""
    parts = source.absolute().parts
    if ROOT_NAME in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index(ROOT_NAME)
        return "/".join(parts[last + 1 :])
    return source.name


def read_manifest(directory: Path, stem: str, degree: int) -> SplitManifest:
    """Return the manifest of the checkpoint `stem`, split for `degree` ranks.

    Raises:
        WorldtuneError: it is missing, invalid, or of another degree.
    """
    path = directory / f"{stem}{MANIFEST_SUFFIX}"
    manifest = _read_manifest(path)
    if manifest.degree != degree:
        raise WorldtuneError(
            f"{path} is a split for {manifest.degree} ranks, and {degree} are wanted. Split it again: "
            f"python src/scripts/split_checkpoint.py {path} --degree {degree} --output-dir DIR."
        )
    return manifest


def _read_manifest(path: Path) -> SplitManifest:
    content = read_json(path)
    try:
        return SplitManifest.model_validate(content)
    except ValidationError as error:
        raise WorldtuneError(
            f"{path} is no manifest of a split checkpoint: {error}. Split the checkpoint again."
        ) from error


def read_shard(directory: Path, stem: str, degree: int, rank: int) -> dict[str, Tensor]:
    """Return the pieces of rank `rank` of the checkpoint `stem`, mapped from disk, by their names in the source.

    Raises:
        WorldtuneError: the split is of another degree, or the file is missing, damaged or not what the manifest says.
    """
    manifest = read_manifest(directory, stem, degree)
    path = directory / shard_name(stem, rank)
    pieces = read_checkpoint(path)
    wrong = []
    for name, entry in manifest.tensors.items():
        shape = list(entry.shape)
        if entry.split_dim is not None:
            shape[entry.split_dim] //= degree
        if name not in pieces or list(pieces[name].shape) != shape:
            wrong.append(name)
    wrong += sorted(set(pieces) - set(manifest.tensors))
    if wrong:
        raise WorldtuneError(
            f"{path} is not what {stem}{MANIFEST_SUFFIX} says: {', '.join(wrong[:8])}. Split the checkpoint again."
        )
    return pieces


def join_checkpoint(directory: Path, stem: str, degree: int) -> dict[str, Tensor]:
    """Return the full tensors of the checkpoint `stem` from its pieces for `degree` ranks.

    Raises:
        WorldtuneError: files are missing, damaged, or of another degree.
    """
    return dict(JoinedCheckpoint(directory, stem, degree))


def join_unlisted(files: list[Path]) -> dict[str, Tensor]:
    """Return the full tensors from the files of all ranks, in order, where no manifest tells how they were cut.

    Such files come from the original's converter and its training runs.

    Raises:
        WorldtuneError: the files do not fit each other: other names, or differing copies of a whole tensor.
    """
    pieces = [read_checkpoint(path) for path in files]
    joined = {}
    for name, first in pieces[0].items():
        if any(name not in other for other in pieces):
            raise WorldtuneError(
                f"{name} is in {files[0]}, but not in the files of all ranks. They are of different splits."
            )
        dim = split_dim(name)
        if dim is not None:
            joined[name] = torch.cat([other[name] for other in pieces], dim=dim)
            continue
        for path, other in zip(files, pieces, strict=True):
            if not torch.equal(other[name], first):
                raise WorldtuneError(f"{name} differs between {files[0]} and {path}. They are of different splits.")
        joined[name] = first
    return joined


def merge_checkpoint(sources: list[Path], output: Path) -> None:
    """Write the full tensors of a split to one `.pt` or `.safetensors` file, under their names in the pieces.

    Args:
        sources: a split's manifest, or the files of all ranks in their order.
        output: the file; its suffix chooses the format.

    Raises:
        WorldtuneError: the pieces are damaged or do not fit each other, or the suffix is another.
    """
    if output.suffix not in (".pt", ".safetensors"):
        raise WorldtuneError(f"--output {output}: expected a .pt or .safetensors file.")
    if sources[0].name.endswith(MANIFEST_SUFFIX):
        if len(sources) > 1:
            raise WorldtuneError(f"{sources[1]}: a manifest names all files, expected nothing beside it.")
        stem = sources[0].name.removesuffix(MANIFEST_SUFFIX)
        tensors = join_checkpoint(sources[0].parent, stem, _read_manifest(sources[0]).degree)
    else:
        tensors = join_unlisted(sources)
    if output.suffix == ".pt":
        _save(output, tensors)
    else:
        with atomic_path(output) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
