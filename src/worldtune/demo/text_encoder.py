"""The demo's text encoder: a small random T5 that knows the words of the rendered scenes' captions."""

import math
import shutil
import string
import tempfile
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.normalizers import NFKC, Nmt, Sequence
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from worldtune.common.files import atomic_path
from worldtune.dataset.scenes import scene_names
from worldtune.demo.scenes import plan_scene

CHANNELS = 64
"""Width of the text embeddings."""
MAX_TOKENS = 512
SPECIAL = ("<pad>", "</s>", "<unk>")
SPACE = "\u2581"
"""The sign that stands for a space before a word, as in T5."""
CAPTIONS = 400
"""Scenes whose captions give the vocabulary; each word of the scenes is among them."""
LETTER_SCORE = -20.0
"""Log probability of a single character: low, so that words are kept whole where they are known."""


def vocabulary() -> list[tuple[str, float]]:
    """Return pieces and their log probabilities: special pieces, words of captions by frequency, single characters."""
    words: Counter[str] = Counter()
    for name in scene_names(CAPTIONS):
        for word in plan_scene(name, seed=0).caption.split():
            words[SPACE + word.rstrip(".")] += 1
    words["."] = words[SPACE + "The"]
    total = sum(words.values())
    ordered = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    pieces = [(piece, 0.0) for piece in SPECIAL]
    pieces += [(piece, math.log(count / total)) for piece, count in ordered]
    known = {piece for piece, _ in pieces}
    characters = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    return pieces + [(piece, LETTER_SCORE) for piece in characters if piece not in known]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a T5-like tokenizer: pieces of words, each text ended by `</s>`."""
    tokenizer = Tokenizer(Unigram(vocabulary(), unk_id=SPECIAL.index("<unk>")))
    tokenizer.normalizer = Sequence([Nmt(), NFKC()])
    tokenizer.pre_tokenizer = Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.decoder = MetaspaceDecoder(replacement=SPACE, prepend_scheme="always")
    end = SPECIAL.index("</s>")
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def write_text_encoder(folder: Path, *, seed: int) -> None:
    """Write tokenizer, config.json and weights below `folder`, as transformers reads them."""
    tokenizer = make_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=CHANNELS,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=SPECIAL.index("<pad>"),
        eos_token_id=SPECIAL.index("</s>"),
        decoder_start_token_id=SPECIAL.index("<pad>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = T5EncoderModel(config)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        encoder.save_pretrained(scratch)
        for file in sorted(Path(scratch).iterdir()):
            with atomic_path(folder / file.name) as temporary:
                shutil.copyfile(file, temporary)
