"""Pieces of tensors that are spread over a mesh of one dim."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from worldtune.common.errors import WorldtuneError


def shard(full: Tensor, dim: int | None, degree: int, rank: int, name: str) -> Tensor:
    """Return a view of rank `rank`'s piece of `full` along `dim`; None gives the whole tensor.

    Raises:
        WorldtuneError: the axis cannot be cut into `degree` equal pieces; the message has `name`.
    """
    if dim is None:
        return full
    if dim >= full.dim() or full.shape[dim] % degree:
        raise WorldtuneError(
            f"{name} has shape {tuple(full.shape)}: axis {dim} cannot be cut into {degree} equal pieces. Choose a "
            "tensor-parallel degree that divides it."
        )
    length = full.shape[dim] // degree
    return full.narrow(dim, rank * length, length)


def shard_dim(tensor: Tensor) -> int | None:
    """Return the axis along which a DTensor on a mesh of one dim is split; None for a replicated or plain tensor."""
    if isinstance(tensor, DTensor) and isinstance(tensor.placements[0], Shard):
        return tensor.placements[0].dim
    return None


@torch.no_grad()
def fill(target: Tensor, full: Tensor, name: str) -> None:
    """Copy this rank's piece of `full` into `target`, a plain tensor or a DTensor, with a cast to its dtype."""
    if isinstance(target, DTensor):
        mesh = target.device_mesh
        target.to_local().copy_(shard(full, shard_dim(target), mesh.size(), mesh.get_local_rank(), name))
    else:
        target.copy_(full)
