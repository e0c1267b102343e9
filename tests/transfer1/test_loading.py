import pytest
import torch
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.loading import compare_network, initialise, load_logvar, load_network
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork

TINY = {
    "in_channels": 16,
    "model_channels": 24,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 4,
    "adaln_lora_dim": 2,
    "max_img_h": 4,
    "max_img_w": 4,
    "max_frames": 4,
}


def make_base() -> BaseNetwork:
    return BaseNetwork(NetworkConfig.model_validate(TINY))


def make_control() -> ControlNetwork:
    return ControlNetwork(ControlNetworkConfig.model_validate(TINY | {"hint_channels": 16, "num_control_blocks": 1}))


def state_of(network: BaseNetwork | ControlNetwork, seed: int, prefix: str) -> dict[str, Tensor]:
    initialise(network, torch.Generator().manual_seed(seed))
    return {prefix + name: tensor.clone() for name, tensor in network.state_dict().items()}


def logvar_state(prefix: str = "") -> dict[str, Tensor]:
    logvar = LogVariance()
    logvar.initialise(torch.Generator().manual_seed(1))
    return {f"{prefix}logvar.{name}": tensor.clone() for name, tensor in logvar.state_dict().items()}


def assert_holds(network: BaseNetwork | ControlNetwork, state: dict[str, Tensor], prefix: str) -> None:
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[prefix + name]), name


@pytest.mark.parametrize("prefix", ["net.", "base_model.net.", ""])
def test_a_base_is_found_under_every_prefix(prefix: str) -> None:
    state = state_of(make_base(), 1, prefix)
    extra = {prefix + "affline_norm._extra_state": torch.empty(0)}
    heads = logvar_state(prefix.removesuffix("net.")) if prefix else {}
    network = make_base()
    report = load_network(network, state | extra | heads)
    assert_holds(network, state, prefix)
    assert report.missing == report.shape_changed == ()
    assert report.dropped == 1
    assert set(report.unexpected) == {f"logvar.{name}" for name in ("0.freqs", "0.phases", "1.weight") if prefix}


@pytest.mark.parametrize(
    ("base_prefix", "control_prefix"), [("base_model.net.", "net."), ("net.base_model.net.", "net.net_ctrl.")]
)
def test_a_file_with_both_networks(base_prefix: str, control_prefix: str) -> None:
    base_state, control_state = state_of(make_base(), 1, base_prefix), state_of(make_control(), 2, control_prefix)
    base, control = make_base(), make_control()
    load_network(base, base_state | control_state)
    load_network(control, base_state | control_state)
    assert_holds(base, base_state, base_prefix)
    assert_holds(control, control_state, control_prefix)


def test_a_renamed_tensor_is_fatal_and_named() -> None:
    state = state_of(make_base(), 1, "net.")
    state["net.blocks.block1.blocks.0.block.attn.to_qq.0.weight"] = state.pop(
        "net.blocks.block1.blocks.0.block.attn.to_q.0.weight"
    )
    network = make_base()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(WorldtuneError) as caught:
        load_network(network, state)
    assert "1 missing in the file: blocks.block1.blocks.0.block.attn.to_q.0.weight" in str(caught.value)
    assert "1 unknown to the network: blocks.block1.blocks.0.block.attn.to_qq.0.weight" in str(caught.value)
    assert_holds(network, before, "")


def test_a_changed_shape_is_fatal_and_named() -> None:
    state = state_of(make_base(), 1, "net.")
    name = "net.blocks.block0.blocks.2.block.layer1.weight"
    state[name] = state[name][:32]
    with pytest.raises(WorldtuneError, match=r"layer1\.weight is \(32, 24\) in the file, \(96, 24\) in the network"):
        load_network(make_base(), state)


def test_allow_lists_are_explicit() -> None:
    state = state_of(make_control(), 1, "net.")
    seq = state.pop("net.pos_embedder.seq")
    network = make_control()
    network.pos_embedder.seq.fill_(7)
    report = load_network(network, state)
    assert report.missing == ("pos_embedder.seq",)
    assert torch.equal(network.pos_embedder.seq, seq)
    with pytest.raises(WorldtuneError, match=r"pos_embedder\.seq"):
        load_network(network, state, allow_missing=())
    final = {name: state.pop(name) for name in list(state) if name.startswith("net.final_layer.")}
    names = [name.removeprefix("net.") for name in final]
    report = load_network(network, state, allow_missing=["pos_embedder.seq", *names])
    assert set(report.missing) == {"pos_embedder.seq", *names}


def test_a_report_needs_no_memory() -> None:
    state = state_of(make_base(), 1, "net.")
    with torch.device("meta"):
        network = make_base()
    report = compare_network(network, state)
    assert len(report.loaded) == len(state)
    with pytest.raises(WorldtuneError, match="no memory yet"):
        load_network(network, state)


def test_values_are_cast_to_the_networks_type() -> None:
    state = state_of(make_base(), 1, "net.")
    network = make_base().to(torch.bfloat16)
    load_network(network, state)
    weight = network.state_dict()["final_layer.linear.weight"]
    assert torch.equal(weight, state["net.final_layer.linear.weight"].to(torch.bfloat16))


@pytest.mark.parametrize("prefix", ["", "base_model."])
def test_uncertainty_head(prefix: str) -> None:
    state = state_of(make_base(), 1, prefix + "net.") | logvar_state(prefix)
    logvar = LogVariance()
    load_logvar(logvar, state)
    assert torch.equal(logvar.state_dict()["1.weight"], state[f"{prefix}logvar.1.weight"])
    del state[f"{prefix}logvar.0.freqs"]
    with pytest.raises(WorldtuneError, match=r"LogVariance.*0\.freqs"):
        load_logvar(logvar, state)
