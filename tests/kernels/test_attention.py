import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from worldtune.common.errors import WorldtuneError
from worldtune.kernels import attention


def test_kernels_of_other_packages_are_asked_for_by_name() -> None:
    assert attention.is_installed("cudnn")
    assert attention.is_installed("flash_attention_2")
    assert not attention.is_installed("flash_attention_3")
    with pytest.raises(WorldtuneError, match=r"parallel\.attention = 'flash_attention_3' needs the module flash_attn_"):
        attention.use_kernel("flash_attention_3")


def test_a_package_that_cannot_be_imported_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> None:
        raise ModuleNotFoundError("No module named 'cutlass'", name="cutlass")

    monkeypatch.setattr(attention.importlib.util, "find_spec", broken)
    assert not attention.is_installed("flash_attention_4")
    assert "flash_attention_4 is installed, but cannot be imported: No module named 'cutlass'" in caplog.text


def test_one_kernel_is_switched_on_and_all_are_back() -> None:
    backends = torch.backends.cuda
    attention.use_kernel("cudnn")
    assert backends.cudnn_sdp_enabled()
    assert not backends.flash_sdp_enabled()
    assert not backends.math_sdp_enabled()
    attention.use_kernel("flash_attention_2")
    assert backends.flash_sdp_enabled()
    assert not backends.cudnn_sdp_enabled()
    attention.use_kernel("sdpa")
    assert backends.cudnn_sdp_enabled()
    assert backends.flash_sdp_enabled()
    assert backends.math_sdp_enabled()


def test_the_fastest_kernel_is_chosen_and_failing_ones_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def timing(kernel: attention.Kernel, **_: Any) -> attention.Timing:
        if kernel == "cudnn":
            raise ValueError("no such shape")
        return attention.Timing(kernel=kernel, forward_ms=2.0, backward_ms=3.0 if "4" in kernel else 9.0)

    monkeypatch.setattr(attention, "is_installed", lambda kernel: kernel != "flash_attention_3")
    monkeypatch.setattr(attention, "time_kernel", timing)
    shape: dict[str, Any] = {"num_tokens": 8, "num_heads": 1, "head_channels": 8, "device": torch.device("cpu")}
    assert attention.fastest_kernel(**shape) == "flash_attention_4"
    assert "cudnn cannot be used here: no such shape" in caplog.text
    monkeypatch.setattr(attention, "is_installed", lambda kernel: kernel == "cudnn")
    assert attention.fastest_kernel(**shape) == "sdpa"


def test_flash_attention_4_gets_strides_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def forward(*inputs: torch.Tensor, out: torch.Tensor, **_: Any) -> tuple[Any, ...]:
        seen["strides"] = [tensor.stride() for tensor in (*inputs, out)]
        out.fill_(7.0)
        return out, torch.zeros(1), None, None, None

    package, cute, interface = (ModuleType(name) for name in ("flash_attn", "flash_attn.cute", "interface"))
    interface._flash_attn_fwd = forward  # type: ignore[attr-defined]
    interface._flash_attn_bwd = lambda *inputs, **_: (*inputs[:3], None)  # type: ignore[attr-defined]
    cute.interface = interface  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.delitem(sys.modules, "worldtune.kernels.flash_attention_4", raising=False)
    from worldtune.kernels import flash_attention_4

    storage = torch.zeros(6, 4, 8)
    zero_stride = storage.as_strided((1, 6, 4, 8), (0, 32, 8, 1))
    out, _ = flash_attention_4._flash_attn_fwd(zero_stride, zero_stride, zero_stride, out=zero_stride)
    assert all(0 not in strides for strides in seen["strides"])
    assert out.shape == (1, 6, 4, 8)
    # The result lies where the caller wanted it.
    assert storage.eq(7.0).all()
    assert len(flash_attention_4._flash_attn_bwd(zero_stride, zero_stride, zero_stride)) == 3
    monkeypatch.delitem(sys.modules, "worldtune.kernels.flash_attention_4")
