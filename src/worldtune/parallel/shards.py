"""Pieces of tensors that are spread over a mesh of one dim."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from worldtune.parallel.axes import shard


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
