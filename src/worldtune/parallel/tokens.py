"""Where tensor-parallel and sequence-parallel layers exchange tokens, as functions that autograd knows.

Tokens lie on dim 0 ([L, B, D]). Under sequence parallelism each rank holds one of `size` equal, contiguous chunks of
them outside attention and MLP. Every replicated parameter's gradient is complete on every rank after backward: where a
value is used on a part of the tokens or of the heads only, its gradient is summed on the spot.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from worldtune.common.errors import WorldtuneError

# torch 2.13 renamed both and warns at each use of the old names; earlier releases know the old ones only.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def local(parameter: Tensor) -> Tensor:
    """Return this rank's piece of a parameter; a plain tensor is returned as it is."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def _all_gather(x: Tensor, group: dist.ProcessGroup | None, size: int) -> Tensor:
    x = x.contiguous()
    out = x.new_empty((x.shape[0] * size, *x.shape[1:]))
    _all_gather_single(out, x, group=group)
    return out


def _reduce_scatter(x: Tensor, group: dist.ProcessGroup | None, size: int) -> Tensor:
    x = x.contiguous()
    out = x.new_empty((x.shape[0] // size, *x.shape[1:]))
    _reduce_scatter_single(out, x, group=group)
    return out


def _all_reduce(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    # Collectives work in place, and x may be needed by others.
    x = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(x, group=group)
    return x


def _own_chunk(x: Tensor, rank: int, size: int) -> Tensor:
    length = x.shape[0] // size
    return x.narrow(0, rank * length, length)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: "TokenParallel") -> Tensor:
        ctx.parallel = parallel
        return _own_chunk(x, parallel.rank, parallel.size).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grads[0], ctx.parallel.group, ctx.parallel.size), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: "TokenParallel") -> Tensor:
        ctx.parallel = parallel
        return _all_gather(x, parallel.group, parallel.size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _own_chunk(grads[0], ctx.parallel.rank, ctx.parallel.size).contiguous(), None


class _GatherSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: "TokenParallel") -> Tensor:
        ctx.parallel = parallel
        return _all_gather(x, parallel.group, parallel.size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grads[0], ctx.parallel.group, ctx.parallel.size), None


class _SumScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: "TokenParallel") -> Tensor:
        ctx.parallel = parallel
        return _reduce_scatter(x, parallel.group, parallel.size)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grads[0], ctx.parallel.group, ctx.parallel.size), None


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: "TokenParallel") -> Tensor:
        ctx.parallel = parallel
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grads[0], ctx.parallel.group), None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, parallel: "TokenParallel") -> Tensor:
        return _all_reduce(x, parallel.group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


# Traced by torch.compile, these functions gave wrong gradients (torch 2.11, two GPUs): the compiler goes around them.
@torch.compiler.disable
def _apply(function: type[torch.autograd.Function], x: Tensor, parallel: "TokenParallel") -> Tensor:
    return function.apply(x, parallel)


class TokenParallel:
    """The layout of a network's tokens and split layers over one tensor-parallel group.

    Without a group all methods return their argument, so that layers need no second code path.
    """

    def __init__(self, group: dist.ProcessGroup | None, *, sequence: bool) -> None:
        """Describe the layout.

        Args:
            group: the tensor-parallel group; None for one process.
            sequence: whether tokens are scattered outside attention and MLP.
        """
        self.size: int = dist.get_world_size(group) if group is not None else 1
        self.rank: int = dist.get_rank(group) if group is not None else 0
        self.group = group
        self.sequence = sequence and self.size > 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenParallel":
        """Copies of a network share the layout: a process group cannot be copied."""
        return self

    def check_tokens(self, num_tokens: int) -> None:
        """Raise a WorldtuneError where the tokens of a sample cannot be cut into equal chunks."""
        if self.sequence and num_tokens % self.size:
            raise WorldtuneError(
                f"{num_tokens} tokens cannot be cut into {self.size} equal chunks for sequence parallelism: choose "
                "another size or number of frames, a parallel.tensor that divides them, or parallel.sequence = false."
            )

    def scatter(self, x: Tensor) -> Tensor:
        """Take this rank's chunk of tokens that all ranks hold; backward gathers the gradient."""
        return _apply(_Scatter, x, self) if self.sequence else x

    def own_chunk(self, x: Tensor) -> Tensor:
        """Take this rank's chunk; the gradient is this rank's part only (sum it with `sum_gradient_over_tokens`)."""
        return _own_chunk(x, self.rank, self.size) if self.sequence else x

    def gather(self, x: Tensor) -> Tensor:
        """Gather tokens for a computation that all ranks do alike; backward takes this rank's chunk."""
        return _apply(_Gather, x, self) if self.sequence else x

    def enter(self, x: Tensor) -> Tensor:
        """Bring tokens to layers that are split by column (heads, hidden units)."""
        if self.size == 1:
            return x
        return _apply(_GatherSum, x, self) if self.sequence else _apply(_Copy, x, self)

    def leave(self, x: Tensor) -> Tensor:
        """Add up the partial outputs of a layer that is split by row, and return to the layout outside."""
        if self.size == 1:
            return x
        return _apply(_SumScatter, x, self) if self.sequence else _apply(_Sum, x, self)

    def sum_gradient_over_heads(self, x: Tensor) -> Tensor:
        """Pass on a value that each rank uses on its own heads; backward sums its gradient over the group."""
        return _apply(_Copy, x, self) if self.size > 1 and x.requires_grad else x

    def sum_gradient_over_tokens(self, x: Tensor) -> Tensor:
        """Pass on a value that each rank uses on its own tokens; backward sums its gradient over the group."""
        return _apply(_Copy, x, self) if self.sequence and x.requires_grad else x


SINGLE = TokenParallel(None, sequence=False)
"""The layout of a network in one process."""
