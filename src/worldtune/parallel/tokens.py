"""Where parallel layers exchange tokens and heads, as functions that autograd and the compiler know.

Tokens lie on dim 0 ([L, B, D]). Context parallelism cuts them into equal, contiguous chunks, one a context rank;
sequence parallelism cuts a context rank's chunk once more over the tensor ranks, outside attention and MLP. After
backward a replicated parameter's gradient is complete over the tensor ranks: where a value is used on a part of the
tokens or of the heads only, its gradient is summed on the spot. Over the context ranks it is the part of this rank's
tokens, which the trainer sums together with the mean over the data-parallel ranks.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce, all_to_all_single_autograd, wait_tensor
from torch.distributed.tensor import DTensor

from worldtune.common.errors import WorldtuneError

# torch 2.13 renamed these and warns at each use of the old names; earlier releases know the old ones only.
_NEW_NAMES = hasattr(functional, "all_gather_single")
_all_gather = functional.all_gather_single if _NEW_NAMES else functional.all_gather_tensor
_all_gather_autograd = functional.all_gather_single_autograd if _NEW_NAMES else functional.all_gather_tensor_autograd
_reduce_scatter_autograd = (
    functional.reduce_scatter_single_autograd if _NEW_NAMES else functional.reduce_scatter_tensor_autograd
)


def local(parameter: Tensor) -> Tensor:
    """Return this rank's piece of a parameter; a plain tensor is returned as it is."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


@contextlib.contextmanager
def local_parameters(module: nn.Module) -> Iterator[None]:
    """Let a module compute on this rank's pieces of its parameters as plain tensors; gradients reach the parameters.

    For compiled code: torch 2.13 cannot save a device mesh for the backward pass, as DTensors among its inputs ask.
    """
    swapped: list[tuple[nn.Module, str, nn.Parameter]] = []
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if isinstance(parameter, DTensor):
                swapped.append((part, name, parameter))
                part._parameters[name] = parameter.to_local()
    try:
        yield
    finally:
        for part, name, parameter in swapped:
            part._parameters[name] = parameter


def _chunk(x: Tensor, rank: int, size: int) -> Tensor:
    length = x.shape[0] // size
    return x.narrow(0, rank * length, length)


class _ScatterWhole(torch.autograd.Function):
    """Take a chunk of what all ranks hold alike; backward gathers the gradient of the whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _chunk(x, rank, dist.get_world_size(group)).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return wait_tensor(_all_gather(grads[0].contiguous(), 0, ctx.group)), None, None


class _GatherAlike(torch.autograd.Function):
    """Gather chunks for a computation that all ranks do alike; backward takes this rank's chunk."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, group: dist.ProcessGroup) -> Tensor:
        ctx.rank, ctx.group = rank, group
        return wait_tensor(_all_gather(x.contiguous(), 0, group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _chunk(grads[0], ctx.rank, dist.get_world_size(ctx.group)).contiguous(), None, None


class _SumGradient(torch.autograd.Function):
    """Pass on a value; backward sums its gradient over the group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return wait_tensor(all_reduce(grads[0].contiguous(), "sum", ctx.group)), None


class _SumValue(torch.autograd.Function):
    """Sum a value over the group; backward passes on the gradient, which all ranks have alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return wait_tensor(all_reduce(x.contiguous(), "sum", group))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class TokenParallel:
    """The layout of a network's tokens, heads and split layers over its tensor- and context-parallel groups.

    Without groups all methods return their argument, so that layers need no second code path.
    """

    def __init__(
        self, tensor: dist.ProcessGroup | None, context: dist.ProcessGroup | None = None, *, sequence: bool
    ) -> None:
        """Describe the layout.

        Args:
            tensor: the tensor-parallel group; None for one process.
            context: the context-parallel group; None for one process.
            sequence: whether the tensor ranks scatter tokens outside attention and MLP.
        """
        self.size, self.rank, self.group = _place(tensor)
        self.context_size, self.context_rank, self.context_group = _place(context)
        self.sequence = sequence and self.size > 1

    def __deepcopy__(self, memo: dict[int, Any]) -> "TokenParallel":
        """Copies of a network share the layout: a process group cannot be copied."""
        return self

    def check_tokens(self, num_tokens: int) -> None:
        """Raise a WorldtuneError where the tokens of a sample cannot be cut into equal chunks."""
        chunks = self.context_size * (self.size if self.sequence else 1)
        if num_tokens % chunks:
            raise WorldtuneError(
                f"{num_tokens} tokens cannot be cut into {chunks} equal chunks for sequence and context parallelism: "
                "choose another size or number of frames, a parallel.tensor x parallel.context that divides them, or "
                "parallel.sequence = false."
            )

    def context_chunk(self, x: Tensor) -> Tensor:
        """Take this context rank's chunk of tokens; the gradient is this rank's part only."""
        return _chunk(x, self.context_rank, self.context_size) if self.context_size > 1 else x

    def parts_in_context_chunk(self, num_tokens: int, num_parts: int) -> tuple[tuple[int, int], ...]:
        """Return from where to where each of `num_parts` equal parts of all tokens lies in this context rank's chunk.

        A part that has no tokens in it starts where it ends.
        """
        length, part = num_tokens // self.context_size, num_tokens // num_parts
        first = self.context_rank * length
        bounds = [min(max(index * part - first, 0), length) for index in range(num_parts + 1)]
        return tuple(itertools.pairwise(bounds))

    def scatter(self, x: Tensor) -> Tensor:
        """Take this rank's chunk of tokens that all ranks hold; backward gathers the gradient over the tensor ranks."""
        x = self.context_chunk(x)
        if not self.sequence:
            return x
        assert self.group is not None
        return _ScatterWhole.apply(x, self.rank, self.group)

    def own_chunk(self, x: Tensor) -> Tensor:
        """Take this rank's chunk; the gradient is this rank's part only (sum it with `sum_gradient_over_tokens`)."""
        x = self.context_chunk(x)
        return _chunk(x, self.rank, self.size) if self.sequence else x

    def gather(self, x: Tensor) -> Tensor:
        """Gather the tokens of all ranks for a computation that all ranks do alike; backward takes this rank's."""
        if self.sequence:
            assert self.group is not None
            x = _GatherAlike.apply(x, self.rank, self.group)
        if self.context_group is not None:
            x = _GatherAlike.apply(x, self.context_rank, self.context_group)
        return x

    def enter(self, x: Tensor) -> Tensor:
        """Bring tokens to layers that are split by column (heads, hidden units)."""
        if self.group is None:
            return x
        if self.sequence:
            return wait_tensor(_all_gather_autograd(x.contiguous(), 0, self.group))
        return _SumGradient.apply(x, self.group)

    def leave(self, x: Tensor) -> Tensor:
        """Add up the partial outputs of a layer that is split by row, and return to the layout outside."""
        if self.group is None:
            return x
        if self.sequence:
            return wait_tensor(_reduce_scatter_autograd(x.contiguous(), "sum", 0, self.group))
        return _SumValue.apply(x, self.group)

    def tokens_to_heads(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Exchange a context rank's chunk of tokens with all heads for all tokens with a part of the heads.

        Args:
            parts: queries, keys, values: each [l, B, N, d], l tokens of this rank.

        Returns:
            Each [l * context size, B, N / context size, d], the tokens in their order.
        """
        if self.context_group is None:
            return parts
        # All exchanges start before the first one is waited for.
        started = []
        for part in parts:
            by_target = part.unflatten(2, (self.context_size, -1)).movedim(2, 0).flatten(0, 1).contiguous()
            started.append(all_to_all_single_autograd(by_target, None, None, self.context_group))
        return tuple(wait_tensor(part) for part in started)

    def heads_to_tokens(self, x: Tensor) -> Tensor:
        """Undo `tokens_to_heads`: [l * context size, B, N / context size, d] to [l, B, N, d]."""
        if self.context_group is None:
            return x
        by_source = wait_tensor(all_to_all_single_autograd(x.contiguous(), None, None, self.context_group))
        return by_source.unflatten(0, (self.context_size, -1)).movedim(0, 2).flatten(2, 3)

    def sum_gradient_over_heads(self, x: Tensor) -> Tensor:
        """Pass on a value that each tensor rank uses on its own heads; backward sums its gradient over them."""
        return x if self.group is None or not x.requires_grad else _SumGradient.apply(x, self.group)

    def sum_gradient_over_tokens(self, x: Tensor) -> Tensor:
        """Pass on a value that each tensor rank uses on its own tokens; backward sums its gradient over them."""
        return _SumGradient.apply(x, self.group) if self.sequence and x.requires_grad else x


def _place(group: dist.ProcessGroup | None) -> tuple[int, int, dist.ProcessGroup | None]:
    """Return size, own rank and the group; a group of one process counts as none."""
    size = dist.get_world_size(group) if group is not None else 1
    return (size, dist.get_rank(group), group) if size > 1 else (1, 0, None)


SINGLE = TokenParallel(None, sequence=False)
"""The layout of a network in one process."""
