"""Answers about videos by a Qwen3-VL model from a local folder. T frames, H, W, n patches, C channels, L tokens.

The library's video processor needs torchvision, which is not installed with this package. A video differs from pictures
only in that two successive frames, and not one frame twice, make a temporal patch: the image processor makes the
patches of each frame, and they are put together here.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from worldtune.annotate.answers import Answer, Question, SampledClip, Sampling
from worldtune.annotate.pretrained import load_network, reading
from worldtune.annotate.protocol import choose_device
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json

NETWORK = "a Qwen3-VL model"
OTHER_MODELS = "Serve others by vLLM, and give its address as captioner.server."
TEMPLATE_FILE = "chat_template.json"
VIDEO = 2
"""Type of a video's tokens in mm_token_type_ids; that of text is 0."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """One clip as the network takes it."""

    token_ids: list[int]
    patches: Tensor
    """float32 [n, C * frames of a temporal patch * patch size ** 2]."""
    grid: tuple[int, int, int]
    """Patches in time, height and width."""


class VisionLanguageModel:
    """A Qwen3-VL model with its tokenizer and image processor: bfloat16 on a GPU, float32 on the CPU."""

    def __init__(self, folder: Path, device: str, *, max_frame_pixels: int) -> None:
        """Load all from `folder`; nothing is fetched.

        Args:
            folder: a folder as transformers writes it and the hub has it.
            device: "cuda", "cpu", or "auto" for CUDA where there is one.
            max_frame_pixels: larger frames are made smaller.

        Raises:
            WorldtuneError: the folder holds no such model; see pretrained.load_network.
        """
        self.device = torch.device(choose_device(device))
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.model = load_network(
            Qwen3VLForConditionalGeneration, folder, NETWORK, dtype=dtype, advice=OTHER_MODELS
        ).to(self.device)
        with reading(folder, NETWORK):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.images = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self.template = self.tokenizer.chat_template or _read_template(folder)
        vision = self.model.config.vision_config
        self.frames_per_patch = int(vision.temporal_patch_size)
        self.merge = int(vision.spatial_merge_size)
        # A side of fewer pixels than one merged patch has no token.
        side = vision.patch_size * self.merge
        self.size = {"shortest_edge": side**2, "longest_edge": max(max_frame_pixels, side**2)}
        logger.info("captioner %s on %s in %s", folder, self.device, dtype)

    def answer(self, clips: Sequence[SampledClip], question: Question, sampling: Sampling | None) -> list[Answer]:
        """Return the model's answer about each clip; all go through the model together.

        The question's schema is not enforced, only what the prompt says of it. Sampled answers depend on the seed and
        on which clips are asked about together.

        Raises:
            WorldtuneError: the GPU's memory does not suffice, or the chat template has no place for a video.
        """
        prepared = [self._prepare(clip, question.prompt) for clip in clips]
        try:
            generated = self._generate(prepared, question.max_new_tokens, sampling)
        except torch.OutOfMemoryError as error:
            raise WorldtuneError(
                f"{len(clips)} clips do not fit into the GPU's memory at once. Lower captioner.batch_size, num_frames "
                "or max_frame_pixels."
            ) from error
        return [self._answer(row) for row in generated]

    def _prepare(self, clip: SampledClip, prompt: str) -> _Prepared:
        patches, grid = self._patches(clip.frames)
        times = self._patch_times(clip.times_s)
        text = self._text(prompt, times, grid[1] * grid[2] // self.merge**2)
        token_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return _Prepared(token_ids=token_ids, patches=patches, grid=grid)

    def _patches(self, frames: np.ndarray) -> tuple[Tensor, tuple[int, int, int]]:
        """Return the patches of a video and their grid; the last frame is repeated to fill a temporal patch."""
        depth = self.frames_per_patch
        padding = -len(frames) % depth
        padded = [*frames, *(frames[-1] for _ in range(padding))]
        made = self.images(images=padded, size=self.size, input_data_format="channels_last", return_tensors="np")
        _, height, width = (int(number) for number in made["image_grid_thw"][0])
        groups, area = len(padded) // depth, height * width
        channels = frames.shape[3]
        # Each picture is there `depth` times: frame k of a temporal patch takes its first copy.
        pictures = made["pixel_values"].reshape(groups, depth, area, channels, depth, -1)[:, :, :, :, 0]
        video = np.moveaxis(pictures, 1, 3).reshape(groups * area, -1)
        return torch.from_numpy(np.ascontiguousarray(video)), (groups, height, width)

    def _patch_times(self, times_s: Sequence[float]) -> list[float]:
        """Return the middle of the first and last frame of each temporal patch, in seconds."""
        depth = self.frames_per_patch
        padded = [*times_s, *(times_s[-1] for _ in range(-len(times_s) % depth))]
        return [(padded[i] + padded[i + depth - 1]) / 2 for i in range(0, len(padded), depth)]

    def _text(self, prompt: str, times_s: Sequence[float], tokens_per_patch: int) -> str:
        """Return the whole prompt, in which each temporal patch has its time and its tokens.

        The model's own processor puts them in the place of the template's markers around the video. Later versions of
        transformers leave those markers there; servers (vLLM) and the version that came with the model do not.
        """
        config = self.model.config
        ids = [config.vision_start_token_id, config.video_token_id, config.vision_end_token_id]
        start, token, end = self.tokenizer.convert_ids_to_tokens(ids)
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=True,
        )
        before, place, after = text.partition(start + token + end)
        if not place:
            raise WorldtuneError("the model's chat template has no place for a video. Fetch the model again.")
        video = "".join(f"<{time:.1f} seconds>{start}{token * tokens_per_patch}{end}" for time in times_s)
        return str(before + video + after)

    @torch.inference_mode()
    def _generate(
        self, prepared: Sequence[_Prepared], max_new_tokens: int, sampling: Sampling | None
    ) -> list[list[int]]:
        """Return the new tokens of each clip."""
        longest = max(len(clip.token_ids) for clip in prepared)
        padding = self.tokenizer.pad_token_id
        # Padded on the left: new tokens follow on the last column of all.
        ids = torch.tensor([[padding] * (longest - len(clip.token_ids)) + clip.token_ids for clip in prepared])
        mask = torch.tensor([[0] * (longest - len(clip.token_ids)) + [1] * len(clip.token_ids) for clip in prepared])
        types = torch.where(ids == self.model.config.video_token_id, VIDEO, 0)
        options: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling is not None:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(sampling.seed if sampling else 0)
            output = self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                mm_token_type_ids=types.to(self.device),
                pixel_values_videos=torch.cat([clip.patches for clip in prepared]).to(self.device, self.model.dtype),
                video_grid_thw=torch.tensor([clip.grid for clip in prepared]).to(self.device),
                max_new_tokens=max_new_tokens,
                pad_token_id=padding,
                **options,
            )
        rows: list[list[int]] = output[:, longest:].tolist()
        return rows

    def _answer(self, token_ids: list[int]) -> Answer:
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        length = next((index for index, token in enumerate(token_ids) if token in stops), None)
        text = self.tokenizer.decode(token_ids[:length], skip_special_tokens=True)
        return Answer(text=text.strip(), is_whole=length is not None)


def _read_template(folder: Path) -> str:
    """Return the chat template from the processor's file, where the tokenizer has none."""
    template = read_json(folder / TEMPLATE_FILE).get("chat_template")
    if not isinstance(template, str):
        raise WorldtuneError(f"{folder / TEMPLATE_FILE} holds no chat template. Fetch it again.")
    return template
