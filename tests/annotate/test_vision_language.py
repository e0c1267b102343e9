import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from worldtune.annotate.answers import Question, SampledClip, Sampling
from worldtune.annotate.folder_hash import folder_sha256
from worldtune.annotate.vision_language import VisionLanguageModel
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import write_json
from worldtune.demo.vision_language import write_vision_language_model

QUESTION = Question(prompt="What happens?", max_new_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    write_vision_language_model(path, seed=0)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return VisionLanguageModel(folder, "cpu", max_frame_pixels=64 * 96)


def clip_of(num_frames, *, seed=0, height=64, width=96):
    frames = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)
    return SampledClip(frames=frames, times_s=tuple(index * 0.75 for index in range(num_frames)), video=None)


@pytest.mark.parametrize("num_frames", [4, 5])
def test_patches_are_those_of_the_librarys_video_processor(model, num_frames):
    clip = clip_of(num_frames)
    patches, grid = model._patches(clip.frames)
    video = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)[None].float() / 255 * 2 - 1
    # The method needs nothing of an instance, which would need torchvision.
    sizes = {"patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    expected = Qwen3VLVideoProcessor.patchify(None, video, **sizes)[0]
    assert grid == ((num_frames + 1) // 2, 4, 6)
    assert patches.shape == expected.reshape(-1, 3 * 2 * 16 * 16).shape
    torch.testing.assert_close(patches, expected.reshape(patches.shape), atol=1e-5, rtol=0)


def test_prompt_is_that_of_the_librarys_processor(model):
    clip = clip_of(5)
    prepared = model._prepare(clip, "What happens?")
    names = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>",
        video_token="<|video_pad|>",
        vision_end_token="<|vision_end|>",
    )
    names._calculate_timestamps = lambda *arguments: Qwen3VLProcessor._calculate_timestamps(names, *arguments)
    # Frame numbers of a rate of 4 frames a second.
    metadata = SimpleNamespace(fps=4.0, frames_indices=[0, 3, 6, 9, 12])
    inputs = {"video_grid_thw": torch.tensor([prepared.grid]), "video_metadata": [metadata]}
    video = Qwen3VLProcessor.replace_video_token(names, inputs, 0)
    expected = f"<|im_start|>user\n{video}What happens?<|im_end|>\n<|im_start|>assistant\n"
    assert model.tokenizer.decode(prepared.token_ids) == expected
    assert expected.startswith("<|im_start|>user\n<0.4 seconds><|vision_start|><|video_pad|>")
    assert prepared.token_ids.count(model.model.config.video_token_id) == 3 * 2 * 3


def test_a_clip_has_the_same_answer_alone_and_beside_others(model):
    clips = [clip_of(2, seed=1), clip_of(6, seed=2), clip_of(3, seed=3, height=96, width=64)]
    together = model.answer(clips, QUESTION, None)
    assert together == [model.answer([clip], QUESTION, None)[0] for clip in clips]
    assert all(answer.text and not answer.is_whole for answer in together)
    assert len({answer.text for answer in together}) > 1


def test_drawn_answers_depend_on_the_seed_alone(model):
    clip = clip_of(2)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = model.answer([clip], QUESTION, Sampling(seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert model.answer([clip], QUESTION, Sampling(seed=1)) == first
    assert model.answer([clip], QUESTION, Sampling(seed=2)) != first


def test_an_answer_ends_where_the_model_ends_it(model, monkeypatch):
    # One of the first answer's tokens becomes the end.
    clip = clip_of(2)
    [tokens] = model._generate([model._prepare(clip, QUESTION.prompt)], 8, None)
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", [tokens[3]])
    [answer] = model.answer([clip], QUESTION, None)
    assert answer.is_whole
    assert answer.text == model.tokenizer.decode(tokens[: tokens.index(tokens[3])], skip_special_tokens=True).strip()


def test_large_frames_are_made_smaller(model):
    patches, grid = model._patches(clip_of(2, height=256, width=384).frames)
    assert grid == (1, 4, 6)
    assert len(patches) == 24


def test_the_chat_template_may_lie_in_the_processors_file(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path / "older")
    template = (tmp_path / "older/chat_template.jinja").read_text()
    (tmp_path / "older/chat_template.jinja").unlink()
    write_json(tmp_path / "older/chat_template.json", {"chat_template": template})
    older = VisionLanguageModel(tmp_path / "older", "cpu", max_frame_pixels=64 * 96)
    assert older.answer([clip_of(2)], QUESTION, None) == model.answer([clip_of(2)], QUESTION, None)
    older.template = "{{ messages[0].role }}"
    with pytest.raises(WorldtuneError, match="no place for a video"):
        older.answer([clip_of(2)], QUESTION, None)


def test_folders_without_the_model_or_a_part_of_it(folder, tmp_path):
    with pytest.raises(WorldtuneError, match=r"config\.json does not exist"):
        VisionLanguageModel(tmp_path, "cpu", max_frame_pixels=4096)
    shutil.copytree(folder, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    del weights["model.visual.patch_embed.proj.weight"]
    save_file(weights, tmp_path / "damaged/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        WorldtuneError, match=r"lacks weights of a Qwen3-VL model: model\.visual\.patch_embed\.proj\.weight"
    ):
        VisionLanguageModel(tmp_path / "damaged", "cpu", max_frame_pixels=4096)
    config = json.loads((folder / "config.json").read_text())
    write_json(tmp_path / "damaged/config.json", config | {"model_type": "llava"})
    with pytest.raises(WorldtuneError, match=r"'llava'; expected 'qwen3_vl'. Serve others by vLLM"):
        VisionLanguageModel(tmp_path / "damaged", "cpu", max_frame_pixels=4096)


def test_equal_seeds_write_equal_models(folder, tmp_path):
    write_vision_language_model(tmp_path / "again", seed=0)
    assert folder_sha256(tmp_path / "again") == folder_sha256(folder)
    write_vision_language_model(tmp_path / "again", seed=1)
    assert folder_sha256(tmp_path / "again") != folder_sha256(folder)
