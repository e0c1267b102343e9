"""Finding what a text names in a picture, by GroundingDINO. Q queries, L tokens, H height, W width."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor
from transformers.models.grounding_dino.modeling_grounding_dino import GroundingDinoObjectDetectionOutput

from worldtune.annotate.objects import Candidate
from worldtune.annotate.pretrained import load_network, reading
from worldtune.annotate.protocol import choose_device
from worldtune.common.errors import WorldtuneError

NETWORK = "GroundingDINO"
MAX_CAPTION_WORDS = 128
"""A caption is cut to these (spec/transfer1-training.md 6.6)."""
PHRASE_ENDS = frozenset(".,;:!?")
"""What separates phrases: periods as the network was trained, the others where a caption is searched for."""


def detector_text(prompt: str) -> str:
    """Return a prompt as GroundingDINO reads it: small letters, a period behind each phrase."""
    phrases = [" ".join(phrase.split()) for phrase in prompt.lower().split(".")]
    return " ".join(f"{phrase}." for phrase in phrases if phrase)


def caption_prompt(caption: str) -> str:
    """Return the words of a caption that are searched for."""
    return " ".join(caption.split()[:MAX_CAPTION_WORDS])


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the network says of one picture, before anything is decided."""

    logits: torch.Tensor
    """Of each token for each query, float32 [1, Q, L] on the CPU, padded along L."""
    boxes: torch.Tensor
    """Centre, width and height as shares of the picture, float32 [1, Q, 4] on the CPU."""
    input_ids: torch.Tensor
    """The prompt's tokens, int64 [1, L] on the CPU."""
    height: int
    width: int


class Detector:
    """A GroundingDINO network from a local folder, in float32."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load it from `folder`; nothing is fetched.

        Args:
            folder: a folder as transformers writes it.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.

        Raises:
            WorldtuneError: the folder holds no such network; see pretrained.load_network.
        """
        self.device = torch.device(choose_device(device))
        self.model = load_network(GroundingDinoForObjectDetection, folder, NETWORK, dtype=torch.float32)
        with reading(folder, NETWORK):
            self.processor = GroundingDinoProcessor.from_pretrained(folder, local_files_only=True)
        self.model.to(self.device)

    @torch.inference_mode()
    def search(self, frame: NDArray[np.uint8], prompt: str) -> Scores:
        """Search a frame, uint8 [H, W, 3], for the phrases of a prompt, which periods separate.

        Raises:
            WorldtuneError: the prompt names nothing.
        """
        text = detector_text(prompt)
        if not text:
            raise WorldtuneError(f"the prompt {prompt!r} names nothing to search for")
        inputs = self.processor(
            images=frame, text=text, return_tensors="pt", truncation=True, max_length=self.model.config.max_text_len
        ).to(self.device)
        outputs = self.model(**inputs)
        return Scores(
            logits=outputs.logits.cpu(),
            boxes=outputs.pred_boxes.cpu(),
            input_ids=inputs["input_ids"].cpu(),
            height=frame.shape[0],
            width=frame.shape[1],
        )

    def candidates(self, scores: Scores, box_threshold: float, text_threshold: float) -> list[Candidate]:
        """Return what is more certain than `box_threshold`, each with its phrase of the prompt; see phrase_of.

        Boxes are cut to the picture; those without a pixel are left out.
        """
        found = self.processor.post_process_grounded_object_detection(
            GroundingDinoObjectDetectionOutput(logits=scores.logits, pred_boxes=scores.boxes),
            scores.input_ids,
            threshold=box_threshold,
            text_threshold=text_threshold,
            target_sizes=[(scores.height, scores.width)],
        )[0]
        probabilities = scores.logits[0].sigmoid()
        certainties = probabilities[probabilities.amax(dim=-1) > box_threshold, : scores.input_ids.shape[1]]
        tokens = self.processor.tokenizer.convert_ids_to_tokens(scores.input_ids[0].tolist())
        limits = [scores.width, scores.height] * 2
        candidates = []
        for score, box, certainty in zip(
            found["scores"].tolist(), found["boxes"].tolist(), certainties.tolist(), strict=True
        ):
            left, top, right, bottom = (min(max(edge, 0.0), limit) for edge, limit in zip(box, limits, strict=True))
            if right - left >= 1.0 and bottom - top >= 1.0:
                phrase = phrase_of(tokens, certainty, text_threshold)
                candidates.append(Candidate(phrase=phrase, score=score, box=(left, top, right, bottom)))
        return candidates


def phrase_of(tokens: Sequence[str], certainties: Sequence[float], threshold: float) -> str:
    """Return the words that name a box: the certain ones of the phrase that has the most certain word.

    transformers joins the words of all phrases, and the sign of the text's end; an object has one phrase.

    Args:
        tokens: the prompt in BERT's pieces; "##" begins one that continues a word, and PHRASE_ENDS stand between
            phrases.
        certainties: 0 to 1, of each token.
        threshold: a word with a piece at least as certain is one of them; so is the most certain word in any case.
    """
    phrases: list[list[tuple[str, float]]] = [[]]
    for token, certainty in zip(tokens, certainties, strict=True):
        words = phrases[-1]
        if token in PHRASE_ENDS or (token.startswith("[") and token.endswith("]")):
            phrases.append([])
        elif token.startswith("##") and words:
            words[-1] = (words[-1][0] + token.removeprefix("##"), max(words[-1][1], certainty))
        else:
            words.append((token.removeprefix("##"), certainty))
    phrase = max(phrases, key=lambda words: max((certainty for _, certainty in words), default=-1.0))
    if not phrase:
        return "object"
    least = min(threshold, max(certainty for _, certainty in phrase))
    return " ".join(word for word, certainty in phrase if certainty >= least)
