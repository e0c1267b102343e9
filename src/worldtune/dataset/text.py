"""T5 embedding files in the forms that the original has (spec/transfer1-training.md 5.1, 5.2), and as safetensors.

Written is a pickle of a list of one float16 array [n, C], or a .safetensors file with one such tensor. Read are these,
a bare array, and the nested tables of the driving datasets.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import atomic_path
from worldtune.formats.pickles import read_pickle

MAX_ELEMENT_BYTES = 8
MAX_OVERHEAD_BYTES = 65536
MAX_CHANNELS = 8192
"""Largest width of an embedding whose encoder is not known."""
SAFETENSORS_TYPES = ("F16", "F32", "F64")
"""Types of tensors that numpy knows too."""
SAFETENSORS_KEY = "t5_xxl"
"""Name of the tensor in a .safetensors file."""
NESTED_KEYS = ("pickle", "ground_truth", "embeddings", "t5_xxl")
"""Where the original's single-view driving datasets keep the embedding in nested tables (5.1)."""


def write_t5(path: Path, embedding: np.ndarray) -> None:
    """Write an embedding [n, C] as float16; a name that ends in .safetensors gives that format.

    Raises:
        WorldtuneError: the shape is another one, or a value does not fit float16.
    """
    path = Path(path)
    if embedding.ndim != 2 or not len(embedding):
        raise WorldtuneError(f"{path}: the embedding has the shape {embedding.shape}; expected [tokens, channels].")
    half = np.ascontiguousarray(embedding, dtype=np.float16)
    if not np.isfinite(half).all():
        raise WorldtuneError(f"{path}: the embedding has values that are not finite in float16. Check the encoder.")
    with atomic_path(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.numpy import save_file

            save_file({SAFETENSORS_KEY: half}, temporary)
        else:
            with open(temporary, "wb") as file:
                pickle.dump([half], file, protocol=4)


def read_t5_tokens(path: Path, max_tokens: int, channels: int | None) -> np.ndarray:
    """Return the embedding in a file as float32 [n, channels], without padding.

    Args:
        path: the file.
        max_tokens: largest n.
        channels: the width; None admits any up to MAX_CHANNELS.

    Raises:
        WorldtuneError: the file is damaged, holds anything else, or has other sizes.
    """
    path = Path(path)
    max_bytes = max_tokens * (channels or MAX_CHANNELS) * MAX_ELEMENT_BYTES + MAX_OVERHEAD_BYTES
    value = _read_safetensors(path, max_bytes) if path.suffix == ".safetensors" else read_pickle(path, max_bytes)
    value = _embedding_in(value)
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind != "f":
        raise WorldtuneError(
            f"{path} holds no array [tokens, channels]; expected one, a list of one, or such below "
            f"{' -> '.join(NESTED_KEYS)}. Make it again."
        )
    if not 1 <= value.shape[0] <= max_tokens or value.shape[1] != (channels or value.shape[1]):
        raise WorldtuneError(
            f"{path} holds an array {list(value.shape)}; expected 1 to {max_tokens} tokens of "
            f"{channels or 'any'} channels. Make it again with the dataset's text encoder."
        )
    if not np.isfinite(value).all():
        raise WorldtuneError(f"{path} holds values that are not finite. Make it again.")
    return value.astype(np.float32)


def _embedding_in(value: Any) -> Any:
    """Return what the original's loaders take from a pickle; None where it has another form."""
    if isinstance(value, dict):
        for key in NESTED_KEYS:
            value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 3):
        return value[0] if len(value) == 1 else None
    return value


def read_t5(path: Path, max_tokens: int, channels: int) -> np.ndarray:
    """Return the embedding in a file as float32 [max_tokens, channels], padded with zeros; errors as read_t5_tokens."""
    tokens = read_t5_tokens(path, max_tokens, channels)
    padded = np.zeros((max_tokens, channels), np.float32)
    padded[: len(tokens)] = tokens
    return padded


def _read_safetensors(path: Path, max_bytes: int) -> np.ndarray:
    try:
        if path.stat().st_size > max_bytes:
            raise WorldtuneError(f"{path} is larger than the {max_bytes} bytes admitted here. Look at its origin.")
        with safe_open(path, framework="numpy") as file:
            kind = file.get_slice(SAFETENSORS_KEY).get_dtype()
            if kind not in SAFETENSORS_TYPES:
                expected = ", ".join(SAFETENSORS_TYPES)
                raise WorldtuneError(f"{path} holds a tensor of type {kind}; expected {expected}. Save it as float16.")
            return file.get_tensor(SAFETENSORS_KEY)
    except (OSError, SafetensorError) as error:
        raise WorldtuneError(f"{path} cannot be read: {error}. Expected a tensor {SAFETENSORS_KEY!r}.") from error
