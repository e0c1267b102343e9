"""The demo's checkpoints: formats of the released ones, a base that has learnt, the same bytes each time."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, T5EncoderModel

from worldtune.common.files import read_json, sha256_file
from worldtune.demo.base_training import Clips, Phase, held_out_loss, train_base
from worldtune.demo.checkpoints import NETWORKS, TEXT_ENCODER, TOKENIZER, embed, make_checkpoints
from worldtune.demo.scenes import plan_scene, render_scene
from worldtune.demo.text_encoder import make_tokenizer
from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.loading import load_logvar, load_network
from worldtune.transfer1.logvar import LogVariance
from worldtune.transfer1.network import BaseNetwork
from worldtune.transfer1.tokenizer import VideoTokenizer

SIZE = """
in_channels = 17
model_channels = 32
num_blocks = 2
num_heads = 2
mlp_ratio = 2.0
crossattn_emb_channels = 64
adaln_lora_dim = 4
max_img_h = 48
max_img_w = 48
max_frames = 4
"""
PHASES = (Phase(num_steps=2, batch_size=1, cutting_hw=(4, 6)), Phase(num_steps=1, batch_size=1, cutting_hw=None))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.toml"
    path.write_text(f"[base]\n{SIZE}\n[control]\n{SIZE}\nnum_control_blocks = 1\n")
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    make_checkpoints(folder, model, seed=0, num_scenes=2, phases=PHASES)
    return folder


def test_networks_have_released_names_and_load(checkpoints: Path) -> None:
    size = {"in_channels": 17, "model_channels": 32, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2.0}
    size |= {"crossattn_emb_channels": 64, "adaln_lora_dim": 4, "max_img_h": 48, "max_img_w": 48, "max_frames": 4}
    base_state = torch.load(checkpoints / NETWORKS / "base_model.pt", weights_only=True)
    control_state = torch.load(checkpoints / NETWORKS / "edge_control.pt", weights_only=True)
    assert {name.split(".")[0] for name in base_state} == {"base_model"}
    assert {".".join(name.split(".")[1:2]) for name in base_state} == {"net", "logvar"}
    assert "base_model.net.pos_embedder.seq" in base_state
    assert {name.split(".")[0] for name in control_state} == {"net", "logvar"}
    base, control = (
        BaseNetwork(NetworkConfig(**size)),
        ControlNetwork(ControlNetworkConfig(**size, num_control_blocks=1)),
    )
    assert not load_network(base, base_state).missing
    assert not load_network(control, control_state).missing
    load_logvar(LogVariance(), base_state)
    for name in ("x_embedder.proj.1.weight", "blocks.block0.blocks.2.block.layer1.weight"):
        assert torch.equal(control_state[f"net.{name}"], base_state[f"base_model.net.{name}"])
    for name, value in control_state.items():
        if "zero_blocks" in name:
            assert not value.any()
        if "input_hint_block" in name and name.endswith("weight"):
            assert value.std() > 0
    assert control_state["net.x_embedder2.proj.1.weight"].std() > 0


def test_text_encoder_loads_offline_and_knows_the_words(checkpoints: Path) -> None:
    folder = checkpoints / TEXT_ENCODER
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = T5EncoderModel.from_pretrained(folder, local_files_only=True)
    caption = plan_scene("scene_0005", seed=3).caption
    tokens = tokenizer(caption).input_ids
    assert tokenizer.unk_token_id not in tokens
    assert tokens[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=True) == caption
    # A word or a full stop a token, and the end.
    assert len(tokens) == len(caption.split()) + caption.count(".") + 1
    assert tokenizer.unk_token_id not in tokenizer("Zebra-crossing; 12 lamps!").input_ids
    assert encoder.config.d_model == 64
    assert embed(folder, [caption]).shape == (1, 64, 64)


def test_vocabulary_covers_every_scene() -> None:
    tokenizer = make_tokenizer()
    for number in range(400, 460):
        caption = plan_scene(f"scene_{number:04d}", seed=11).caption
        assert len(tokenizer(caption).input_ids) == len(caption.split()) + caption.count(".") + 1


def test_latents_have_about_unit_variance(checkpoints: Path) -> None:
    tokenizer = VideoTokenizer(checkpoints / TOKENIZER, 17, CPU, torch.float32)
    latents = []
    for name in ("scene_0001", "scene_0004", "scene_0007"):
        frames = render_scene(name, seed=5, num_frames=17, width=320, height=192, fps=24, samples=1).frames
        latents.append(tokenizer.encode(torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1))
    values = torch.cat(latents).transpose(0, 1).flatten(1)
    assert 0.5 < values.std() < 1.6
    assert values.mean().abs() < 0.6
    # The longest recipe of the released model has 16 latent frames.
    assert VideoTokenizer(checkpoints / TOKENIZER, 121, CPU, torch.float32).num_latent_frames == 16


def test_file_lists_name_every_file(checkpoints: Path) -> None:
    for repository in (TEXT_ENCODER, TOKENIZER):
        folder = checkpoints / repository
        listed = read_json(folder / "files.json")
        assert set(listed) == {path.name for path in folder.iterdir()} - {"files.json"}
        assert all(sha256_file(folder / name) == sha256 for name, sha256 in listed.items())


def test_the_same_seed_gives_the_same_files(checkpoints: Path, model: Path, tmp_path: Path) -> None:
    make_checkpoints(tmp_path, model, seed=0, num_scenes=2, phases=PHASES)
    for repository in (NETWORKS, TEXT_ENCODER, TOKENIZER):
        for path in sorted((checkpoints / repository).iterdir()):
            assert sha256_file(path) == sha256_file(tmp_path / repository / path.name), path.name


def test_training_lowers_the_loss_on_other_clips() -> None:
    """On smooth pictures, a few dozen steps beat the network that knows nothing."""
    size = {"in_channels": 17, "model_channels": 32, "num_blocks": 1, "num_heads": 2, "mlp_ratio": 2.0}
    size |= {"crossattn_emb_channels": 8, "adaln_lora_dim": 4, "max_img_h": 8, "max_img_w": 8, "max_frames": 4}
    generator = torch.Generator().manual_seed(0)
    # One value a clip and frame, spread over all channels and pixels.
    latents = 0.5 * torch.randn(24, 1, 2, 1, 1, generator=generator).expand(-1, 16, -1, 8, 8)
    clips = Clips(latents=latents[:16], text=torch.zeros(16, 4, 8), fps=24.0)
    others = Clips(latents=latents[16:], text=torch.zeros(8, 4, 8), fps=24.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    trained = train_base(
        NetworkConfig(**size), clips, seed=0, phases=(Phase(num_steps=60, batch_size=4, cutting_hw=None),)
    )
    torch.set_num_threads(threads)
    assert len(trained.losses) == 60
    assert held_out_loss(trained.base, others, 1.0) < 0.5
    assert not any(parameter.requires_grad for parameter in trained.base.parameters())
