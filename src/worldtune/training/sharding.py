"""Parameters that are plain tensors or DTensors: local parts, and wrapping local tensors the same way."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor

from worldtune.parallel.mesh import Mesh


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name, in an order that is the same on all ranks."""
    return {name: parameter for name, parameter in sorted(module.named_parameters()) if parameter.requires_grad}


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return this rank's part, sharing memory and without a graph."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def sharded_dims(tensor: Tensor) -> frozenset[str]:
    """Return the names of the mesh dims over which each rank holds a part only: of "tensor" and "replicas"."""
    if not isinstance(tensor, DTensor):
        return frozenset()
    names = tensor.device_mesh.mesh_dim_names or ()
    return frozenset(
        name for name, placement in zip(names, tensor.placements, strict=True) if not placement.is_replicate()
    )


def wrap_like(part: Tensor, reference: Tensor) -> Tensor:
    """Return a local part as what `reference` is: a DTensor with its mesh and placements, or a plain tensor."""
    if not isinstance(reference, DTensor):
        return part
    return DTensor.from_local(
        part,
        reference.device_mesh,
        reference.placements,
        run_check=False,
        shape=reference.shape,
        stride=reference.stride(),
    )


@torch.no_grad()
def broadcast_replicas(parameters: Mapping[str, Tensor], mesh: Mesh) -> None:
    """Make all copies of a parameter equal to those of the first rank of each group.

    Layers that no checkpoint gives a value are initialised at random; a copy that started differently on one rank
    would stay different.
    """
    for parameter in parameters.values():
        for dim, group_mesh in (("replicas", mesh.replicas), ("tensor", mesh.tensor)):
            if dim not in sharded_dims(parameter) and group_mesh.size() > 1:
                group = group_mesh.get_group()
                dist.broadcast(local(parameter), src=dist.get_global_rank(group, 0), group=group)


def buckets(tensors: Iterable[Tensor], max_elements: int) -> Iterable[list[Tensor]]:
    """Yield consecutive tensors in lists of about `max_elements` elements in all."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > max_elements:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def all_reduce_over(tensors: Iterable[Tensor], group: ProcessGroup, max_elements: int, *, divisor: int) -> None:
    """Replace tensors of one type by their sum over a group over `divisor`, in flat buckets."""
    for bucket in buckets(tensors, max_elements):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat, group=group)
        flat /= divisor
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))
