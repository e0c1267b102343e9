"""Cutting a checkpoint into one file for each tensor-parallel rank, and putting the pieces together again.

Layout of a split: `<stem>.pt` (a placeholder that the original's loader wants to see), `<stem>_model_mp_<rank>.pt` with
{"model": tensors, "ema": None}, and `<stem>.split.json`, written last. Names are those of the source file.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from torch import Tensor

from worldtune.checkpoint.reading import CheckpointFile, Weights, load_pickled, read_checkpoint
from worldtune.checkpoint.writing import fresh_tensor, write_pickled, write_safetensors
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path, digest, read_json, sha256_file, write_json
from worldtune.common.progress import progress
from worldtune.parallel.axes import shard, split_dim

VERSION = 1
"""Raised when a change of the split should make the existing ones anew."""

MANIFEST_SUFFIX = ".split.json"
"""End of a split's manifest."""
ROOT_NAME = "checkpoints"
"""Folder below which a checkpoint's path names its repository and file."""
SHARD_NAME = re.compile(r"(.+)_model_mp_(\d+)\.pt")
"""Stem and rank in the names of the files of a split and of the original's training runs."""


class SplitTensor(BaseModel):
    """One tensor of a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[int, ...]
    dtype: str
    split_dim: int | None

    def piece_shape(self, degree: int) -> tuple[int, ...]:
        """Return the shape of the piece that each of `degree` ranks has."""
        return tuple(n // degree if axis == self.split_dim else n for axis, n in enumerate(self.shape))


class SplitManifest(BaseModel):
    """What a split is made of and from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    source: str
    source_sha256: str
    degree: PositiveInt
    files: dict[str, str]
    tensors: dict[str, SplitTensor]
    weights: Weights | None = None
    """What was asked for; None where the source was read as the original's loader does."""


def shard_name(stem: str, rank: int) -> str:
    """Return the name of the file that holds rank `rank`'s pieces of the checkpoint `stem`."""
    return f"{stem}_model_mp_{rank}.pt"


class FullTensors(Mapping[str, Tensor]):
    """The full tensors of a checkpoint in one file for each rank, put together one at a time as they are asked for.

    Attributes:
        described: the full tensors on the meta device.
    """

    def __init__(self, files: Sequence[CheckpointFile], dims: Mapping[str, int | None]) -> None:
        """Take the files of all ranks in order, with the axis along which each tensor is split; None if each has it."""
        self._files = files
        self._dims = dims
        self.described = {name: self._full_size(name, like) for name, like in files[0].described.items()}

    def _full_size(self, name: str, piece: Tensor) -> Tensor:
        dim = self._dims[name]
        # One file may come from anywhere: whether its tensors have such an axis is checked when they are split.
        return piece if dim is None or len(self._files) == 1 else torch.cat([piece] * len(self._files), dim=dim)

    def __getitem__(self, name: str) -> Tensor:
        """Return the full tensor `name`."""
        dim = self._dims[name]
        return self._files[0][name] if dim is None else _concatenated([file[name] for file in self._files], dim)

    def piece(self, name: str, dim: int | None, degree: int, rank: int) -> Tensor:
        """Return what rank `rank` of `degree` has of the tensor `name`, split along `dim`; reads no more than that."""
        if dim is None or dim != self._dims[name]:
            return shard(self[name], dim, degree, rank, name)
        length = self._files[0].described[name].shape[dim]
        wanted = self.described[name].shape[dim] // degree
        parts = []
        for number, file in enumerate(self._files):
            start, stop = max(rank * wanted, number * length), min((rank + 1) * wanted, (number + 1) * length)
            if start < stop:
                parts.append(file[name].narrow(dim, start - number * length, stop - start))
        return _concatenated(parts, dim) if parts else self._files[0][name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the source file."""
        return iter(self.described)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.described)


def _concatenated(parts: Sequence[Tensor], dim: int) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return torch.cat([part.detach() for part in parts], dim=dim, out=fresh_tensor(shape, parts[0].dtype))


class JoinedCheckpoint(FullTensors):
    """The full tensors of a split with a manifest."""

    def __init__(self, directory: Path, stem: str, degree: int, weights: Weights | None = None) -> None:
        """Map the pieces of the checkpoint `stem` in `directory`.

        Raises:
            WorldtuneError: files are missing, damaged, of another degree, or without such weights.
        """
        self.manifest = read_manifest(directory, stem, degree)
        for name, expected in self.manifest.files.items():
            if sha256_file(directory / name) != expected:
                raise WorldtuneError(
                    f"{directory / name} is not the file that was written. Split the checkpoint again."
                )
        files = [CheckpointFile(directory / shard_name(stem, rank), weights) for rank in range(degree)]
        for file in files:
            _check_shard(file.path, file.described, self.manifest)
        super().__init__(files, {name: entry.split_dim for name, entry in self.manifest.tensors.items()})


def split_checkpoint(source: Path, target_dir: Path, degree: int, weights: Weights | None = None) -> Path:
    """Write the pieces of a checkpoint for `degree` ranks; returns the path of the manifest.

    One process on the CPU, which holds a few tensors at a time. Equal sources give equal files.

    Args:
        source: a `.pt` or `.safetensors` checkpoint, the trainer's file of one of the original's training runs
            (`iter_000001000.pt`, with the files of all ranks beside it), or the manifest of a split of another degree.
        target_dir: folder for the split.
        degree: number of pieces.
        weights: "raw" or "ema" of a training file; None does as the original's loader (see `read_checkpoint`).

    Raises:
        WorldtuneError: the source cannot be read, or a tensor cannot be cut into `degree` pieces.
    """
    if degree < 1:
        raise WorldtuneError(f"--degree {degree}: expected 1 or more.")
    if target_dir.resolve() == source.parent.resolve():
        raise WorldtuneError(f"--output-dir {target_dir} is the source's own folder, whose files would be replaced.")
    tensors: FullTensors
    if source.name.endswith(MANIFEST_SUFFIX):
        stem = source.name.removesuffix(MANIFEST_SUFFIX)
        joined = JoinedCheckpoint(source.parent, stem, _read_manifest(source).degree, weights)
        tensors, name, sha256 = joined, joined.manifest.source, joined.manifest.source_sha256
        weights = joined.manifest.weights
    elif pieces := pieces_beside(source):
        stem, name = source.stem, source_name(source)
        tensors, sha256 = join_unlisted(pieces, weights), digest([sha256_file(piece) for piece in pieces])
    else:
        stem, name, sha256 = source.stem, source_name(source), sha256_file(source) if source.is_file() else ""
        file = CheckpointFile(source, weights)
        tensors = FullTensors([file], {key: split_dim(key) for key in file})
    entries = plan_split(tensors.described, degree)
    manifest_path = target_dir / f"{stem}{MANIFEST_SUFFIX}"
    # A split that is being replaced must not look whole.
    manifest_path.unlink(missing_ok=True)
    trainer_file = {"grad_scaler": {}, "iteration": 0}
    files = {f"{stem}.pt": _write(target_dir / f"{stem}.pt", lambda file: torch.save(trainer_file, file))}
    for rank in progress(range(degree), f"split {stem} for {degree} ranks"):
        path = target_dir / shard_name(stem, rank)
        files[path.name] = _write(path, _shard_writer(tensors, entries, degree, rank))
    manifest = SplitManifest(
        format=1, source=name, source_sha256=sha256, degree=degree, files=files, tensors=entries, weights=weights
    )
    write_json(manifest_path, manifest.model_dump(mode="json", exclude_defaults=True))
    return manifest_path


def pieces_beside(source: Path) -> list[Path]:
    """Return the files of all ranks that a trainer's file without tensors stands for; none where it is a checkpoint."""
    found = source.parent.glob(f"{source.stem}_model_mp_*.pt")
    pieces = {int(match[2]): path for path in found if (match := SHARD_NAME.fullmatch(path.name))}
    if not pieces or not source.is_file():
        return []
    content = load_pickled(source, "meta")
    if not isinstance(content, Mapping) or "iteration" not in content or "model" in content:
        return []
    return [pieces[rank] for rank in sorted(pieces)]


def plan_split(described: Mapping[str, Tensor], degree: int) -> dict[str, SplitTensor]:
    """Return how tensors, which may be on the meta device, are split for `degree` ranks.

    Raises:
        WorldtuneError: a tensor cannot be cut into `degree` pieces.
    """
    entries = {}
    for name, tensor in described.items():
        dim = split_dim(name)
        shard(tensor, dim, degree, 0, name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries[name] = SplitTensor(shape=tuple(tensor.shape), dtype=dtype, split_dim=dim)
    return entries


def _shard_writer(
    tensors: FullTensors, entries: Mapping[str, SplitTensor], degree: int, rank: int
) -> Callable[[IO[bytes]], None]:
    """Return what writes the file of one rank."""
    described = {
        name: torch.empty(entry.piece_shape(degree), dtype=tensors.described[name].dtype, device="meta")
        for name, entry in entries.items()
    }
    return lambda file: write_pickled(
        file,
        described,
        lambda name: tensors.piece(name, entries[name].split_dim, degree, rank),
        lambda pieces: {"model": pieces, "ema": None},
    )


def _write(path: Path, write: Callable[[IO[bytes]], None]) -> str:
    """Write a file whole or not at all; returns its SHA-256."""
    with atomic_path(path) as temporary:
        # Given a path, torch.save puts its name into the file.
        with open(temporary, "wb") as file:
            write(file)
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
    _check_shard(path, pieces, manifest)
    return pieces


def _check_shard(path: Path, pieces: Mapping[str, Tensor], manifest: SplitManifest) -> None:
    shapes = {name: entry.piece_shape(manifest.degree) for name, entry in manifest.tensors.items()}
    wrong = [name for name, shape in shapes.items() if name not in pieces or tuple(pieces[name].shape) != shape]
    wrong += sorted(set(pieces) - set(shapes))
    if wrong:
        raise WorldtuneError(
            f"{path} is not what the split's manifest ({MANIFEST_SUFFIX}) says: {', '.join(wrong[:8])}. Split the "
            "checkpoint again."
        )


def join_checkpoint(directory: Path, stem: str, degree: int) -> dict[str, Tensor]:
    """Return the full tensors of the checkpoint `stem` from its pieces for `degree` ranks.

    Raises:
        WorldtuneError: files are missing, damaged, or of another degree.
    """
    return dict(JoinedCheckpoint(directory, stem, degree))


def join_unlisted(paths: list[Path], weights: Weights | None = None) -> FullTensors:
    """Return the full tensors from the files of all ranks, where no manifest tells how they were cut.

    Such files come from the original's converter and its training runs.

    Args:
        paths: the files; where their names have no ranks, in the order of the ranks.
        weights: "raw" or "ema"; None does as the original's loader (see `read_checkpoint`).

    Raises:
        WorldtuneError: a file is left out, has no such weights, or the files do not fit each other: other names or
            shapes, or differing copies of a whole tensor.
    """
    files = [CheckpointFile(path, weights) for path in _in_rank_order(paths)]
    first = files[0]
    for other in files[1:]:
        differing = sorted(set(first) ^ set(other))
        if differing:
            raise WorldtuneError(
                f"{differing[0]} is in one of {first.path} and {other.path}, but not in the files of all ranks. They "
                "are of different splits."
            )
    for name, like in first.described.items():
        dim = split_dim(name)
        if dim is not None and dim >= like.dim():
            raise WorldtuneError(f"{first.path}: {name} has shape {tuple(like.shape)}, expected an axis {dim}.")
        for other in files[1:]:
            if not _fit(first, other, name, whole=dim is None):
                raise WorldtuneError(
                    f"{name} differs between {first.path} and {other.path}. They are of different splits."
                )
    return FullTensors(files, {name: split_dim(name) for name in first})


def _in_rank_order(paths: list[Path]) -> list[Path]:
    """Return the files in the order of the ranks in their names; as given where the names have none.

    Raises:
        WorldtuneError: the files of some ranks are left out, or are of several checkpoints.
    """
    matches = [SHARD_NAME.fullmatch(path.name) for path in paths]
    ranks = {int(match[2]): path for match, path in zip(matches, paths, strict=True) if match}
    if not ranks:
        return paths
    stems = {match[1] if match else path.name for match, path in zip(matches, paths, strict=True)}
    following = paths[0].with_name(shard_name(min(stems), len(paths)))
    if len(stems) > 1 or sorted(ranks) != list(range(len(paths))) or following.exists():
        raise WorldtuneError(
            f"Found ranks {sorted(ranks)} of {', '.join(sorted(stems))}: expected the files of all ranks of one "
            f"checkpoint, {paths[0].with_name(shard_name(min(stems), 0))} and so on."
        )
    return [ranks[rank] for rank in sorted(ranks)]


def _fit(first: CheckpointFile, other: CheckpointFile, name: str, *, whole: bool) -> bool:
    """Return whether two ranks' pieces of a tensor have equal shapes and, if each has it whole, equal bits."""
    one, two = first.described[name], other.described[name]
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        return False
    # Numbers would not do: NaN differs from itself.
    return not whole or torch.equal(_bits(first[name]), _bits(other[name]))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).view(torch.uint8)


def merge_checkpoint(sources: list[Path], output: Path, weights: Weights | None = None) -> None:
    """Write the full tensors of a split to one `.pt` or `.safetensors` file, under their names in the pieces.

    Holds a few tensors at a time.

    Args:
        sources: a split's manifest, or the files of all ranks.
        output: the file; its suffix chooses the format.
        weights: "raw" or "ema" of a training run's files; None does as the original's loader (see `read_checkpoint`).

    Raises:
        WorldtuneError: the pieces are damaged, have no such weights or do not fit each other, the suffix is another, or
            the file would replace one of them.
    """
    if output.suffix not in (".pt", ".safetensors"):
        raise WorldtuneError(f"--output {output}: expected a .pt or .safetensors file.")
    tensors: FullTensors
    if sources[0].name.endswith(MANIFEST_SUFFIX):
        if len(sources) > 1:
            raise WorldtuneError(f"{sources[1]}: a manifest names all files, expected nothing beside it.")
        stem = sources[0].name.removesuffix(MANIFEST_SUFFIX)
        joined = JoinedCheckpoint(sources[0].parent, stem, _read_manifest(sources[0]).degree, weights)
        tensors, used = joined, [sources[0].with_name(name) for name in joined.manifest.files]
    else:
        tensors, used = join_unlisted(sources, weights), sources
    if output.resolve() in [path.resolve() for path in used]:
        raise WorldtuneError(f"--output {output} is one of the files that are merged. Choose another name or folder.")
    if output.suffix == ".pt":
        _write(output, lambda file: write_pickled(file, tensors.described, tensors.__getitem__, dict))
    else:
        _write(output, lambda file: write_safetensors(file, tensors.described, tensors.__getitem__))
