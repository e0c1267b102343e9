"""Reading the tensors of checkpoints that others wrote, whichever container they used."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json

EXTRA_STATE = "_extra_state"
"""End of the names under which TransformerEngine stores its own settings; they carry no weights."""
INDEX_SUFFIX = ".safetensors.index.json"
"""End of the name of the file that lists the parts of a sharded safetensors checkpoint."""
DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)
"""What torch.load raises for a damaged file, beside UnpicklingError: its unpickler trusts that opcodes make sense."""


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `.pt` or `.safetensors` file, or of a safetensors index, by their names in the file.

    The tensors are mapped from disk where the format allows it, not read. A `.pt` file may be a flat dict, or a
    container with an "ema" entry (whose names have "-" for "."; it goes first where it is not None) or a "model" entry.
    Extra states are left out.

    Raises:
        WorldtuneError: the file is missing, cannot be read safely, or holds something else; the message says what.
    """
    if not path.is_file():
        raise WorldtuneError(f"{path} does not exist. Fetch the checkpoint first, or correct its path in the recipe.")
    if path.name.endswith(INDEX_SUFFIX):
        tensors = _read_index(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in (".pt", ".pth", ".ckpt"):
        tensors = _unpack(load_pickled(path), path)
    else:
        raise WorldtuneError(f"{path} is no checkpoint: expected .pt, .safetensors or {INDEX_SUFFIX}.")
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(EXTRA_STATE)}


def load_pickled(path: Path) -> Any:
    """Return what a file of torch.save holds, read with weights_only=True and mapped where it is a zip archive.

    Raises:
        WorldtuneError: the file is damaged or holds objects that are neither tensors nor plain values.
    """
    try:
        # TransformerEngine pickles extra states as byte buffers. Nothing ever reads them.
        with torch.serialization.safe_globals([io.BytesIO]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
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


def _unpack(content: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise WorldtuneError(f"{path} holds a {type(content).__name__}: expected a dict of tensors.")
    if isinstance(content.get("ema"), Mapping):
        content = {str(name).replace("-", "."): value for name, value in content["ema"].items()}
    elif isinstance(content.get("model"), Mapping):
        content = content["model"]
    wrong = [
        f"{name} ({type(value).__name__})"
        for name, value in content.items()
        if not isinstance(value, Tensor) and not str(name).endswith(EXTRA_STATE)
    ]
    if wrong or not content:
        found = "entries that are no tensors: " + ", ".join(wrong[:5]) if wrong else "no tensors"
        raise WorldtuneError(f'{path} holds {found}. Expected a dict of tensors, or one below "model" or "ema".')
    return {str(name): value for name, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (SafetensorError, OSError) as error:
        raise WorldtuneError(f"{path} is no valid safetensors file ({error}). Fetch it again.") from error


def _read_index(path: Path) -> dict[str, Tensor]:
    index = read_json(path)
    parts = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise WorldtuneError(f'{path} has no "weight_map" from names to files. Fetch it again.')
    tensors: dict[str, Tensor] = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part:
            raise WorldtuneError(f"{path} names the part {part!r}: expected a file in the same folder.")
        tensors |= _read_safetensors(path.parent / part)
    missing = sorted(set(parts) - set(tensors))
    if missing:
        raise WorldtuneError(
            f"{path} lists tensors that its parts lack: {', '.join(missing[:5])}. Fetch the parts again."
        )
    return {name: tensors[name] for name in parts}
