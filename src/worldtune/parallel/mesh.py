"""The device mesh: data-parallel replicas of tensor-parallel groups."""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from worldtune.common.errors import WorldtuneError


def build_mesh(device_type: str, data: int, tensor: int) -> DeviceMesh:
    """Return the mesh with dims ("data", "tensor"); ranks of one tensor-parallel group are neighbours.

    Starts the process group where there is none: from torchrun's environment, or as one process by itself. On CUDA the
    process takes the device of its LOCAL_RANK, and collectives on CPU tensors go through gloo.

    Raises:
        WorldtuneError: the number of processes is not data * tensor.
    """
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if dist.get_world_size() != data * tensor:
        raise WorldtuneError(
            f"{dist.get_world_size()} processes were started; parallel.data = {data} and parallel.tensor = {tensor} "
            f"need {data * tensor}. Start them with torchrun --nproc-per-node {data * tensor}, or change the degrees."
        )
    return init_device_mesh(device_type, (data, tensor), mesh_dim_names=("data", "tensor"))


def sample_group(mesh: DeviceMesh) -> dist.ProcessGroup:
    """Return a new process group of this rank and those that work on the same samples. Collective over all ranks.

    Only ranks along the mesh's first dimension, "data", have samples of their own. The group is not one of the mesh's,
    so that what goes through it on a stream of its own never waits for the network's collectives, nor they for it.
    """
    group, _ = dist.new_subgroups_by_enumeration(mesh.mesh.flatten(1).tolist())
    return group
