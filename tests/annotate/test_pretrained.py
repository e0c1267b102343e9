import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from worldtune.annotate.pretrained import check_type, load_network
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_json

SIZES = {"vocab_size": 16, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
KEY = "encoder.block.1.layer.0.SelfAttention.q.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A random T5 encoder of two layers."""
    path = tmp_path_factory.mktemp("network")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5EncoderModel(T5Config(**SIZES)).save_pretrained(path)
    return path


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "network")


def load(folder, **options):
    return load_network(T5EncoderModel, folder, "a T5 encoder", **{"dtype": torch.float32, **options})


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **values):
    write_json(folder / "config.json", json.loads((folder / "config.json").read_text()) | values)


def test_a_network_has_the_weights_of_its_folder_in_the_wanted_type(folder):
    change_config(folder, dtype="float16")
    network = load(folder)
    torch.testing.assert_close(network.state_dict()[KEY], load_file(folder / "model.safetensors")[KEY])
    assert not network.training
    assert load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_weights_that_are_missing_of_another_shape_or_unknown_are_named(folder, caplog):
    change_weights(folder, lambda weights: weights.pop(KEY))
    with pytest.raises(WorldtuneError, match=f"lacks weights of a T5 encoder: {KEY}. Fetch it again"):
        load(folder)
    change_weights(folder, lambda weights: weights.update({KEY: torch.zeros(3, 5)}))
    with pytest.raises(WorldtuneError, match=rf"other shapes .*: {KEY} \(3, 5\) in place of \(8, 8\)"):
        load(folder)
    change_weights(folder, lambda weights: weights.update({KEY: torch.zeros(8, 8)}))
    change_config(folder, num_layers=1)
    assert load(folder).config.num_layers == 1
    assert re.search(r"encoder\.block\.1\..* \| UNEXPECTED", caplog.text)


def test_another_type_of_network_is_refused(folder):
    change_config(folder, model_type="umt5")
    with pytest.raises(WorldtuneError, match=r"of the type 'umt5'; expected 't5'\. Name a folder that holds a T5"):
        load(folder)
    with pytest.raises(WorldtuneError, match=r"expected 't5'\. Serve it\."):
        load(folder, advice="Serve it.")
    (folder / "config.json").write_text("[]")
    with pytest.raises(WorldtuneError, match="of the type None"):
        check_type(folder, "t5", "a T5 encoder")


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(WorldtuneError, match="none does not exist; a network is expected there"):
        load(tmp_path / "none")
    weights = (folder / "model.safetensors").read_bytes()
    for content in (b"", weights[:100], weights[:-100], b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(WorldtuneError, match="network cannot be loaded as a T5 encoder"):
            load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(WorldtuneError, match="network cannot be loaded as a T5 encoder"):
        load(folder)
    (folder / "config.json").write_text('{"model_type": "t5", "d_model": "wide"}')
    with pytest.raises(WorldtuneError, match="network cannot be loaded as a T5 encoder"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(WorldtuneError, match=r"config\.json is no valid JSON"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WorldtuneError, match=r"config\.json does not exist; a T5 encoder has one"):
        load(folder)


class Runs:
    """What a pickle makes that runs something."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_gives_weights_but_runs_nothing(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    torch.testing.assert_close(load(folder).state_dict()[KEY], weights[KEY])
    torch.save(weights | {"other": Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(WorldtuneError, match="network cannot be loaded as a T5 encoder"):
        load(folder)
    assert not (tmp_path / "ran").exists()
