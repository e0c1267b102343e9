from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from worldtune.transfer1.embeddings import LearnedPositions, Patchify, Timesteps, unpatchify
from worldtune.transfer1.layers import RMSNorm, modulated
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import stretched_mask
from worldtune.transfer1.parity import error_of
from worldtune.transfer1.rotary import RopeAngles, RotaryPositions, rotation

BOUND = 5e-7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[1] / "golden" / "transfer1" / "primitives.safetensors")


def rotary_7b(ratio_t: float, angles: RopeAngles) -> RotaryPositions:
    return RotaryPositions(
        128, len_t=128, len_h=120, len_w=120, ratio_t=ratio_t, ratio_h=1.0, ratio_w=1.0, angles=angles
    )


@pytest.mark.parametrize(("network", "ratio"), [("base_t2", 2.0), ("ctrl_t1", 1.0)])
@pytest.mark.parametrize("fps", [16, 24, 30])
def test_rotary_angles_of_7b(golden: dict[str, Tensor], network: str, ratio: float, fps: int) -> None:
    t, h, w = golden["rope7b/thw"].unbind(dim=1)
    index = (t * 44 + h) * 80 + w
    name = f"rope7b/{network}/fps{fps}/angles"
    exact = rotary_7b(ratio, "exact")((16, 44, 80), torch.tensor([float(fps)]), 1, CPU)[index, 0, 0]
    assert error_of(exact, golden[name]) < BOUND
    if fps != 16:
        rounded = rotary_7b(ratio, "bfloat16").to(torch.bfloat16)((16, 44, 80), torch.tensor([float(fps)]), 1, CPU)
        assert torch.equal(rounded[index, 0, 0], golden[f"{name}_bf16_module"])


def test_rotary_angles_with_ratios_and_rotation(golden: dict[str, Tensor]) -> None:
    rotary = RotaryPositions(40, len_t=9, len_h=9, len_w=9, ratio_t=3.0, ratio_h=1.5, ratio_w=1.25, angles="exact")
    angles = rotary((3, 4, 5), torch.tensor([10.0]), 1, CPU)
    assert error_of(angles[:, 0, 0], golden["rope_ntk/angles_T3_H4_W5_fps10"]) < BOUND
    rotated = rotation(angles).apply(golden["rope_ntk/q_sbhd"])
    assert error_of(rotated, golden["rope_ntk/q_rotated_sbhd"]) < BOUND


def test_each_sample_has_the_angles_of_its_own_frame_rate() -> None:
    rotary = rotary_7b(2.0, "bfloat16")
    both = rotary((3, 2, 2), torch.tensor([10.0, 30.0]), 1, CPU)
    for index, fps in enumerate((10.0, 30.0)):
        assert torch.equal(both[:, index : index + 1], rotary((3, 2, 2), torch.tensor([fps]), 1, CPU))


def test_time_restarts_in_each_view() -> None:
    rotary, fps = rotary_7b(1.0, "exact"), torch.tensor([30.0])
    one = rotary((2, 2, 3), fps, 1, CPU)
    assert torch.equal(rotary((6, 2, 3), fps, 3, CPU), one.repeat(3, 1, 1, 1))


def test_timesteps(golden: dict[str, Tensor]) -> None:
    timesteps = Timesteps(4096)
    assert error_of(timesteps(golden["timestep/values"]), golden["timestep/emb4096"]) < BOUND
    rounded = timesteps(golden["timestep/values"].to(torch.bfloat16))
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, golden["timestep/emb4096_bf16_in"])


def test_patches(golden: dict[str, Tensor]) -> None:
    video, patches = golden["patch/in_B_C_T_H_W"], golden["patch/flattened_B_T_h_w_crmn"]
    assert torch.equal(Patchify(2, 1)(video), patches.permute(1, 2, 3, 0, 4).flatten(0, 2))
    outputs = golden["unpatch/in_B_T_h_w_64"]
    grid = (outputs.shape[1], outputs.shape[2], outputs.shape[3])
    tokens = outputs.permute(1, 2, 3, 0, 4).flatten(0, 2)
    assert torch.equal(unpatchify(tokens, grid, patch_spatial=2, patch_temporal=1), golden["unpatch/out_B_16_T_H_W"])


def test_temporal_patches_are_whole() -> None:
    video = torch.arange(2 * 3 * 4 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 4, 6)
    patches = Patchify(2, 2)(video)
    assert patches.shape == (2 * 2 * 3, 2, 3 * 8)
    # The final layer's order has the channel last and time after row and column.
    reordered = patches.unflatten(2, (3, 2, 2, 2)).permute(0, 1, 4, 5, 3, 2).flatten(2)
    assert torch.equal(unpatchify(reordered, (2, 2, 3), patch_spatial=2, patch_temporal=2), video)


def test_learned_positions(golden: dict[str, Tensor]) -> None:
    tables = {axis: golden[f"abspos/pos_emb_{axis}"] for axis in "thw"}
    positions = LearnedPositions(24, len_t=len(tables["t"]), len_h=len(tables["h"]), len_w=len(tables["w"]))
    positions.load_state_dict({f"pos_emb_{axis}": table for axis, table in tables.items()})
    expected = golden["abspos/out_1_3_4_5"]
    assert error_of(positions((3, 4, 5), 1), expected.reshape(60, 1, 24)) < BOUND


def test_epsilon_of_learned_positions_is_outside_of_the_root() -> None:
    positions = LearnedPositions(4, len_t=1, len_h=1, len_w=1).double()
    positions.load_state_dict({f"pos_emb_{axis}": torch.full((1, 4), 1e-6, dtype=torch.float64) for axis in "thw"})
    assert positions((1, 1, 1), 1)[0, 0, 0].item() == pytest.approx(3 / 4)


def test_rms_norm(golden: dict[str, Tensor]) -> None:
    norm = RMSNorm(24)
    norm.load_state_dict({"weight": golden["rmsnorm/weight"]})
    assert error_of(norm(golden["rmsnorm/x"]), golden["rmsnorm/y_eps1e-6"]) < BOUND
    x = golden["rmsnorm/x"].to(torch.bfloat16)
    exact = x.double() / (x.double().square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight.detach().double()
    assert torch.allclose(norm(x.float()).double(), exact, rtol=1e-5, atol=1e-9)


def test_epsilon_of_the_layer_norm_is_1e_6() -> None:
    x = torch.tensor([[[1e-3, -1e-3]]], dtype=torch.float64)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    assert modulated(x, zero, zero)[0, 0, 0].item() == pytest.approx(0.5**0.5)
    shifted = modulated(x, zero + 3, zero + 1)
    assert torch.allclose(shifted, 2 * F.layer_norm(x, (2,), eps=1e-6) + 3)


def test_uncertainty_head(golden: dict[str, Tensor]) -> None:
    logvar = LogVariance()
    logvar.load_state_dict({name: golden[f"logvar/{name}"] for name in ("0.freqs", "0.phases", "1.weight")})
    assert error_of(logvar(golden["logvar/c_noise"]), golden["logvar/out"]) < BOUND


def test_a_fresh_uncertainty_head_is_a_function_of_its_generator() -> None:
    heads = []
    for _ in range(2):
        logvar = LogVariance()
        logvar.initialise(torch.Generator().manual_seed(3))
        heads.append(logvar(torch.linspace(-1, 1, 5)))
    assert torch.equal(heads[0], heads[1])
    assert heads[0].abs().max() > 0.1


def test_padding_mask(golden: dict[str, Tensor]) -> None:
    x = torch.zeros(2, 16, 3, 6, 8)
    mask = stretched_mask(golden["padmask/in_1_1_50_70"], x)
    assert torch.equal(mask, golden["padmask/nearest_6_8"][:, :, None].expand(2, 1, 3, 6, 8))
