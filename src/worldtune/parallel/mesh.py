"""The device mesh: data-parallel replicas of context-parallel groups of tensor-parallel groups."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from worldtune.common.errors import WorldtuneError


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The dims of one device mesh, each as a mesh of one dim; ranks of one tensor-parallel group are neighbours."""

    data: DeviceMesh
    """Ranks that read different samples."""
    context: DeviceMesh
    """Ranks that compute on different tokens of the same samples."""
    tensor: DeviceMesh
    """Ranks that hold different pieces of the weights and compute on the same samples."""
    sample: DeviceMesh
    """Context and tensor as one: ranks that compute on the same samples."""
    replicas: DeviceMesh
    """Data and context as one: ranks that hold the same weights, or that FSDP2 shards them over."""


def build_mesh(device_type: str, *, data: int = 1, context: int = 1, tensor: int = 1) -> Mesh:
    """Return the mesh of all processes, with the dims data, context and tensor.

    Starts the process group where there is none: from torchrun's environment, or as one process by itself. On CUDA the
    process takes the device of its LOCAL_RANK, and collectives on CPU tensors go through gloo.

    Raises:
        WorldtuneError: the number of processes is not data * context * tensor.
    """
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    needed = data * context * tensor
    if dist.get_world_size() != needed:
        raise WorldtuneError(
            f"{dist.get_world_size()} processes were started; parallel.data = {data}, parallel.context = {context} and "
            f"parallel.tensor = {tensor} need {needed}. Start them with torchrun --nproc-per-node {needed}, or change "
            "the degrees."
        )
    mesh = init_device_mesh(device_type, (data, context, tensor), mesh_dim_names=("data", "context", "tensor"))
    return Mesh(
        data=mesh["data"],
        context=mesh["context"],
        tensor=mesh["tensor"],
        sample=mesh["context", "tensor"]._flatten("sample"),
        replicas=mesh["data", "context"]._flatten("replicas"),
    )


def sample_group(mesh: Mesh) -> dist.ProcessGroup:
    """Return a new process group of this rank and those that work on the same samples. Collective over all ranks.

    The group is not one of the mesh's, so that what goes through it on a stream of its own never waits for the
    network's collectives, nor they for it.
    """
    size = mesh.sample.size()
    group, _ = dist.new_subgroups_by_enumeration(
        [list(range(first, first + size)) for first in range(0, dist.get_world_size(), size)]
    )
    return group
