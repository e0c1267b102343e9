import copy

import pytest
import torch
from torch import Tensor

from worldtune.common.errors import WorldtuneError
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.transfer1.control import ControlNetwork, controlled, copy_base_weights
from worldtune.transfer1.loading import initialise
from worldtune.transfer1.network import BaseNetwork
from worldtune.transfer1.recomputation import Recompute

TINY = {
    "in_channels": 17,
    "model_channels": 48,
    "num_blocks": 3,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": 12,
    "adaln_lora_dim": 8,
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 8,
}
BRANCH = {"hint_channels": 20, "num_control_blocks": 2}
RELEASED = {"in_channels": 17, "model_channels": 4096, "num_blocks": 28, "num_heads": 32}
VIEWS = {
    "n_views": 3,
    "n_views_emb": 7,
    "view_condition_dim": 6,
    "add_repeat_frame_embedding": True,
    "extra_per_block_abs_pos_emb_type": "sincos",
}


def shaken(network: BaseNetwork | ControlNetwork, seed: int) -> None:
    """Give every parameter values that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def networks(**changes: object) -> tuple[BaseNetwork, ControlNetwork]:
    base = BaseNetwork(NetworkConfig.model_validate(TINY | changes))
    control = ControlNetwork(ControlNetworkConfig.model_validate(TINY | BRANCH | changes))
    return base, control


def example(batch: int = 2, num_frames: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x": draw(batch, 16, num_frames, 8, 6),
        "timesteps": draw(batch),
        "crossattn_emb": draw(batch, 5, 12),
        "hint": draw(batch, 16, num_frames, 8, 6),
        "padding_mask": (draw(batch, 1, 64, 48) > 1).float(),
        "fps": torch.tensor([24.0, 12.0][:batch]),
        "condition_video_input_mask": (draw(batch, 1, num_frames, 1, 1) > 0).float().expand(-1, -1, -1, 8, 6),
    }


@torch.no_grad()
def test_a_batch_is_its_samples_one_by_one() -> None:
    base, control = networks()
    shaken(base, 1)
    shaken(control, 2)
    inputs = example()
    together = controlled(base, control, control_weight=torch.tensor([1.0, 0.5]), **inputs)
    for index, weight in enumerate((1.0, 0.5)):
        sample = {name: value[index : index + 1] for name, value in inputs.items()}
        alone = controlled(base, control, control_weight=weight, **sample)
        assert torch.allclose(together[index : index + 1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_fresh_branch_leaves_the_base_as_it_is() -> None:
    base, control = networks()
    shaken(base, 1)
    initialise(control, torch.Generator().manual_seed(0))
    names = copy_base_weights(base, control)
    inputs = example()
    alone = controlled(base, control, **(inputs | {"hint": None}))
    assert torch.equal(controlled(base, control, **inputs), alone)
    assert torch.equal(
        control.blocks["block1"].blocks[2].block.layer1.weight,
        base.state_dict()["blocks.block1.blocks.2.block.layer1.weight"],
    )
    own = set(control.state_dict()) - set(names)
    assert {name.split(".")[0] for name in own} == {"x_embedder2", "input_hint_block", "zero_blocks"}
    features: dict[str, Tensor] = {}
    control(**inputs, features=features)
    assert not features["guided_hint"].any()
    assert features["block1"].any()


def test_only_the_hints_last_layer_and_the_zero_blocks_keep_the_branch_silent() -> None:
    base, control = networks()
    shaken(base, 1)
    initialise(control, torch.Generator().manual_seed(0))
    base.requires_grad_(False)
    controlled(base, control, **example()).square().mean().backward()
    moving = {
        name for name, parameter in control.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert moving == {f"zero_blocks.block{index}.{kind}" for index in range(2) for kind in ("weight", "bias")}
    without = {name for name, parameter in control.named_parameters() if parameter.grad is None}
    assert {name.split(".")[0] for name in without} == {"final_layer"}


def test_a_copy_between_networks_of_different_sizes_names_the_tensor() -> None:
    base = BaseNetwork(NetworkConfig.model_validate(TINY | {"mlp_ratio": 4.0}))
    with pytest.raises(WorldtuneError, match=r"blocks\.block0\.blocks\.2\.block\.layer1\.weight"):
        copy_base_weights(base, networks()[1])


@pytest.mark.parametrize("what", ["everything", "all_but_attention", "mlp"])
def test_recomputed_activations_change_nothing(what: Recompute) -> None:
    gradients = []
    for recompute in ("nothing", what):
        base, control = networks()
        shaken(base, 1)
        shaken(control, 2)
        for network in (base, control):
            network.set_recompute(recompute, less=1)
        controlled(base, control, **example()).square().mean().backward()
        gradients.append([parameter.grad for parameter in (*base.parameters(), *control.parameters())])
    for kept, again in zip(*gradients, strict=True):
        assert (kept is None) == (again is None)
        if kept is not None and again is not None:
            assert torch.equal(kept, again)


@pytest.mark.parametrize(
    ("kind", "config", "parameters", "keys"),
    [
        ("base", {"rope_t_extrapolation_ratio": 2.0}, 7_236_208_640, 571),
        ("control", {}, 893_497_120, 94),
        ("base", {"in_channels": 16}, 7_236_192_256, 571),
        ("control", {"in_channels": 16, "hint_channels": 16}, 891_645_728, 94),
        ("control", VIEWS | {"in_channels": 16, "is_extend_model": True, "hint_channels": 16}, None, 94),
        ("base", VIEWS, None, 571),
    ],
)
def test_released_sizes(kind: str, config: dict[str, object], parameters: int | None, keys: int) -> None:
    with torch.device("meta"):
        network = (
            BaseNetwork(NetworkConfig.model_validate(RELEASED | config))
            if kind == "base"
            else ControlNetwork(ControlNetworkConfig.model_validate(RELEASED | config))
        )
    state = network.state_dict()
    # Three position tables go, three tensors of the views come.
    assert len(state) == keys
    if parameters is None:
        assert state["x_embedder.proj.1.weight"].shape == (4096, 96)
        assert state["view_embeddings.weight"].shape == (7, 6)
        assert state["repeat_frame_embedding.weight"].shape == (6, 1)
        assert not any(name.startswith("extra_pos_embedder") for name in state)
    else:
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_released_names_and_shapes() -> None:
    with torch.device("meta"):
        base = BaseNetwork(NetworkConfig.model_validate(RELEASED)).state_dict()
        control = ControlNetwork(ControlNetworkConfig.model_validate(RELEASED)).state_dict()
    expected = {
        "x_embedder.proj.1.weight": (4096, 72),
        "pos_embedder.seq": (128,),
        "extra_pos_embedder.pos_emb_h": (120, 4096),
        "extra_pos_embedder.pos_emb_t": (128, 4096),
        "t_embedder.1.linear_2.weight": (12288, 4096),
        "affline_norm.weight": (4096,),
        "blocks.block27.blocks.0.block.attn.to_q.0.weight": (4096, 4096),
        "blocks.block27.blocks.0.block.attn.to_k.1.weight": (128,),
        "blocks.block0.blocks.1.block.attn.to_v.0.weight": (4096, 1024),
        "blocks.block0.blocks.1.block.attn.to_out.0.weight": (4096, 4096),
        "blocks.block0.blocks.2.block.layer2.weight": (4096, 16384),
        "blocks.block0.blocks.2.adaLN_modulation.2.weight": (12288, 256),
        "final_layer.linear.weight": (64, 4096),
        "final_layer.adaLN_modulation.2.weight": (8192, 256),
    }
    assert expected.items() <= {name: tuple(tensor.shape) for name, tensor in base.items()}.items()
    expected = {
        "x_embedder2.proj.1.weight": (4096, 516),
        "input_hint_block.12.weight": (256, 96),
        "input_hint_block.14.bias": (4096,),
        "zero_blocks.block2.weight": (4096, 4096),
        "final_layer.linear.weight": (64, 4096),
    }
    assert expected.items() <= {name: tuple(tensor.shape) for name, tensor in control.items()}.items()
    assert "blocks.block3.blocks.2.block.layer1.weight" not in control


@torch.no_grad()
def test_an_image_has_zeros_in_the_place_of_the_mask() -> None:
    base, _ = networks()
    shaken(base, 1)
    inputs = example(num_frames=1)
    del inputs["hint"]
    mask = inputs.pop("condition_video_input_mask")
    image = base(**(inputs | {"fps": None}), data_type="image")
    assert torch.equal(image, base(**inputs, condition_video_input_mask=torch.zeros_like(mask)))


@torch.no_grad()
def test_views_meet_their_own_text() -> None:
    base, _ = networks(**(VIEWS | {"n_views": 2}))
    shaken(base, 1)
    inputs = example(num_frames=4)
    del inputs["hint"]
    inputs |= {"crossattn_emb": torch.randn(2, 10, 12), "frame_repeat": torch.zeros(2, 2)}
    plain, changed = {}, {}
    base(**inputs, features=plain)
    text = inputs["crossattn_emb"].clone()
    text[:, 5:] = 0
    # Only the first block: later ones mix the views by self-attention.
    base(**(inputs | {"crossattn_emb": text}), features=changed)
    half = 2 * 4 * 3
    assert torch.equal(plain["block0"][:half], changed["block0"][:half])
    assert not torch.allclose(plain["block0"][half:], changed["block0"][half:])


def test_fresh_weights_depend_on_the_generator_alone() -> None:
    first, second = (networks()[1] for _ in range(2))
    second.to(torch.float64)
    for network in (first, second):
        initialise(network, torch.Generator().manual_seed(5))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor.double(), second.state_dict()[name]), name
    weight = first.blocks["block0"].blocks[2].block.layer1.weight
    assert weight.abs().max().item() == pytest.approx((6 / (48 + 96)) ** 0.5, rel=0.02)
    assert first.t_embedder[1].linear_1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not first.blocks["block0"].blocks[1].adaLN_modulation[2].weight.any()
    assert first.final_layer.adaLN_modulation[2].weight.any()
    assert torch.equal(first.pos_embedder.seq, torch.arange(8.0))


def test_a_network_can_be_copied() -> None:
    base, _ = networks()
    assert list(copy.deepcopy(base).state_dict()) == list(base.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 16, 3, 7, 6)}, "cannot be cut into patches"),
        ({"x": torch.zeros(2, 16, 3, 20, 6)}, "larger than the network's"),
        ({"x": torch.zeros(2, 16, 9, 8, 6)}, "position tables"),
        ({"fps": None}, "needs fps"),
        ({"condition_video_input_mask": None}, "takes 17 channels, and the input has 16"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Tensor | None], message: str) -> None:
    base, _ = networks()
    inputs: dict[str, Tensor | None] = dict(example())
    del inputs["hint"]
    if isinstance(change.get("x"), Tensor):
        inputs["condition_video_input_mask"] = torch.zeros_like(change["x"][:, :1])
    with pytest.raises(WorldtuneError, match=message):
        base(**(inputs | change))


def test_a_hint_with_too_many_channels_is_named() -> None:
    _, control = networks()
    with pytest.raises(WorldtuneError, match="has 21 channels; the branch takes 20"):
        control(**(example() | {"hint": torch.zeros(2, 21, 3, 8, 6)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "num_heads = 5"),
        ({"num_heads": 6}, "fewer than 12 channels a head"),
        ({"num_control_blocks": 4}, "num_control_blocks = 4"),
        ({"n_views_emb": 7}, "view_condition_dim"),
        ({"add_repeat_frame_embedding": True}, "needs view_condition_dim"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        ControlNetwork(ControlNetworkConfig.model_validate(TINY | BRANCH | changes))
