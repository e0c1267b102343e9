"""Reading the tensors of checkpoints that others wrote, whichever container they used."""

import io
import mmap
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.common.words import shown

EXTRA_STATE = "_extra_state"
"""End of the names under which TransformerEngine stores its own settings; they carry no weights."""
INDEX_SUFFIX = ".safetensors.index.json"
"""End of the name of the file that lists the parts of a sharded safetensors checkpoint."""
PICKLED = (".pt", ".pth", ".ckpt")
"""Suffixes of files of torch.save."""
MAX_FILE_NAME = 255
"""Characters of a file's name."""
Weights = Literal["raw", "ema"]
"""Which weights of a training file are wanted: those of the last step, or their moving average."""
NOT_AVERAGED = ("net.pos_embedder.seq", "logvar.0.freqs", "logvar.0.phases")
"""Buffers, of which no average is kept: the original's converter takes them from the raw weights."""
DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch.load raises for a damaged file, beside UnpicklingError: its unpickler trusts that opcodes make sense."""


class CheckpointFile(Mapping[str, Tensor]):
    """The tensors of a checkpoint, for reading them one after another in little memory.

    What was read of a mapped file counts as memory of the process for as long as the mapping lives, so each tensor is
    mapped on its own, when it is asked for. Files of PyTorch before 1.6 cannot be mapped: they are held whole.

    Attributes:
        path: the file.
        described: the tensors on the meta device.
    """

    def __init__(self, path: Path, weights: Weights | None) -> None:
        """Find out what the file holds.

        Args:
            path: as in `read_checkpoint`.
            weights: as in `read_checkpoint`.

        Raises:
            WorldtuneError: as in `read_checkpoint`.
        """
        is_zip = path.suffix in PICKLED and path.is_file() and zipfile.is_zipfile(path)
        tensors = _read(path, weights, "meta" if is_zip else "cpu")
        self.path = path
        self.described = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()
        }
        self._state = self._state_on_disk()
        self._in_zip = tensors if is_zip else {}
        self._held = tensors if path.suffix in PICKLED and not is_zip else {}
        self._parts = _parts_of_index(path) if path.name.endswith(INDEX_SUFFIX) else dict.fromkeys(tensors, path.name)

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor `name`.

        Raises:
            WorldtuneError: the file cannot be read, or is no longer the one that was described.
        """
        if self._state_on_disk() != self._state:
            raise WorldtuneError(f"{self.path} changed while it was read. Run the same command again.")
        if name in self._in_zip:
            return _map_tensor(self.path, self._in_zip[name])
        if name in self._held:
            return self._held[name]
        return _read_safetensors(self.path.with_name(self._parts[name]), [name])[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the file."""
        return iter(self.described)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.described)

    def _state_on_disk(self) -> tuple[int, int, int]:
        status = os.stat(self.path)
        return status.st_ino, status.st_size, status.st_mtime_ns


def _map_tensor(path: Path, like: Tensor) -> Tensor:
    """Return a tensor of a zip archive of torch.save, given what torch.load finds in it with map_location="meta"."""
    storage = like.untyped_storage()
    if not storage.nbytes():
        return torch.empty(like.shape, dtype=like.dtype)
    # Where in the file its bytes lie: torch.load notes it for tensors without memory.
    offset = storage._checkpoint_offset
    assert offset is not None
    skipped = offset % mmap.ALLOCATIONGRANULARITY
    length = skipped + storage.nbytes()
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=offset - skipped)
        flat = torch.frombuffer(mapped, dtype=like.dtype, offset=skipped)
        return flat.as_strided(like.shape, like.stride(), like.storage_offset())
    except (OSError, RuntimeError, ValueError) as error:
        raise WorldtuneError(f"{path} cannot be read ({type(error).__name__}: {error}). Fetch it again.") from error


def read_checkpoint(path: Path, weights: Weights | None = None) -> dict[str, Tensor]:
    """Return the tensors of a `.pt` or `.safetensors` file, or of a safetensors index, by their names in the file.

    The tensors are mapped from disk where the format allows it, not read. A `.pt` file may be a flat dict, or a
    container with an "ema" entry (whose names have "-" for ".") and a "model" entry. Extra states are left out.

    Args:
        path: the file.
        weights: "raw" takes "model" or the flat dict; "ema" takes "ema", and from "model" the buffers that have no
            average; None does as the original's loader: "ema" alone where it is not None, else "model", else the dict.

    Raises:
        WorldtuneError: the file is missing, cannot be read safely, or holds something else; the message says what.
    """
    return _read(path, weights, "cpu")


def _read(path: Path, weights: Weights | None, device: Literal["cpu", "meta"]) -> dict[str, Tensor]:
    if not path.is_file():
        raise WorldtuneError(f"{path} does not exist. Fetch the checkpoint first, or correct its path in the recipe.")
    if path.suffix in PICKLED:
        tensors = _unpack(load_pickled(path, device), path, weights)
    elif weights == "ema":
        raise WorldtuneError(f"{path} holds one set of tensors and no average beside it. Ask for the raw weights.")
    elif path.name.endswith(INDEX_SUFFIX):
        tensors = _read_index(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    else:
        raise WorldtuneError(f"{path} is no checkpoint: expected .pt, .safetensors or {INDEX_SUFFIX}.")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(EXTRA_STATE)}


def load_pickled(path: Path, device: Literal["cpu", "meta"] = "cpu") -> Any:
    """Return what a file of torch.save holds, read with weights_only=True and mapped where it is a zip archive.

    Args:
        path: the file.
        device: for its tensors. On "meta" they are only described.

    Raises:
        WorldtuneError: the file is damaged or holds objects that are neither tensors nor plain values.
    """
    try:
        # TransformerEngine pickles extra states as byte buffers. Nothing ever reads them.
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WorldtuneError(
            f"{path} holds more than tensors and plain values, or is damaged, and is not loaded: {_reason(error)}. "
            "Fetch it again; if it is as published, save its tensors as safetensors in an environment that may run it."
        ) from error
    except DAMAGE as error:
        raise WorldtuneError(f"{path} cannot be read ({type(error).__name__}: {error}). Fetch it again.") from error


def _reason(error: pickle.UnpicklingError) -> str:
    """Return what PyTorch found, without its advice to load the file in a way that runs what is in it."""
    lines = [line.strip().partition(" Please use ")[0].rstrip(".") for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and "weights_only" not in line) or "it is no pickle"


def _unpack(content: Any, path: Path, weights: Weights | None) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WorldtuneError(f"{path} holds a {type(content).__name__}: expected a dict of tensors.")
    raw, average = content.get("model"), content.get("ema")
    if weights == "ema" and not isinstance(average, Mapping):
        raise WorldtuneError(f"{path} holds no average: {_found(content)}. Ask for the raw weights.")
    if weights == "raw" and isinstance(average, Mapping) and not isinstance(raw, Mapping):
        raise WorldtuneError(f"{path} holds no raw weights: {_found(content)}. Ask for the average (ema).")
    if isinstance(average, Mapping) and weights != "raw":
        content = {str(name).replace("-", "."): value for name, value in average.items()}
        if weights == "ema" and isinstance(raw, Mapping):
            content |= {name: raw[name] for name in NOT_AVERAGED if name in raw and name not in content}
    elif isinstance(raw, Mapping):
        content = raw
    wrong = [
        f"{shown(name)} ({type(value).__name__})"
        for name, value in content.items()
        if not isinstance(value, Tensor) and not str(name).endswith(EXTRA_STATE)
    ]
    if wrong or not content:
        found = "entries that are no tensors: " + ", ".join(wrong[:5]) if wrong else "no tensors"
        raise WorldtuneError(f'{path} holds {found}. Expected a dict of tensors, or one below "model" or "ema".')
    return {str(name): value for name, value in content.items()}


def _found(content: Mapping[Any, Any]) -> str:
    """Return what a file has at the two entries that may hold weights."""
    if not {"model", "ema"} & set(content):
        return f'it is a flat dict of {len(content)} entries, without "model" and "ema"'
    facts = []
    for key in ("model", "ema"):
        value = content.get(key)
        facts.append(f'its "{key}" ' + (f"has {len(value)} entries" if isinstance(value, Mapping) else "is None"))
    return " and ".join(facts)


def _read_safetensors(path: Path, names: list[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file, or those of the given names."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except (SafetensorError, OSError) as error:
        raise WorldtuneError(f"{path} is no valid safetensors file ({error}). Fetch it again.") from error


def _parts_of_index(path: Path) -> dict[str, str]:
    """Return the names of the parts of a sharded checkpoint, which lie beside its index, by the names of tensors."""
    index = read_json(path)
    parts = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise WorldtuneError(f'{path} has no "weight_map" from names to files. Fetch it again.')
    for part in sorted(set(parts.values())):
        if Path(part).name != part or len(part) > MAX_FILE_NAME:
            raise WorldtuneError(f"{path} names the part {shown(part)}: expected a file in the same folder.")
    return parts


def _read_index(path: Path) -> dict[str, Tensor]:
    parts = _parts_of_index(path)
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        tensors |= _read_safetensors(path.parent / part)
    missing = sorted(set(parts) - set(tensors))
    if missing:
        raise WorldtuneError(
            f"{path} lists tensors that its parts lack: {', '.join(map(shown, missing[:5]))}. Fetch the parts again."
        )
    return {name: tensors[name] for name in parts}
