from pathlib import Path

import pytest
import torch

from worldtune.recipe.estimate import estimate
from worldtune.recipe.load import load_recipe
from worldtune.training.throughput import peak_flop_per_s, utilization

REPOSITORY = Path(__file__).parents[2]
GPU = torch.device("cuda", 0)


def test_a_measured_step_has_the_utilization_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "NVIDIA H200")
    peak = peak_flop_per_s(GPU, "bfloat16")
    flop = estimate(load_recipe("edge_posttrain", [], REPOSITORY)).step_flop
    assert utilization(flop, 12.18, num_devices=1, peak=peak) == pytest.approx(0.538, abs=5e-4)
    assert utilization(flop, 6.28, num_devices=2, peak=peak) == pytest.approx(0.522, abs=5e-4)


def test_what_is_not_known_is_not_invented(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flop_per_s(torch.device("cpu"), "bfloat16") is None
    for name, precision in (("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16"), ("NVIDIA H200", "float32")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device, name=name: name)
        assert peak_flop_per_s(GPU, precision) is None
    assert utilization(1e15, 1.0, num_devices=1, peak=None) is None
    assert utilization(0.0, 1.0, num_devices=1, peak=1e15) is None
