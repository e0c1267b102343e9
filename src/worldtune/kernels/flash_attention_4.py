"""The kernels of the package flash-attn-4 under the names and with the results that PyTorch's registration asks for."""

from typing import Any

import torch
from flash_attn.cute import interface
from torch import Tensor


def _flash_attn_fwd(*inputs: Any, **options: Any) -> tuple[Tensor, Tensor]:
    inputs = tuple(_without_zero_strides(value) for value in inputs)
    options = {name: _without_zero_strides(value) for name, value in options.items()}
    # PyTorch 2.11 to 2.13 expect output and log-sum-exp; recent versions of the package return more behind them.
    out, log_sum_exp, *_ = interface._flash_attn_fwd(*inputs, **options)
    return out, log_sum_exp


def _flash_attn_bwd(*inputs: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs = tuple(_without_zero_strides(value) for value in inputs)
    query, key, value, *_ = interface._flash_attn_bwd(*inputs, **options)
    return query, key, value


def _without_zero_strides(value: Any) -> Any:
    """Return a view of a tensor with other strides where an axis of length 1 has stride 0.

    Compiled code makes such strides, which the package takes for a broadcast axis.
    """
    if not isinstance(value, torch.Tensor) or 0 not in value.stride():
        return value
    strides = [
        stride or value.numel() if size == 1 else stride
        for size, stride in zip(value.shape, value.stride(), strict=True)
    ]
    return value.as_strided(value.shape, strides)
