"""How much of a GPU's arithmetic a step uses: model FLOPs utilization (MFU)."""

import torch

from worldtune.training.hardware import peak_tflops


def peak_flop_per_s(device: torch.device, precision: str) -> float | None:
    """Return the peak of a device in operations per second, or None where no datasheet's figure is known.

    Args:
        device: of a rank.
        precision: training.precision; the figures are for bfloat16.
    """
    if device.type != "cuda" or precision != "bfloat16":
        return None
    peak = peak_tflops(torch.cuda.get_device_name(device))
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
