"""Text embeddings by a T5 encoder from a local folder. n tokens, C channels."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AutoTokenizer, T5EncoderModel

from worldtune.annotate.pretrained import load_network, reading
from worldtune.annotate.protocol import choose_device
from worldtune.common.errors import WorldtuneError

if TYPE_CHECKING:
    from worldtune.annotate.t5_parallel import ParallelTextEncoder

logger = logging.getLogger(__name__)

NETWORK = "a T5 encoder"
TOKENS_PER_BATCH = 8192
"""Tokens, padding included, that go through the encoder at once."""


@dataclass(frozen=True, kw_only=True)
class TextEmbedding:
    """The embedding of one text."""

    tokens: np.ndarray
    """float32 [n, C], without padding; the last token is the end of the text."""
    truncated: bool
    """Whether the text had more tokens."""


def precision_on(device: str) -> str:
    """Return the name of the type that an encoder computes in on a device such as "cpu" or "cuda:0"."""
    return "bfloat16" if device.startswith("cuda") else "float32"


def load_encoder(folder: Path, device: str) -> "TextEncoder | ParallelTextEncoder":
    """Return an encoder on a device, or one on each GPU that this process sees.

    Args:
        folder: a folder as transformers writes it.
        device: "cuda", "cpu", or "auto" for CUDA where there is one.

    Raises:
        WorldtuneError: the folder does not hold a T5 encoder, or lacks some of its weights.
    """
    if choose_device(device) == "cuda" and torch.cuda.device_count() > 1:
        from worldtune.annotate.t5_parallel import ParallelTextEncoder

        return ParallelTextEncoder(folder, [f"cuda:{number}" for number in range(torch.cuda.device_count())])
    return TextEncoder(folder, device)


class TextEncoder:
    """A T5 encoder and its tokenizer: bfloat16 on a GPU, float32 on the CPU."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load both from `folder`; nothing is fetched.

        Args:
            folder: a folder as transformers writes it.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.

        Raises:
            WorldtuneError: the folder does not hold a T5 encoder, or lacks some of its weights.
        """
        self.device = torch.device(choose_device(device))
        dtype = getattr(torch, precision_on(self.device.type))
        # A whole T5 has a decoder, which the class leaves out by itself, and some have a head of their own for words.
        self.model = load_network(T5EncoderModel, folder, NETWORK, dtype=dtype, not_used=r"lm_head\.").to(self.device)
        with reading(folder, NETWORK):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        logger.info("text encoder %s on %s in %s", folder, self.device, dtype)

    @property
    def precision(self) -> str:
        """Name of the type that the encoder computes in."""
        return precision_on(self.device.type)

    @property
    def channels(self) -> int:
        """C, the width of an embedding."""
        return int(self.model.config.d_model)

    def encode(self, texts: Sequence[str], max_tokens: int) -> Iterator[tuple[int, TextEmbedding]]:
        """Yield (position in `texts`, embedding) for each text, shortest texts first.

        Texts of about equal length go through the encoder together; longer ones than `max_tokens` are cut.
        """
        # One more token than is kept shows which texts are cut.
        whole = self.tokenizer(list(texts), truncation=True, max_length=max_tokens + 1, verbose=False)["input_ids"]
        kept = self.tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: len(kept[index]))
        for batch in _batches(order, [len(tokens) for tokens in kept]):
            embeddings = self._encode_batch([kept[index] for index in batch])
            for index, tokens in zip(batch, embeddings, strict=True):
                yield index, TextEmbedding(tokens=tokens, truncated=len(whole[index]) > max_tokens)

    @torch.inference_mode()
    def _encode_batch(self, token_ids: list[list[int]]) -> list[np.ndarray]:
        longest = max(len(tokens) for tokens in token_ids)
        padding = self.tokenizer.pad_token_id
        ids = torch.tensor([tokens + [padding] * (longest - len(tokens)) for tokens in token_ids])
        mask = torch.tensor([[1] * len(tokens) + [0] * (longest - len(tokens)) for tokens in token_ids])
        hidden = self.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).last_hidden_state
        # The copy to the CPU waits for the GPU once a batch.
        rows = hidden.float().cpu().numpy()
        return [row[: len(tokens)] for row, tokens in zip(rows, token_ids, strict=True)]


def _batches(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Cut an order of rising lengths into batches of at most TOKENS_PER_BATCH tokens with padding."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
