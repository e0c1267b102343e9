"""Spreading a Transfer1 network over a mesh: split layers and tokens, and FSDP2 shards of what each rank holds."""

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.axes import shard, split_dim
from worldtune.parallel.mesh import Mesh
from worldtune.parallel.tokens import TokenParallel
from worldtune.transfer1.network import DiffusionTransformer


def parallelize(network: DiffusionTransformer, mesh: Mesh, *, sequence: bool) -> None:
    """Lay a network's layers and tokens out over the tensor and context ranks.

    Over tensor ranks parameters become DTensors: heads and hidden units split, all others whole on each rank. Their
    gradients are complete over the tensor ranks after backward, placed as their parameters. Over context ranks each
    rank has the same parameters and the gradient of its own tokens; the sum is the trainer's. One process changes
    nothing. Works on the meta device too. Parameters that have values must have equal ones on all ranks.

    Args:
        network: on the meta device or on the mesh's.
        mesh: of all processes.
        sequence: whether the tensor ranks split tokens outside attention and MLP.

    Raises:
        WorldtuneError: the degrees do not divide the heads, or the MLP's hidden units.
    """
    degree, context = mesh.tensor.size(), mesh.context.size()
    if degree * context == 1:
        return
    if network.config.num_heads % (degree * context):
        raise WorldtuneError(
            f"parallel.tensor = {degree} x parallel.context = {context} does not divide the network's "
            f"{network.config.num_heads} attention heads."
        )
    parallel = TokenParallel(mesh.tensor.get_group(), mesh.context.get_group(), sequence=sequence)
    for prefix, module in network.named_modules():
        if hasattr(module, "parallel"):
            module.parallel = parallel
        if degree > 1:
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, _spread(f"{prefix}.{name}", parameter, mesh.tensor))


def _spread(name: str, parameter: nn.Parameter, mesh: DeviceMesh) -> nn.Parameter:
    dim = split_dim(name)
    piece = shard(parameter.detach(), dim, mesh.size(), mesh.get_local_rank(), name)
    spread = DTensor.from_local(
        # A view would keep the full tensor alive.
        piece.clone() if dim is not None else piece,
        mesh,
        [Replicate() if dim is None else Shard(dim)],
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return nn.Parameter(spread, requires_grad=parameter.requires_grad)


def shard_weights(network: DiffusionTransformer, mesh: Mesh) -> None:
    """Shard a network's parameters with FSDP2 over the ranks that hold the same weights; collective over them.

    Each block is gathered when it computes. Gradients come out as shards of the parameters' type: summed over the
    context ranks and averaged over the data-parallel ones in float32 or better. Nothing changes where one rank holds
    the weights.

    Args:
        network: with its final values, on the mesh's device, after `parallelize`.
        mesh: of all processes.
    """
    if mesh.replicas.size() == 1:
        return
    dtype = next(network.parameters()).dtype
    policy = MixedPrecisionPolicy(reduce_dtype=torch.promote_types(dtype, torch.float32), cast_forward_inputs=False)
    for module in (*network.blocks.values(), network):
        # The outermost module too, which FSDP2 would leave gathered: what is done between a measurement without a
        # backward pass and the next step must find shards.
        fully_shard(module, mesh=mesh.replicas, mp_policy=policy, reshard_after_forward=True)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(float(mesh.data.size()))
            # A division within the reduction is more than gloo can do.
            module.set_force_sum_reduction_for_comms(True)
