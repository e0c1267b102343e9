"""The kernel behind PyTorch's scaled dot product attention on a GPU: by name, or the fastest of those installed."""

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.attention import (
    _fa4,
    activate_flash_attention_impl,
    register_flash_attention_impl,
    restore_flash_attention_impl,
)

from worldtune.common.errors import WorldtuneError

Kernel = Literal["sdpa", "cudnn", "flash_attention_2", "flash_attention_3", "flash_attention_4"]

CANDIDATES: tuple[Kernel, ...] = ("cudnn", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""What is measured, where it is installed."""
EXTERNAL: dict[Kernel, tuple[str, str]] = {
    "flash_attention_3": ("FA3", "flash_attn_interface"),
    "flash_attention_4": ("worldtune_flash_attention_4", "flash_attn.cute.interface"),
}
"""Kernels of other packages: the name that PyTorch gives them, and the module that has them."""
register_flash_attention_impl(
    EXTERNAL["flash_attention_4"][0],
    register_fn=partial(_fa4.register_flash_attention_fa4, "worldtune.kernels.flash_attention_4"),
)
FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, ImportError)
"""What packages raise that do not fit this device, shape or version of PyTorch."""
WARM_UP_CALLS = 2
TIMED_CALLS = 3
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long one kernel took."""

    kernel: Kernel
    forward_ms: float
    backward_ms: float


def is_installed(kernel: Kernel) -> bool:
    """Return whether the package of a kernel is there; those of PyTorch always are."""
    if kernel not in EXTERNAL:
        return True
    try:
        return importlib.util.find_spec(EXTERNAL[kernel][1]) is not None
    except ImportError as error:
        # Looking for a module imports the packages that it is in.
        if error.name != EXTERNAL[kernel][1].partition(".")[0]:
            logger.warning("attention kernel %s is installed, but cannot be imported: %s", kernel, error)
        return False


def use_kernel(kernel: Kernel) -> None:
    """Let `torch.nn.functional.scaled_dot_product_attention` on CUDA use this kernel in this process.

    Raises:
        WorldtuneError: the kernel's package is not installed.
    """
    if not is_installed(kernel):
        raise WorldtuneError(
            f"parallel.attention = {kernel!r} needs the module {EXTERNAL[kernel][1]}, which is not installed. Install "
            'it (README, "Faster attention"), or choose parallel.attention = "measured".'
        )
    if kernel in EXTERNAL:
        activate_flash_attention_impl(EXTERNAL[kernel][0])
    else:
        restore_flash_attention_impl(_raise_warn=False)
    every = kernel == "sdpa"
    torch.backends.cuda.enable_cudnn_sdp(every or kernel == "cudnn")
    torch.backends.cuda.enable_flash_sdp(every or kernel.startswith("flash"))
    torch.backends.cuda.enable_mem_efficient_sdp(every)
    torch.backends.cuda.enable_math_sdp(every)


def time_kernel(kernel: Kernel, *, num_tokens: int, num_heads: int, head_channels: int, device: torch.device) -> Timing:
    """Time a kernel on bfloat16 self-attention of `num_tokens` tokens; it stays in use.

    Raises:
        WorldtuneError: its package is not installed.
        RuntimeError: it cannot do this on this device.
    """
    use_kernel(kernel)
    shape = (num_tokens, 1, num_heads, head_channels)
    generator = torch.Generator(device).manual_seed(0)
    query, key, value, gradient = (
        torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16).permute(1, 2, 0, 3)
        for _ in range(4)
    )
    leaves = [part.requires_grad_() for part in (query, key, value)]
    out = F.scaled_dot_product_attention(query, key, value)

    def forward() -> None:
        with torch.no_grad():
            F.scaled_dot_product_attention(query, key, value)

    def backward() -> None:
        torch.autograd.grad(out, leaves, gradient, retain_graph=True)

    return Timing(kernel=kernel, forward_ms=_milliseconds(forward), backward_ms=_milliseconds(backward))


def fastest_kernel(*, num_tokens: int, num_heads: int, head_channels: int, device: torch.device) -> Kernel:
    """Time the kernels that are installed, forward and backward, and return the fastest; one line each in the log."""
    timings: list[Timing] = []
    for kernel in CANDIDATES:
        if not is_installed(kernel):
            logger.info("attention kernel %s: not installed", kernel)
            continue
        try:
            timing = time_kernel(
                kernel, num_tokens=num_tokens, num_heads=num_heads, head_channels=head_channels, device=device
            )
        except FAILURES as error:
            logger.warning("attention kernel %s cannot be used here: %s", kernel, error)
            continue
        logger.info(
            "attention kernel %s: forward %.1f ms, backward %.1f ms", kernel, timing.forward_ms, timing.backward_ms
        )
        timings.append(timing)
    if not timings:
        return "sdpa"
    return min(timings, key=lambda timing: timing.forward_ms + timing.backward_ms).kernel


def _milliseconds(call: Callable[[], None]) -> float:
    for _ in range(WARM_UP_CALLS):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(TIMED_CALLS):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / TIMED_CALLS
