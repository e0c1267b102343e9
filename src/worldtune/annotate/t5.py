"""Text embeddings by a T5 encoder from a local folder. n tokens, C channels."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from transformers import AutoTokenizer, T5EncoderModel

from worldtune.annotate.pretrained import load_network, reading
from worldtune.annotate.protocol import choose_device

if TYPE_CHECKING:
    from worldtune.annotate.t5_parallel import ParallelTextEncoder

logger = logging.getLogger(__name__)

Precision = Literal["bfloat16", "float32"]

NETWORK = "a T5 encoder"
TOKENS_PER_BATCH = 8192
"""Tokens, padding included, that go through the encoder at once on a GPU. On the CPU each text goes alone: one fills
its cores, and padding is only more to compute (benchmarks/README.md)."""


@dataclass(frozen=True, kw_only=True)
class TextEmbedding:
    """The embedding of one text."""

    tokens: np.ndarray
    """float32 [n, C], without padding; the last token is the end of the text."""
    truncated: bool
    """Whether the text had more tokens."""


def load_encoder(folder: Path, device: str, precision: Precision) -> "TextEncoder | ParallelTextEncoder":
    """Return an encoder on a device, or one on each GPU that this process sees.

    Args:
        folder: a folder as transformers writes it.
        device: "cuda", "cpu", or "auto" for CUDA where there is one.
        precision: type of weights and activations.

    Raises:
        WorldtuneError: the folder does not hold a T5 encoder; see pretrained.load_network.
    """
    if choose_device(device) == "cuda" and torch.cuda.device_count() > 1:
        from worldtune.annotate.t5_parallel import ParallelTextEncoder

        return ParallelTextEncoder(folder, [f"cuda:{number}" for number in range(torch.cuda.device_count())], precision)
    return TextEncoder(folder, device, precision)


class TextEncoder:
    """A T5 encoder and its tokenizer."""

    def __init__(self, folder: Path, device: str, precision: Precision) -> None:
        """Load both from `folder`; nothing is fetched.

        Args:
            folder: a folder as transformers writes it.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.
            precision: type of weights and activations.

        Raises:
            WorldtuneError: the folder does not hold a T5 encoder; see pretrained.load_network.
        """
        self.device = torch.device(choose_device(device))
        self.precision = precision
        self.tokens_per_batch = TOKENS_PER_BATCH if self.device.type == "cuda" else 1
        dtype = getattr(torch, precision)
        # A whole T5 has a decoder, which the class leaves out by itself.
        self.model = load_network(T5EncoderModel, folder, NETWORK, dtype=dtype).to(self.device)
        with reading(folder, NETWORK):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        logger.info("text encoder %s on %s in %s", folder, self.device, dtype)

    @property
    def channels(self) -> int:
        """C, the width of an embedding."""
        return int(self.model.config.d_model)

    def encode(self, texts: Sequence[str], max_tokens: int) -> Iterator[tuple[int, TextEmbedding]]:
        """Yield (position in `texts`, embedding) for each text, shortest texts first.

        On a GPU texts of about equal length go through the encoder together; which ones do changes an embedding by
        rounding only, since other kernels serve other shapes. On the CPU each goes alone, and its embedding is the same
        bit by bit whatever else is asked for. Texts longer than `max_tokens` are cut.
        """
        # One more token than is kept shows which texts are cut.
        whole = self.tokenizer(list(texts), truncation=True, max_length=max_tokens + 1, verbose=False)["input_ids"]
        kept = self.tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda index: len(kept[index]))
        for batch in _batches(order, [len(tokens) for tokens in kept], self.tokens_per_batch):
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


def _batches(order: Sequence[int], lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Cut an order of rising lengths into batches of so many tokens with padding, or of one text that has more."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[index] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
