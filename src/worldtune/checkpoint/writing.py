"""Writing checkpoints one tensor at a time, so that a file may be larger than the memory."""

import json
import mmap
import pickle
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import IO, Any

import torch
from safetensors.torch import save
from torch import Tensor

Described = Mapping[str, Tensor]
"""Tensors on the meta device by their names, in the order of a file."""


def write_pickled(
    file: IO[bytes], described: Described, produce: Callable[[str], Tensor], wrap: Callable[[dict[str, Tensor]], Any]
) -> None:
    """Write the bytes that torch.save gives for `wrap` of a dict of contiguous tensors, holding one tensor at a time.

    Args:
        file: open for writing.
        described: names, shapes and dtypes.
        produce: returns the tensor of a name; called once for each, in order.
        wrap: puts the dict of all tensors into its container.
    """
    blanks = {name: fresh_tensor(like.shape, like.dtype) for name, like in described.items()}
    with torch.serialization._open_zipfile_writer(file) as archive:
        filled = _FilledArchive(archive, described, produce)
        torch.serialization._save(wrap(blanks), filled, pickle, torch.serialization.DEFAULT_PROTOCOL, False)


def fresh_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a contiguous tensor of zeros that takes memory only once it is written to, and none once it is dropped.

    The C library keeps what it lent to tensors of torch.empty up to 32 MiB, and seldom finds a use for it.
    """
    num_bytes = prod(shape) * dtype.itemsize
    if not num_bytes:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE), dtype=dtype).reshape(shape)


class _FilledArchive:
    """Stands before torch.save's archive, and writes the produced tensors where it would write the blank ones."""

    def __init__(self, archive: Any, described: Described, produce: Callable[[str], Tensor]) -> None:
        self._archive = archive
        self._described = described
        self._produce = produce
        self._names = list(described)

    def write_record(self, record: str, data: Any, size: int) -> None:
        """Write one record: tensors are numbered in the order in which they are pickled."""
        if record.startswith("data/"):
            name = self._names[int(record.removeprefix("data/"))]
            tensor = _produced(name, self._described, self._produce)
            # A view would be written with the whole tensor behind it.
            if tensor.untyped_storage().nbytes() != size:
                tensor = fresh_tensor(tensor.shape, tensor.dtype).copy_(tensor)
            data = tensor.untyped_storage()
        self._archive.write_record(record, data, size)


def write_safetensors(file: IO[bytes], described: Described, produce: Callable[[str], Tensor]) -> None:
    """Write the bytes that safetensors' save_file gives for contiguous tensors, holding one tensor at a time.

    Args:
        file: open for writing.
        described: names, shapes and dtypes.
        produce: returns the tensor of a name; called once for each.
    """
    # The library chooses the order and the names of dtypes; of tensors without elements it needs no memory for that.
    empty = save({name: torch.empty(0, dtype=like.dtype) for name, like in described.items()})
    header = json.loads(empty[8:])
    start = 0
    for name, entry in header.items():
        stop = start + described[name].nbytes
        entry |= {"shape": list(described[name].shape), "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for name in header:
        file.write(_produced(name, described, produce).reshape(-1).view(torch.uint8).numpy().data)


def _produced(name: str, described: Described, produce: Callable[[str], Tensor]) -> Tensor:
    tensor = produce(name).detach()
    like = described[name]
    assert (tensor.shape, tensor.dtype) == (like.shape, like.dtype), f"{name} is not as described"
    return tensor if tensor.is_contiguous() else fresh_tensor(tensor.shape, tensor.dtype).copy_(tensor)
