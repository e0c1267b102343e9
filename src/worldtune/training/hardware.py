"""What a process computes on, and how much memory that takes."""

import gc
import os
import platform
from typing import Any

import torch
import torch.distributed as dist

from worldtune.training.metrics import peak_memory_gb

GIB = 2**30
PEAK_TFLOPS = {
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312.0),
    **dict.fromkeys(("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312.0),
    "NVIDIA H100 PCIe": 756.0,
    **dict.fromkeys(("NVIDIA H100 NVL", "NVIDIA H200 NVL"), 835.0),
    **dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB"), 989.0),
    "NVIDIA B200": 2250.0,
    "NVIDIA GB200": 2500.0,
}
"""Dense bfloat16 operations in 10^12 a second by the name that CUDA gives a GPU, from NVIDIA's datasheets of A100,
H100, H200, GH200, HGX B200 and GB200: half of what they give "with sparsity". A part of a GPU (MIG) has another name,
and so no figure."""


def describe_hardware(device: torch.device, world_size: int) -> dict[str, Any]:
    """Return what a job runs on, as JSON values, from this process's environment."""
    local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "num_processes": world_size,
        "num_nodes": world_size // local_world_size,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def peak_tflops(device_name: str) -> float | None:
    """Return the dense bfloat16 rate of a GPU by its name; None where it is not known."""
    return PEAK_TFLOPS.get(device_name)


class DeviceMemory:
    """The most memory of a device that a measurement takes. On a CPU it is that of the process, from its start on."""

    def __init__(self, device: torch.device) -> None:
        """Begin; what was cached is given back, so that earlier gaps do not count."""
        self._device = device
        self._on_cuda = device.type == "cuda"
        self._at_update = 0
        self._reset()

    def mark_update(self, num_bytes: int) -> None:
        """Note that the update of the weights would take `num_bytes` on top of what there is now."""
        if self._on_cuda:
            self._at_update = max(self._at_update, torch.cuda.memory_allocated(self._device) + num_bytes)

    def release(self) -> None:
        """End: remember the peak, give the memory back, and let later peaks be counted from here on."""
        if self._on_cuda:
            torch.cuda.synchronize(self._device)
            self._peak = max(torch.cuda.max_memory_allocated(self._device), self._at_update)
            self._reserved = torch.cuda.max_memory_reserved(self._device)
            self._reset()
        else:
            self._peak = self._reserved = round(peak_memory_gb(self._device) * GIB)

    def max_over_ranks(self) -> dict[str, float | None]:
        """Return, in GiB, the largest values of all ranks after `release`; collective.

        `peak` is what was allocated, `reserved` what that took with gaps, `outside` what is taken of the device beside
        PyTorch's allocator (None on a CPU), `device` its whole memory (None on a CPU).
        """
        outside, total = 0, 0
        if self._on_cuda:
            free, total = torch.cuda.mem_get_info(self._device)
            outside = total - free - torch.cuda.memory_reserved(self._device)
        values = torch.tensor([self._peak, self._reserved, outside, total], dtype=torch.float64, device=self._device)
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        peak, reserved, most_outside, device_total = (values / GIB).tolist()
        return {
            "peak": peak,
            "reserved": reserved,
            "outside": most_outside if self._on_cuda else None,
            "device": device_total if self._on_cuda else None,
        }

    def _reset(self) -> None:
        if self._on_cuda:
            gc.collect()
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
