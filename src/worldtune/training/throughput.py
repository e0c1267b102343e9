"""How much of a GPU's arithmetic a step uses: model FLOPs utilization (MFU)."""

import torch

PEAK_TFLOPS = {
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB"), 312.0),
    **dict.fromkeys(("NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312.0),
    "NVIDIA H100 PCIe": 756.0,
    **dict.fromkeys(("NVIDIA H100 NVL", "NVIDIA H200 NVL"), 835.0),
    **dict.fromkeys(("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB"), 989.0),
    "NVIDIA B200": 2250.0,
}
"""Dense bfloat16 TFLOP/s by the name that CUDA gives a GPU, from NVIDIA's datasheets of A100, H100, H200, GH200 and HGX
B200: half of what they give "with sparsity". A part of a GPU (MIG) has another name, and so no figure."""


def peak_flop_per_s(device: torch.device, precision: str) -> float | None:
    """Return the peak of a device in operations per second, or None where no datasheet's figure is known.

    Args:
        device: of a rank.
        precision: training.precision; the figures are for bfloat16.
    """
    if device.type != "cuda" or precision != "bfloat16":
        return None
    peak = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return None if peak is None else peak * 1e12


def utilization(flop: float, seconds: float, *, num_devices: int, peak: float | None) -> float | None:
    """Return the MFU, 0 to 1: operations that the model needs, over those that the devices could have done.

    Args:
        flop: operations of all devices together; what is computed a second time counts once. 0 is not counted.
        seconds: in which they were done.
        num_devices: devices.
        peak: of one, in operations per second; None is not known.
    """
    return None if peak is None or flop == 0 else flop / (seconds * num_devices * peak)
