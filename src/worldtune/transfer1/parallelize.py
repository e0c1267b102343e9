"""Spreading a Transfer1 network over a tensor-parallel group."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.axes import shard, split_dim
from worldtune.parallel.tokens import TokenParallel
from worldtune.transfer1.network import DiffusionTransformer


def parallelize(network: DiffusionTransformer, mesh: DeviceMesh, *, sequence: bool) -> None:
    """Make the parameters DTensors on `mesh`: heads and hidden units split, all others whole on each rank.

    Gradients are complete after backward, DTensors placed as their parameters. A mesh of one process changes nothing.
    Works on the meta device too. Parameters that have values must have equal ones on all ranks.

    Args:
        network: on the meta device or on the mesh's.
        mesh: the tensor-parallel dim of the mesh.
        sequence: whether tokens are split outside attention and MLP; their number must then be divisible by the degree.

    Raises:
        WorldtuneError: the degree does not divide the heads or the MLP's hidden units.
    """
    degree = mesh.size()
    if degree == 1:
        return
    if network.config.num_heads % degree:
        raise WorldtuneError(
            f"parallel.tensor = {degree} does not divide the network's {network.config.num_heads} attention heads."
        )
    parallel = TokenParallel(mesh.get_group(), sequence=sequence)
    for prefix, module in network.named_modules():
        if hasattr(module, "parallel"):
            module.parallel = parallel
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, _spread(f"{prefix}.{name}", parameter, mesh))


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
