import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

import worldtune.annotate.t5 as t5
from worldtune.annotate.t5 import TextEncoder, load_encoder
from worldtune.annotate.t5_parallel import ParallelTextEncoder
from worldtune.common.errors import WorldtuneError

WORDS = ["a", "dog", "cat", "runs", "jumps", "over", "the", "fence"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random T5 of two layers and a tokenizer that knows eight words."""
    path = tmp_path_factory.mktemp("encoder")
    tokens = {token: number for number, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.1)
        T5EncoderModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder):
    return TextEncoder(folder, "cpu", "float32")


def encode(encoder, texts, max_tokens=16):
    return dict(encoder.encode(texts, max_tokens))


def test_each_text_has_its_tokens_and_the_end(encoder):
    texts = ["a dog runs", "cat", "the dog jumps over the fence"]
    embeddings = encode(encoder, texts)
    assert {index: len(embedding.tokens) for index, embedding in embeddings.items()} == {0: 4, 1: 2, 2: 7}
    assert all(embedding.tokens.dtype == np.float32 for embedding in embeddings.values())
    assert all(embedding.tokens.shape[1] == encoder.channels == 16 for embedding in embeddings.values())
    assert encoder.precision == "float32"


def test_several_processes_give_what_one_gives(encoder, folder):
    texts = [" ".join(WORDS[: 1 + number % 7]) for number in range(20)]
    several = ParallelTextEncoder(folder, ["cpu", "cpu"], "float32")
    assert (several.channels, several.precision) == (encoder.channels, encoder.precision)
    expected, found = encode(encoder, texts, 6), encode(several, texts, 6)
    assert sorted(found) == list(range(20))
    for index, embedding in expected.items():
        np.testing.assert_allclose(found[index].tokens, embedding.tokens, atol=1e-5)
        assert found[index].truncated == embedding.truncated


def test_each_gpu_has_its_process(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    encoder = load_encoder(folder, "auto", "bfloat16")
    assert isinstance(encoder, ParallelTextEncoder)
    assert encoder.devices == ("cuda:0", "cuda:1", "cuda:2")
    assert encoder.precision == "bfloat16"


@pytest.mark.slow
def test_what_a_process_finds_wrong_is_said(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").unlink()
    with pytest.raises(WorldtuneError, match="cannot be loaded as a T5 encoder"):
        list(ParallelTextEncoder(tmp_path / "damaged", ["cpu"], "float32").encode(["a dog"], 8))


def test_half_precision_is_near(encoder, folder):
    texts = ["a dog runs", "the cat jumps over the fence"]
    expected = encode(encoder, texts)
    half = TextEncoder(folder, "cpu", "bfloat16")
    assert half.model.dtype == torch.bfloat16
    for index, embedding in encode(half, texts).items():
        one, other = embedding.tokens.ravel(), expected[index].tokens.ravel()
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.999


def test_padding_changes_nothing(encoder, monkeypatch):
    texts = ["a dog runs", "cat", "the dog jumps over the fence", "over"]
    alone = encode(encoder, texts)
    monkeypatch.setattr(encoder, "tokens_per_batch", t5.TOKENS_PER_BATCH)
    together = encode(encoder, texts)
    for index in range(len(texts)):
        np.testing.assert_allclose(together[index].tokens, alone[index].tokens, atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_on_the_cpu_an_embedding_does_not_depend_on_its_neighbours(folder, precision):
    encoder = TextEncoder(folder, "cpu", precision)
    texts = ["a dog runs", "cat", "the dog jumps over the fence", "a cat runs", "a dog runs"]
    together = encode(encoder, texts)
    for index, text in enumerate(texts):
        np.testing.assert_array_equal(together[index].tokens, encode(encoder, [text])[0].tokens)


def test_equal_to_the_model_padded_to_the_full_length(encoder):
    # The original pads each text to the largest length and cuts what is beyond it.
    text = "the cat jumps"
    inputs = encoder.tokenizer(text, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    expected = hidden[0, : int(inputs.attention_mask.sum())]
    np.testing.assert_allclose(encode(encoder, [text])[0].tokens, expected.numpy(), atol=1e-5)


def test_long_texts_are_cut_and_end_with_the_end(encoder):
    embeddings = encode(encoder, ["a dog runs over", "a dog runs", "a cat"], max_tokens=4)
    assert [embeddings[index].truncated for index in range(3)] == [True, False, False]
    assert len(embeddings[0].tokens) == 4
    np.testing.assert_allclose(embeddings[0].tokens, embeddings[1].tokens, atol=1e-5)


def test_batches_hold_the_wanted_number_of_tokens():
    lengths = [1, 2, 3, 3, 9]
    assert list(t5._batches(range(5), lengths, 8)) == [[0, 1], [2, 3], [4]]
    assert list(t5._batches(range(5), lengths, 1)) == [[0], [1], [2], [3], [4]]
    assert list(t5._batches([], [], 8)) == []
