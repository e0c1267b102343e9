"""The Transfer1 training task: networks and tokenizer on a mesh, a batch's loss, the held-out measurement."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from worldtune.common.progress import progress
from worldtune.dataset.clips import Clip
from worldtune.dataset.fitting import aspect_ratio
from worldtune.kernels.attention import Kernel, fastest_kernel, use_kernel
from worldtune.parallel.mesh import Mesh, sample_group
from worldtune.recipe.estimate import num_tokens, sample_flop
from worldtune.recipe.schema import LATENT_CHANNELS, LATENT_FRAMES, LATENT_PIXELS, Recipe
from worldtune.training.inputs import Inputs, read_own_shard
from worldtune.training.random import generator
from worldtune.training.task import Batch, LossOutput, Sample, ValidationRow
from worldtune.training.whereabouts import mark_progress
from worldtune.transfer1.batch import ClipDataset
from worldtune.transfer1.conditions import Conditions
from worldtune.transfer1.control import ControlNetwork
from worldtune.transfer1.denoiser import DTYPES, Denoiser, build_denoiser, check_step_zero
from worldtune.transfer1.hints import UnfinishedHint, hints_of
from worldtune.transfer1.largest import largest_batch
from worldtune.transfer1.loading import LoadReport
from worldtune.transfer1.objective import add_noise, draw, draw_kept_hints, edm_loss, given_frames
from worldtune.transfer1.previews import DrawnLatents, draw_guidances, gather_on_first
from worldtune.transfer1.tokenizer import VideoTokenizer

VALIDATION_SEED = 0
"""Seed of the held-out noise: the same for every run, so that runs can be compared."""
logger = logging.getLogger(__name__)


def build_task(recipe: Recipe, inputs: Inputs, mesh: Mesh, device: torch.device) -> "Transfer1Task":
    """Build the task from a job's inputs. Collective over all ranks.

    Raises:
        WorldtuneError: a checkpoint does not fit, the dataset does not fit the recipe, or the branch acts on the base
            before it is trained.
    """
    # Refuses a dataset that does not fit, before minutes go into the weights.
    dataset = ClipDataset(inputs.dataset, recipe, inputs.latents)
    degree, rank = mesh.tensor.size(), mesh.tensor.get_local_rank()
    control_state = read_own_shard(inputs.control, degree, rank) if inputs.control else None
    choose_attention(recipe, device)
    built = build_denoiser(recipe, read_own_shard(inputs.base, degree, rank), control_state, mesh, device)
    step_zero = check_step_zero(built.denoiser, recipe, device, is_fresh=inputs.control is None)
    tokenizer = VideoTokenizer(inputs.tokenizer, recipe.data.num_frames, device, DTYPES[recipe.training.precision])
    return Transfer1Task(
        recipe,
        built.denoiser,
        LatentEncoder(tokenizer, sample_group(mesh), device, recipe),
        dataset,
        mesh,
        load_reports=built.load_reports,
        start_checks={"step_zero_parity": step_zero},
    )


def choose_attention(recipe: Recipe, device: torch.device) -> None:
    """Let all ranks use the recipe's attention kernel, or the one that is the fastest on rank 0; collective.

    Raises:
        WorldtuneError: the kernel's package is not installed.
    """
    if device.type != "cuda":
        return
    parallel, base = recipe.parallel, recipe.network.base
    chosen: list[Kernel] = ["sdpa" if parallel.attention == "measured" else parallel.attention]
    # The kernels of other packages compute in half precision only.
    if parallel.attention == "measured" and recipe.training.precision == "bfloat16":
        if dist.get_rank() == 0:
            chosen[0] = fastest_kernel(
                num_tokens=num_tokens(recipe),
                num_heads=base.num_heads // (parallel.tensor * parallel.context),
                head_channels=base.model_channels // base.num_heads,
                device=device,
            )
        dist.broadcast_object_list(chosen, src=0)
    use_kernel(chosen[0])
    logger.info("attention kernel: %s", chosen[0])


class LatentEncoder:
    """Pixels to scaled latents, each of video and controls on a rank of its own where enough ranks share samples."""

    def __init__(
        self, tokenizer: VideoTokenizer, group: dist.ProcessGroup, device: torch.device, recipe: Recipe
    ) -> None:
        """Take the tokenizer of this rank.

        Args:
            tokenizer: it encodes what is this rank's to encode.
            group: the ranks that work on the same samples.
            device: of this rank.
            recipe: gives precision, scale and the order of the control inputs.
        """
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = DTYPES[recipe.training.precision]
        self.sigma_data = recipe.objective.sigma_data
        self.group = group

    @torch.no_grad()
    def __call__(
        self, videos: Sequence[tuple[Tensor | UnfinishedHint, Tensor | None]], size_hw: tuple[int, int]
    ) -> list[Tensor]:
        """Return the latents, float32 [B, 16, T, H, W], of uint8 videos [B, 3, T, H, W].

        Beside each video is which samples of it are kept, or None for all: see VideoTokenizer.encode_frames. Collective
        over the group, whose ranks all get the same values.

        Args:
            videos: each is finished by the rank that encodes it.
            size_hw: height and width of all of them.
        """
        size, rank = dist.get_world_size(self.group), dist.get_rank(self.group)
        latents = []
        for index, (video, kept_b) in enumerate(videos):
            if index % size == rank:
                pixels = video.finish() if isinstance(video, UnfinishedHint) else video
                latents.append(self.tokenizer.encode_frames(pixels, kept_b).contiguous())
            else:
                frames = video.frames if isinstance(video, UnfinishedHint) else video
                shape = latent_shape((*frames.shape[:3], *size_hw), self.tokenizer.num_frames)
                latents.append(torch.empty(shape, dtype=self.dtype, device=self.device))
        if size > 1:
            for index, latent in enumerate(latents):
                dist.broadcast(latent, group=self.group, group_src=index % size)
        return [latent.float() * self.sigma_data for latent in latents]

    def encode_batch(self, batch: Batch, kept_hints_bk: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the latents of a batch's video and those of its k control inputs, [B, 16k, T, H, W].

        Args:
            batch: its video's latents are taken as they were cached where it has them.
            kept_hints_bk: 0 where a control input is dropped, [B, k]; None keeps all.
        """
        hints = hints_of(batch, self.recipe)
        kept = kept_hints_bk.unbind(dim=1) if kept_hints_bk is not None else [None] * len(hints)
        videos = [(batch["video"], None)] if "latents" not in batch else []
        height, width = batch["padding_mask"].shape[-2:]
        encoded = self([*videos, *zip(hints, kept, strict=True)], (height, width))
        latents = encoded[0] if videos else batch["latents"].float() * self.sigma_data
        return latents, torch.cat(encoded[len(videos) :], dim=1)


def latent_shape(video_shape_bcthw: Sequence[int], frames_a_view: int) -> tuple[int, int, int, int, int]:
    """Return the shape of the latents of a video [B, 3, T, H, W] whose views of so many frames are stacked along T."""
    batch, _, frames, height, width = video_shape_bcthw
    num_latent_frames = frames // frames_a_view * ((frames_a_view - 1) // LATENT_FRAMES + 1)
    return batch, LATENT_CHANNELS, num_latent_frames, height // LATENT_PIXELS, width // LATENT_PIXELS


@dataclass(frozen=True, kw_only=True)
class _HeldOutClip:
    """A held-out clip as it is measured; tensors on the CPU."""

    latents: Tensor
    conditions: Conditions


class Transfer1Task:
    """See worldtune.training.task.Task."""

    def __init__(
        self,
        recipe: Recipe,
        denoiser: Denoiser,
        encoder: LatentEncoder,
        dataset: ClipDataset,
        mesh: Mesh,
        *,
        load_reports: Mapping[str, LoadReport],
        start_checks: Mapping[str, str],
    ) -> None:
        """Join what `build_task` built."""
        self.recipe = recipe
        self.denoiser = denoiser
        self.encoder = encoder
        self.dataset = dataset
        self.mesh = mesh
        self.load_reports = load_reports
        self.start_checks = start_checks
        self._held_out: dict[str, _HeldOutClip] = {}

    @property
    def trainable(self) -> ControlNetwork:
        """The control branch."""
        return self.denoiser.control

    @property
    def sample_group(self) -> dist.ProcessGroup:
        """The ranks that work on the same samples."""
        return self.encoder.group

    @property
    def dataset_digest(self) -> str:
        """Digest of the dataset's clips."""
        return self.dataset.digest

    @property
    def measured_clip_ids(self) -> list[str]:
        """The held-out clips that `validate` measures."""
        return [clip.clip_id for clip in self.dataset.measured_clips]

    def make_dataset(self) -> ClipDataset:
        """Return the training samples by ordinal."""
        return self.dataset

    def largest_batch(self) -> Batch:
        """Return a random micro-batch of the largest size of the training clips, on the device."""
        return largest_batch(self.dataset, self.encoder.device)

    def prepare(self, batch: Batch) -> Batch:
        """Return a micro-batch with scaled latents, float32, as `latents` and `hint`: no pixels.

        Of several control inputs some are dropped (objective.hint_dropout_rate).
        """
        recipe = self.recipe
        kept_hints = None
        if recipe.control.also:
            kept_hints = draw_kept_hints(
                batch["ordinal"].tolist(),
                len(recipe.control.kinds),
                seed=recipe.training.seed,
                config=recipe.objective,
            )
        latents, hint = self.encoder.encode_batch(batch, kept_hints)
        kept = {key: value for key, value in batch.items() if key not in ("video", "vis_frames", "vis_steps")}
        return {**kept, "latents": latents, "hint": hint}

    def training_loss(self, batch: Batch) -> LossOutput:
        """Return the loss of a prepared micro-batch at drawn noise; collective over the ranks of a sample."""
        recipe, device = self.recipe, self.encoder.device
        latents, hint = batch["latents"], batch["hint"]
        draws = draw(
            batch["ordinal"].tolist(),
            latents.shape[1:],
            seed=recipe.training.seed,
            config=recipe.objective,
            num_views=recipe.num_views,
        ).to(device)
        conditions = Conditions(
            hint_bcthw=hint,
            text=batch["text"] * draws.keep_text_b[:, None, None],
            fps=batch["fps"],
            padding_mask=batch["padding_mask"],
            indicator_bt=draws.indicator_bt,
            view_indices_bt=batch.get("view_indices"),
        )
        noisy = add_noise(latents, draws, sigma_data=recipe.objective.sigma_data)
        prediction = self.denoiser(noisy, draws.sigma_b, conditions)
        loss = edm_loss(
            prediction,
            latents,
            sigma_b=draws.sigma_b,
            indicator_bt=draws.indicator_bt,
            log_variance_b=self.denoiser.log_variance(draws.sigma_b) if recipe.objective.use_logvar else None,
            config=recipe.objective,
        )
        tokens = self._num_tokens(latents)
        return LossOutput(
            loss=loss.loss,
            edm_loss=loss.edm_loss,
            num_tokens=tokens,
            flop=len(latents) * sample_flop(self.recipe, tokens // len(latents)),
        )

    def _num_tokens(self, latents: Tensor) -> int:
        frames, height, width = self.denoiser.base.grid(latents)
        return len(latents) * frames * height * width

    @torch.no_grad()
    def validate(self) -> Iterator[Sequence[ValidationRow]]:
        """Measure the weighted squared error on held-out clips: fixed noise, text given, no more frames than always.

        Each clip is measured with its own control and, under the same noise, with that of the next held-out clip of its
        size. Data-parallel ranks have clips of their own unless weights are sharded over them.
        """
        clips = self.dataset.measured_clips
        others = other_clips(clips)
        data_rank, num_data = self._share_of_clips()
        for first in progress(range(0, len(clips), num_data), "held-out clips"):
            together = clips[first : first + num_data]
            clip = together[data_rank] if data_rank < len(together) else None
            rows = self._measure(clip, others[clip.clip_id]) if clip is not None else []
            if num_data > 1:
                gathered: list[list[ValidationRow]] = [[] for _ in range(num_data)]
                dist.all_gather_object(gathered, rows, group=self.mesh.data.get_group())
                rows = list(itertools.chain.from_iterable(gathered))
            yield rows

    def preview(self) -> Iterator[Sequence[DrawnLatents]]:
        """Draw held-out clips with the present weights, as many at a step as there are data-parallel ranks.

        Where weights are sharded over these ranks, all of them draw the same clip.
        """
        clips = self.dataset.held_out_clips[: self.recipe.previews.num_clips]
        others = other_clips(self.dataset.held_out_clips)
        data_rank, num_data = self._share_of_clips()
        for first in range(0, len(clips), num_data):
            together = clips[first : first + num_data]
            drawn = self._draw(together[data_rank]) if data_rank < len(together) else None
            found = [drawn] if num_data == 1 else gather_on_first(drawn, self.mesh.data)
            yield [
                DrawnLatents(
                    clip=clip,
                    latents=latents,
                    other=others[clip.clip_id],
                    dataset=self.dataset,
                    tokenizer=self.encoder.tokenizer,
                    recipe=self.recipe,
                )
                for clip, latents in (zip(together, found, strict=True) if dist.get_rank() == 0 else ())
                if latents is not None
            ]

    def _draw(self, clip: Clip) -> dict[float, Tensor]:
        device, held_out = self.encoder.device, self._prepare(clip)
        latents, conditions = held_out.latents.to(device), held_out.conditions.to(device)
        return draw_guidances(self.denoiser, latents, conditions, self.recipe)

    def _share_of_clips(self) -> tuple[int, int]:
        """Return this rank's place among those that share held-out clips, and their number."""
        if self.recipe.parallel.shard != "nothing":
            # Sharded weights are gathered over the data-parallel ranks, which must then compute equally often.
            return 0, 1
        return self.mesh.data.get_local_rank(), self.mesh.data.size()

    def _measure(self, clip: Clip, other: Clip | None) -> list[ValidationRow]:
        device, config = self.encoder.device, self.recipe.objective
        held_out = self._prepare(clip)
        latents = held_out.latents.to(device)
        own = held_out.conditions.to(device)
        controls = {"own": own}
        if other is not None:
            controls["other"] = replace(own, hint_bcthw=self._prepare(other).conditions.hint_bcthw.to(device))
        keys = []
        losses = []
        for sigma in self.recipe.validation.sigmas:
            stream = generator(VALIDATION_SEED, "validation_noise", clip.clip_id, f"{sigma:g}")
            noise = torch.randn(latents.shape, generator=stream, dtype=torch.float32).to(device)
            sigma_b = torch.full((1,), sigma, device=device)
            for control, conditions in controls.items():
                mark_progress()
                prediction = self.denoiser(latents + sigma * noise, sigma_b, conditions)
                loss = edm_loss(
                    prediction,
                    latents,
                    sigma_b=sigma_b,
                    indicator_bt=conditions.indicator_bt,
                    log_variance_b=None,
                    config=config,
                )
                keys.append((sigma, control))
                losses.append(loss.edm_loss)
        values = torch.stack(losses).tolist() if losses else []
        return [
            ValidationRow(sigma=sigma, clip_id=clip.clip_id, control="own" if control == "own" else "other", loss=value)
            for (sigma, control), value in zip(keys, values, strict=True)
        ]

    def _prepare(self, clip: Clip) -> _HeldOutClip:
        if clip.clip_id not in self._held_out:
            sample = self.dataset.evaluation_sample(clip)
            latents, conditions = encode_sample(sample, self.encoder, self.recipe)
            cpu = torch.device("cpu")
            held_out = _HeldOutClip(latents=latents.to(cpu), conditions=conditions.to(cpu))
            self._held_out[clip.clip_id] = held_out
        return self._held_out[clip.clip_id]


def encode_sample(sample: Sample, encoder: LatentEncoder, recipe: Recipe) -> tuple[Tensor, Conditions]:
    """Return the latents [1, 16, T, H, W] and the conditions of one evaluation sample on the device.

    No frame is given, but the main view where the recipe gives that always.
    """
    tensors = {key: value[None].to(encoder.device) for key, value in sample.items() if isinstance(value, Tensor)}
    latents, hint = encoder.encode_batch(tensors)
    indicator_t = given_frames(latents.shape[2], 0, config=recipe.objective, num_views=recipe.num_views)
    conditions = Conditions(
        hint_bcthw=hint,
        text=tensors["text"],
        fps=tensors["fps"],
        padding_mask=tensors["padding_mask"],
        indicator_bt=indicator_t[None].to(encoder.device),
        view_indices_bt=tensors.get("view_indices"),
    )
    return latents, conditions


def other_clips(clips: Sequence[Clip]) -> dict[str, Clip | None]:
    """Return for each clip the next one that is fitted to the same size, or None where there is no other."""
    by_ratio: dict[str, list[Clip]] = {}
    for clip in clips:
        by_ratio.setdefault(aspect_ratio(clip), []).append(clip)
    others: dict[str, Clip | None] = {}
    for same in by_ratio.values():
        for clip, following in zip(same, [*same[1:], same[0]], strict=True):
            others[clip.clip_id] = following if following is not clip else None
    return others
