"""Float32 gradients of an optimizer step: accumulation, sum and mean over the ranks, the global norm."""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from worldtune.common.errors import WorldtuneError
from worldtune.parallel.mesh import Mesh
from worldtune.training.sharding import all_reduce_over, local, sharded_dims

BUCKET_ELEMENTS = 32 * 1024 * 1024
REPLICA_TOLERANCE = 0.05


class GradientAccumulator:
    """Sums local gradients in float32 over the micro-steps of an optimizer step.

    A bfloat16 `.grad` that is added to in place would lose what a second micro-step adds, so each micro-step's gradient
    is taken out of the parameter after its backward pass.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], mesh: Mesh) -> None:
        """Take the parameters (plain tensors or DTensors) and the mesh."""
        self._parameters = parameters
        self._mesh = mesh
        # FSDP2 reduces the gradients of what it shards in the backward pass.
        self._names = [name for name, parameter in parameters.items() if "replicas" not in sharded_dims(parameter)]
        self._device = next(iter(parameters.values())).device
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self) -> None:
        """Add the gradients of a backward pass and clear them."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            gradient = _local_gradient(parameter)
            if name in self.sums:
                self.sums[name] += gradient
            else:
                self.sums[name] = gradient.to(torch.float32, copy=True)
            parameter.grad = None

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        """Return the sum over the context ranks and mean over the data-parallel ones, and forget the sums.

        A parameter has a gradient where any of these ranks has one.
        """
        sums, self.sums = self.sums, {}
        if self._mesh.replicas.size() == 1:
            return sums
        group = self._mesh.replicas.get_group()
        present = torch.tensor([float(name in sums) for name in self._names], device=self._device)
        dist.all_reduce(present, op=dist.ReduceOp.MAX, group=group)
        chosen = [name for name, flag in zip(self._names, present.tolist(), strict=True) if flag]
        for name in chosen:
            if name not in sums:
                sums[name] = torch.zeros_like(local(self._parameters[name]), dtype=torch.float32)
        all_reduce_over((sums[name] for name in chosen), group, BUCKET_ELEMENTS, divisor=self._mesh.data.size())
        return {name: sums[name] for name in self._parameters if name in sums}


def _local_gradient(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    if isinstance(parameter, DTensor) and isinstance(gradient, DTensor) and gradient.placements != parameter.placements:
        # A replicated parameter may come out of the backward pass as partial sums, whose local part is no gradient.
        gradient = gradient.redistribute(placements=parameter.placements)
    return local(gradient)


def parameter_groups(module: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Return the part of a module that each of its parameters belongs to: a child, or a child of a list or dict.

    Args:
        module: such as a network with a patch embedding `x_embedder` and a dict `blocks` of `block0`, `block1`.
        names: of its parameters; those below `blocks.block0.` are of the group `blocks.block0`.
    """
    groups = {}
    for name in names:
        first, *rest = name.split(".")
        is_container = isinstance(getattr(module, first), nn.ModuleDict | nn.ModuleList)
        groups[name] = f"{first}.{rest[0]}" if is_container else first
    return groups


@torch.no_grad()
def gradient_norms(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], mesh: Mesh, groups: Mapping[str, str]
) -> Tensor:
    """Return the L2 norm over all parameters, then that of each group in sorted order; a parameter counts once.

    Collective over all ranks; waits for no device.

    Args:
        gradients: local gradients after `GradientAccumulator.finish`.
        parameters: tells which gradients are parts.
        mesh: of all ranks.
        groups: the group of each parameter.

    Returns:
        Float32 [1 + G] on the gradients' device, 0 for a group without gradients. Squares add up: the first is the sum
        of the others.
    """
    device = next(iter(parameters.values())).device
    names = sorted(set(groups.values()))
    total = torch.zeros(1 + len(names), dtype=torch.float32, device=device)
    by_dims: dict[frozenset[str], dict[str, Tensor]] = {}
    for name, gradient in gradients.items():
        by_dims.setdefault(sharded_dims(parameters[name]), {})[name] = gradient
    # All ranks go through the same kinds in the same order.
    for dims in sorted({sharded_dims(parameter) for parameter in parameters.values()}, key=sorted):
        chosen = by_dims.get(dims, {})
        squares = _squared_norms(chosen, groups, names) if chosen else torch.zeros_like(total)
        for dim, group_mesh in (("replicas", mesh.replicas), ("tensor", mesh.tensor)):
            if dim in dims:
                dist.all_reduce(squares, group=group_mesh.get_group())
        total += squares
    return total.sqrt()


def _squared_norms(gradients: Mapping[str, Tensor], groups: Mapping[str, str], names: Sequence[str]) -> Tensor:
    """Return the squared norm of all local gradients and of each group's, [1 + G]."""
    squares = torch.stack(torch._foreach_norm(list(gradients.values()))).square()
    by_group = dict.fromkeys(names, squares.new_zeros(()))
    # Cut where the group changes: to pick a group's by index, the host would have to send the indices.
    runs = [(group, len(list(run))) for group, run in itertools.groupby(groups[name] for name in gradients)]
    for (group, _), part in zip(runs, squares.split([length for _, length in runs]), strict=True):
        by_group[group] = by_group[group] + part.sum()
    return torch.stack([squares.sum(), *by_group.values()])


def global_norm(gradients: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], mesh: Mesh) -> Tensor:
    """Return the L2 norm over all parameters alone, float32, no axes; `gradient_norms` has the arguments."""
    return gradient_norms(gradients, parameters, mesh, dict.fromkeys(parameters, "all"))[0]


@torch.no_grad()
def clip(gradients: Mapping[str, Tensor], norm: float, max_norm: float) -> None:
    """Scale gradients in place so that their norm is at most `max_norm`."""
    factor = max_norm / (norm + 1e-6)
    if factor < 1.0:
        torch._foreach_mul_(list(gradients.values()), factor)


@torch.no_grad()
def check_replicas(gradients: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], mesh: Mesh) -> None:
    """Check that tensor ranks agree on the gradients of the parameters that each holds whole.

    Raises:
        WorldtuneError: they differ by more than rounding, so a sum over the tensor ranks is missing in the network;
            the message names the parameters.
    """
    if mesh.tensor.size() == 1:
        return
    group = mesh.tensor.get_group()
    wrong = []
    for name, gradient in gradients.items():
        if "tensor" in sharded_dims(parameters[name]):
            continue
        first = gradient.clone()
        dist.broadcast(first, src=dist.get_global_rank(group, 0), group=group)
        compared = torch.stack([(gradient - first).norm(), first.norm()])
        dist.all_reduce(compared, op=dist.ReduceOp.MAX, group=group)
        difference, norm = compared.tolist()
        if difference > REPLICA_TOLERANCE * norm:
            wrong.append(f"{name} (by {difference / norm if norm else float('inf'):.0%})")
    if wrong:
        raise WorldtuneError(
            f"the tensor ranks have different gradients of {len(wrong)} parameters that each holds whole, such as "
            f"{', '.join(wrong[:3])}. The network's parallel plan misses a sum over the tensor ranks."
        )
