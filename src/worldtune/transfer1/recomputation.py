"""What of a block's activations backward computes again (selective activation checkpointing)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["everything", "all_but_attention", "mlp", "nothing"]
"""From little memory to little time. "everything" keeps a block's input; "all_but_attention" keeps the output of
self-attention beside it; "mlp" keeps the inputs of the three sub-blocks and the outputs of attention and
projections."""

Kept = Literal["attention", "linear"]
"""Operations whose outputs are kept: attention of as many queries as keys, matrix products."""

_aten = torch.ops.aten
_ATTENTION = frozenset(
    {
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
_LINEAR = frozenset({_aten.mm.default, _aten.addmm.default})


def one_level_less(what: Recompute) -> Recompute:
    """Return what takes more memory and less time; "nothing" stays."""
    levels: tuple[Recompute, ...] = get_args(Recompute)
    return levels[min(levels.index(what) + 1, len(levels) - 1)]


def recomputed(function: Callable[[Tensor, Any], Tensor], x: Tensor, context: Any, *, keep: tuple[Kept, ...]) -> Tensor:
    """Return `function(x, context)`, of which backward keeps `x`, `context` and what `keep` names, and no more.

    The function draws no random numbers.
    """
    contexts = partial(create_selective_checkpoint_contexts, partial(_policy, keep))
    return checkpoint(function, x, context, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _policy(keep: tuple[Kept, ...], _context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    # The text is short: attention to it costs less than keeping it.
    attention = operation in _ATTENTION and (args[0].shape[2] == args[1].shape[2] or "linear" in keep)
    if ("attention" in keep and attention) or ("linear" in keep and operation in _LINEAR):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
