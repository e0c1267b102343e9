"""What a recipe may say: one pydantic model a section, unknown keys are errors, a description under each field.

Each section says what its keys affect, since that decides what a change re-runs (the graph's params, the identity of an
attempt):

* ``weights``: the key shapes the trained weights; a change starts a new attempt.
* ``outcome``: the key changes how far or where the same weights are trained, or what is measured; the attempt goes on.
* ``report``: the key changes the samples that the report shows; training stands.
* ``nothing``: the key changes no result; nothing re-runs.
"""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from worldtune.recipe.network import ControlNetworkConfig, NetworkConfig

Affects = Literal["weights", "outcome", "report", "nothing"]
ControlKindName = Literal["edge", "vis", "depth", "seg", "keypoint", "upscale", "hdmap", "lidar"]
VisPresetName = Literal["none", "very_low", "low", "medium", "high", "very_high"]
BlurName = Literal["bilateral", "gaussian", "guided", "median", "laplacian_of_gaussian", "anisotropic_diffusion"]

VIDEO_SIZES_WH: dict[str, dict[str, tuple[int, int]]] = {
    "1080": {"1:1": (1024, 1024), "4:3": (1440, 1056), "3:4": (1056, 1440), "16:9": (1920, 1056), "9:16": (1056, 1920)},
    "720": {"1:1": (960, 960), "4:3": (960, 704), "3:4": (704, 960), "16:9": (1280, 704), "9:16": (704, 1280)},
    "512": {"1:1": (512, 512), "4:3": (640, 512), "3:4": (512, 640), "16:9": (640, 384), "9:16": (384, 640)},
    "480": {"1:1": (480, 480), "4:3": (640, 480), "3:4": (480, 640), "16:9": (768, 432), "9:16": (432, 768)},
    "256": {"1:1": (256, 256), "4:3": (320, 256), "3:4": (256, 320), "16:9": (320, 192), "9:16": (192, 320)},
    "128": {"1:1": (128, 128), "4:3": (160, 128), "3:4": (128, 160), "16:9": (160, 96), "9:16": (96, 160)},
}
"""Pixel sizes (width, height) by resolution and aspect ratio (spec/transfer1-training.md 5.4; "128" is our own)."""

RESULTS = "results"
"""Folder of the runs; also the folder below checkpoints/ of exports that other runs start from."""
TAKEN_EXPORT = "control.pt"
"""File name of such an export, below checkpoints/results/<run>/."""

LATENT_CHANNELS = 16
"""Channels of the video latents."""
LATENT_PIXELS = 8
"""Pixels along height and width that one latent pixel stands for."""
LATENT_FRAMES = 8
"""Frames that one latent frame stands for, after the first, which stands for itself."""


def affects(value: Affects) -> dict[str, Any]:
    """Mark one field where it differs from its section."""
    return {"affects": value}


class Section(BaseModel):
    """Base of all sections."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    section_affects: ClassVar[Affects] = "weights"


class Experiment(Section):
    """What the recipe is."""

    section_affects: ClassVar[Affects] = "nothing"

    family: Literal["transfer1"] = Field(json_schema_extra=affects("weights"))
    """The model family: which network, objective and export are used."""
    description: str
    """One sentence for the reports and the model card."""
    original_name: str = ""
    """Name of the same experiment in the original repository; it is accepted in the place of the recipe's name."""


class Data(Section):
    """Which clips are read and how they are cut."""

    dataset: str = Field(json_schema_extra=affects("outcome"))
    """Name of the dataset in config/config.yaml. Its content enters the identity of an attempt through its digest."""
    num_frames: PositiveInt = 121
    """Consecutive frames of a sample, of the form 8k + 1."""
    # A number where it comes from the command line, since it looks like one.
    resolution: Annotated[Literal["1080", "720", "512", "480", "256", "128"], BeforeValidator(str)] = "720"
    """Row of the size table; the aspect ratio nearest to the clip's picks the size (config/README.md lists them)."""
    text_tokens: PositiveInt = 512
    """Tokens that the network is given of every text; shorter ones are filled up with zeros, which it attends to. A
    network of several views is given as many for each view."""
    views: tuple[str, ...] = ()
    """Camera views that samples are made of, the main one first; a sample has the main one and others drawn at random,
    network.base.n_views in all. Empty for clips of one view."""
    view_indices: tuple[NonNegativeInt, ...] = ()
    """Row of each of `views` in the network's view embedding."""
    cache_latents: bool = False
    """Whether each clip's video is encoded once, by the rule cache_latents, and not in every step. A sample is then
    always the first `num_frames` frames of its clip, under a control that is still drawn anew; otherwise the window is
    drawn too. Not for the control upscale, whose samples are parts of the frames."""
    num_workers: NonNegativeInt = Field(default=8, json_schema_extra=affects("nothing"))
    """Loader processes of each reading rank."""


class Network(Section):
    """The frozen base and the control branch."""

    size: str = Field(json_schema_extra=affects("nothing"))
    """File below config/models/ that gives `base` and `control`; keys of the recipe go over it."""
    base: NetworkConfig
    """The frozen base network."""
    control: ControlNetworkConfig
    """The control branch."""
    rope_angles: Literal["bfloat16", "exact"] = "bfloat16"
    """How rotary angles are computed: as the released weights saw them, or exactly."""


class Checkpoints(Section):
    """Released weights that training starts from, as paths below checkpoints/; their hashes enter the identity."""

    section_affects: ClassVar[Affects] = "outcome"

    base: str
    """The base network's checkpoint."""
    control: str = ""
    """The control branch's checkpoint; empty starts from a copy of the base's first blocks."""
    init_from: str = ""
    """Run whose exported control branch training starts from, as results/<run>; `control` must then be empty."""
    tokenizer: str
    """Folder of the video tokenizer."""

    @property
    def start(self) -> str:
        """The control branch's start as a path below checkpoints/; empty for a copy of the base's first blocks."""
        return f"{self.init_from}/{TAKEN_EXPORT}" if self.init_from else self.control


class EdgeControl(Section):
    """Ranges of the random Canny thresholds, one pair a clip (spec/transfer1-training.md 5.6)."""

    threshold_low_min: NonNegativeInt = 20
    """Smallest lower threshold."""
    threshold_low_max: NonNegativeInt = 99
    """Largest lower threshold."""
    threshold_gap_min: NonNegativeInt = 50
    """Smallest distance of the upper threshold from the lower one."""
    threshold_gap_max: NonNegativeInt = 149
    """Largest distance; the upper threshold is 255 at most."""


class VisControl(Section):
    """Ranges of the random blur and loss of detail, drawn once a window (spec/transfer1-training.md 5.7)."""

    blurs: tuple[tuple[BlurName, ...], ...] = Field(
        default=(("bilateral",), ("gaussian",), ("bilateral", "gaussian")), min_length=1
    )
    """Combinations of blurs, one of which is drawn; its blurs are applied one after the other."""
    blur_probabilities: tuple[NonNegativeFloat, ...] = Field(default=(0.5, 0.3, 0.2), min_length=1)
    """Probability of each combination; they add up to 1."""
    blur_downscale_min: PositiveInt = 1
    """Smallest number of times that frames are scaled down while they are blurred."""
    blur_downscale_max: PositiveInt = 4
    """Largest number of times that frames are scaled down while they are blurred."""
    bilateral_diameter_min: PositiveInt = 15
    """Smallest diameter of the bilateral filter in pixels."""
    bilateral_diameter_max: PositiveInt = 49
    """Largest diameter of the bilateral filter."""
    bilateral_sigma_color_min: PositiveInt = 100
    """Smallest standard deviation over colours, which are 0 to 255."""
    bilateral_sigma_color_max: PositiveInt = 299
    """Largest standard deviation over colours."""
    bilateral_sigma_space_min: PositiveInt = 50
    """Smallest standard deviation over the distance in pixels."""
    bilateral_sigma_space_max: PositiveInt = 149
    """Largest standard deviation over the distance."""
    bilateral_iterations_min: PositiveInt = 1
    """Fewest times that the bilateral filter is applied."""
    bilateral_iterations_max: PositiveInt = 3
    """Most times that the bilateral filter is applied."""
    bilateral_on: Literal["loader", "device"] = "loader"
    """Where the bilateral filter runs: in the loader by OpenCV, where a window may take minutes, or on the training
    device, which loaders then only hand the frames to. Colours (0 to 255) then differ by 3 at most, in few pixels."""
    gaussian_size_min: PositiveInt = 21
    """Smallest width of the Gaussian kernel in pixels; an even one is raised by 1."""
    gaussian_size_max: PositiveInt = 29
    """Largest width of the Gaussian kernel."""
    gaussian_sigma_min: PositiveFloat = 10.5
    """Smallest standard deviation of the Gaussian kernel in pixels."""
    gaussian_sigma_max: PositiveFloat = 14.5
    """Largest standard deviation of the Gaussian kernel."""
    guided_radius_min: PositiveInt = 41
    """Smallest radius of the guided filter in pixels."""
    guided_radius_max: PositiveInt = 49
    """Largest radius of the guided filter."""
    guided_epsilon_min: PositiveFloat = 0.1
    """Smallest variance of colours (0 to 1) that the guided filter takes for flat."""
    guided_epsilon_max: PositiveFloat = 0.2
    """Largest variance of colours that the guided filter takes for flat."""
    guided_subsampling_min: PositiveInt = 3
    """Smallest number of times that frames are smaller while the guided filter fits its functions."""
    guided_subsampling_max: PositiveInt = 18
    """Largest number of times that frames are smaller for the guided filter."""
    median_size_min: PositiveInt = 9
    """Smallest width of the median's square in pixels; an even one is raised by 1."""
    median_size_max: PositiveInt = Field(default=15, le=254)
    """Largest width of the median's square."""
    laplacian_size_min: PositiveInt = 3
    """Smallest width of the kernels of the Laplacian of Gaussian in pixels; an even one is raised by 1."""
    laplacian_size_max: PositiveInt = Field(default=7, le=31)
    """Largest width of the kernels of the Laplacian of Gaussian."""
    laplacian_sigma_min: PositiveFloat = 0.5
    """Smallest standard deviation of the Laplacian's Gaussian kernel in pixels."""
    laplacian_sigma_max: PositiveFloat = 3.0
    """Largest standard deviation of the Laplacian's Gaussian kernel."""
    laplacian_threshold_probability: float = Field(default=0.5, ge=0.0, le=1.0)
    """Probability that the Laplacian's outlines become black and white."""
    laplacian_threshold_min: NonNegativeInt = 10
    """Smallest value above which an outline becomes white."""
    laplacian_threshold_max: NonNegativeInt = Field(default=30, le=255)
    """Largest value above which an outline becomes white."""
    diffusion_step_min: PositiveFloat = 0.2
    """Smallest weight of a neighbour of the same colour in a step of the anisotropic diffusion."""
    diffusion_step_max: PositiveFloat = 0.3
    """Largest weight of a neighbour of the same colour."""
    diffusion_contrast_min: PositiveFloat = 0.1
    """Smallest difference in colour (0 to 1) that the anisotropic diffusion still mixes."""
    diffusion_contrast_max: PositiveFloat = 0.2
    """Largest difference in colour that the anisotropic diffusion still mixes."""
    diffusion_iterations_min: PositiveInt = 10
    """Fewest steps of the anisotropic diffusion."""
    diffusion_iterations_max: PositiveInt = 14
    """Most steps of the anisotropic diffusion."""
    downscale_min: PositiveInt = 4
    """Smallest number of times that blurred frames are scaled down before they are scaled up again."""
    downscale_max: PositiveInt = 17
    """Largest number of times that blurred frames are scaled down."""
    downsize_before_blur: bool = False
    """Whether frames are scaled down before they are blurred, and up after, in the place of down and up after."""
    evaluation_preset: VisPresetName = Field(default="medium", json_schema_extra=affects("outcome"))
    """The fixed blur and loss of detail of held-out clips: in the held-out loss, previews and the report's samples. A
    change holds for what is measured after it."""


class SegControl(Section):
    """Painting of objects in random colours (spec/transfer1-training.md 5.9)."""

    # All colours of full saturation and value are 1530; colours differ.
    max_objects: PositiveInt = Field(default=100, le=1000)
    """Most objects that are painted; training draws a number from 0 to this, or to the clip's objects."""
    saturation_min: float = Field(default=0.1, ge=0.0, le=1.0)
    """Smallest saturation of a colour; the largest is 1."""
    value_min: float = Field(default=0.2, gt=0.0, le=1.0)
    """Smallest value (brightness) of a colour; the largest is 1."""


class KeypointControl(Section):
    """Drawing of skeletons (spec/transfer1-training.md 5.10)."""

    confidence_min: float = Field(default=0.6, gt=0.0, le=1.0)
    """Keypoints of less confidence are not drawn, and neither are links to them."""
    point_radius: PositiveInt = 2
    """Radius of a keypoint in pixels."""
    line_width: PositiveInt = 4
    """Width of a link in pixels."""


class UpscaleControl(Section):
    """Random loss of resolution, one a window (spec/transfer1-training.md 5.11)."""

    divisors: tuple[PositiveInt, ...] = Field(default=(6, 3, 2), min_length=1)
    """Numbers of times that the resolution is lowered."""
    probabilities: tuple[NonNegativeFloat, ...] = Field(default=(0.3, 0.5, 0.2), min_length=1)
    """Probability of each divisor; they add up to 1."""


class Control(Section):
    """The control input."""

    kind: ControlKindName
    """Which control input the branch learns."""
    also: tuple[ControlKindName, ...] = ()
    """Further control inputs that the branch learns together with `kind`: their latents lie behind its own along the
    hint's channels, and training leaves some of them out (objective.hint_dropout_rate)."""
    grayscale: bool = False
    """Whether the three colours of the hint are replaced by their mean."""
    edge: EdgeControl = EdgeControl()
    """Used where "edge" is `kind` or in `also`."""
    vis: VisControl = VisControl()
    """Used where "vis" is `kind` or in `also`."""
    seg: SegControl = SegControl()
    """Used where "seg" is `kind` or in `also`."""
    keypoint: KeypointControl = KeypointControl()
    """Used where "keypoint" is `kind` or in `also`."""
    upscale: UpscaleControl = UpscaleControl()
    """Used where "upscale" is `kind` or in `also`."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """All control inputs, in the order of the hint's channels."""
        return (self.kind, *self.also)

    @property
    def label(self) -> str:
        """The control inputs in a word, for people and file names: `edge`, or `edge-depth`."""
        return "-".join(self.kinds)


class Objective(Section):
    """The EDM objective (spec/transfer1-training.md 2)."""

    sigma_data: PositiveFloat = 0.5
    """Standard deviation of the scaled latents."""
    log_sigma_mean: float = 0.0
    """Mean of the normal distribution of ln sigma."""
    log_sigma_std: PositiveFloat = 1.0
    """Standard deviation of ln sigma."""
    adjust_video_noise: bool = True
    """Whether sigma is multiplied by the square root of the number of latent frames."""
    use_logvar: bool = True
    """Whether the loss is weighted by the base's frozen uncertainty head (Kendall form)."""
    loss_scale: PositiveFloat = 1.0
    """Factor on the loss."""
    text_dropout_rate: float = Field(default=0.2, ge=0.0, le=1.0)
    """Probability that a sample's text embedding is replaced by zeros."""
    hint_dropout_rate: float = Field(default=0.3, ge=0.0, le=1.0)
    """Probability that a sample is given mid-grey in the place of a control input, for each of several (control.also);
    one is always kept, and a single one is never dropped."""
    max_condition_frames: NonNegativeInt = 2
    """Given latent frames are drawn uniformly from 0 to this number; of several views, as many of each."""
    main_view_given: bool = False
    """Whether all frames of the main view are given, where there are several views."""
    condition_log_sigma_mean: float = -3.0
    """Mean of ln sigma of the noise on given frames."""
    condition_log_sigma_std: NonNegativeFloat = 2.0
    """Standard deviation of ln sigma of the noise on given frames."""


class Optimizer(Section):
    """AdamW over the control branch, with float32 master weights."""

    learning_rate: PositiveFloat = 2**-14.3
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay, on all parameters as in the original."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of the two moments."""
    eps: PositiveFloat = 1e-10
    """Added to the root of the second moment."""
    max_grad_norm: PositiveFloat = 1.0
    """Global L2 norm that gradients are clipped to."""


class Schedule(Section):
    """Linear warm-up, then constant; it does not depend on max_iter."""

    warmup_steps: NonNegativeInt = 2500
    """Optimizer steps of the warm-up."""
    warmup_start_factor: PositiveFloat = 1e-6
    """Factor on the learning rate at step 0."""


class Ema(Section):
    """Power-function moving averages of the weights (spec/transfer1-training.md 3.7)."""

    rates: tuple[PositiveFloat, ...] = Field(default=(0.1,), min_length=1)
    """Relative widths; the first one is exported."""


class Training(Section):
    """How long and with which batch."""

    max_iter: PositiveInt = Field(json_schema_extra=affects("outcome"))
    """Optimizer steps. Raising it continues the attempt."""
    seed: NonNegativeInt
    """Seed of every random draw."""
    global_batch_size: PositiveInt
    """Samples of one optimizer step = micro_batch_size x parallel.data x gradient_accumulation."""
    micro_batch_size: PositiveInt = Field(default=1, json_schema_extra=affects("outcome"))
    """Samples of one forward pass on one data-parallel rank."""
    gradient_accumulation: PositiveInt = Field(default=1, json_schema_extra=affects("outcome"))
    """Forward passes that one optimizer step adds up."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of parameters and activations; master weights, moments and averages are float32."""
    device: Literal["auto", "cuda", "cpu"] = Field(default="auto", json_schema_extra=affects("nothing"))
    """Where to train; auto takes CUDA where there is one."""


class Parallel(Section):
    """The layout over processes; the product of the degrees is the number of processes."""

    section_affects: ClassVar[Affects] = "outcome"

    tensor: PositiveInt = 8
    """Tensor-parallel degree; divides the heads of both networks."""
    sequence: bool = True
    """Whether tokens are sharded over the tensor-parallel group outside attention and MLP (sequence parallel)."""
    context: PositiveInt = 1
    """Context-parallel degree: tokens are sharded everywhere, and exchanged for heads in self-attention (all-to-all);
    tensor x context divides the heads of both networks."""
    data: PositiveInt = 1
    """Data-parallel degree."""
    shard: Literal["nothing", "base", "both"] = "nothing"
    """What FSDP2 shards over the data- and context-parallel ranks: nothing, the frozen base, or both networks with the
    optimizer."""
    recompute: Literal["everything", "all_but_attention", "mlp", "nothing"] = "all_but_attention"
    """What of a transformer block's activations backward computes again, from little memory to little time:
    everything but the block's input; all but the output of self-attention; the MLP and what is between the matrix
    products; nothing."""
    recompute_less: NonNegativeInt = 0
    """So many blocks of the base, the last ones, recompute one level less; fills the memory that is left."""
    encode_ahead: bool = Field(default=True, json_schema_extra=affects("nothing"))
    """Whether the tokenizer encodes the next batch beside a step, where there is memory for both."""
    compile: bool = True
    """Whether transformer blocks are compiled (GPUs only)."""
    attention: Literal["measured", "sdpa", "cudnn", "flash_attention_2", "flash_attention_3", "flash_attention_4"] = (
        "measured"
    )
    """Attention kernel on GPUs: the fastest of those installed, measured at the start; PyTorch's own choice (sdpa); or
    one by name."""


class Validation(Section):
    """Held-out loss at fixed noise levels with fixed noise."""

    section_affects: ClassVar[Affects] = "outcome"

    every: PositiveInt = 500
    """Steps between two measurements; one is made before the first step and one after the last."""
    sigmas: tuple[PositiveFloat, ...] = Field(default=(0.2, 0.5, 1.0, 2.0, 5.0, 20.0), min_length=1)
    """Noise levels (after the video adjustment)."""
    max_clips: PositiveInt = 16
    """Held-out clips that are measured at most."""


class Sampling(Section):
    """Drawing samples from the model (spec/transfer1-training.md 2.9)."""

    section_affects: ClassVar[Affects] = "report"

    num_steps: PositiveInt = 35
    """Steps of the second-order multistep sampler."""
    guidance: NonNegativeFloat = 7.0
    """g in x_cond + g (x_cond - x_uncond)."""
    sigma_min: PositiveFloat = 0.002
    """Smallest noise level."""
    sigma_max: PositiveFloat = 80.0
    """Largest noise level."""
    seed: NonNegativeInt = 1
    """Seed of the initial noise."""
    num_clips: NonNegativeInt = 2
    """Held-out clips that are drawn for the report."""


class Previews(Section):
    """Held-out clips that the training job draws with the present weights, to be looked at while it trains."""

    section_affects: ClassVar[Affects] = "nothing"

    every: NonNegativeInt = 2000
    """Steps between two previews; one is made before the first step and one after the last. 0 makes none."""
    num_clips: PositiveInt = 2
    """Held-out clips that are drawn, the first ones by id."""
    guidances: tuple[NonNegativeFloat, ...] = Field(default=(0.0, 3.0, 7.0), min_length=1)
    """Guidance values (see sampling.guidance), a column of the preview each: num_steps + 1 forward passes of a clip for
    guidance 0, twice as many for any other."""
    num_steps: PositiveInt = 20
    """Steps of the sampler, between the noise levels of [sampling]."""
    seed: NonNegativeInt = 1
    """Seed of the initial noise, which is the same in all previews."""


class Saving(Section):
    """Training checkpoints."""

    section_affects: ClassVar[Affects] = "nothing"

    every: PositiveInt = 1000
    """Steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_every: NonNegativeInt = 0
    """Checkpoints at multiples of this step number are kept for good; 0 keeps none but the newest. A multiple of
    `every`, at whose steps alone there are checkpoints."""


class Logging(Section):
    """Where metrics go besides the attempt's own record."""

    section_affects: ClassVar[Affects] = "nothing"

    wandb: Literal["online", "offline", "disabled"] = "disabled"
    """Weights & Biases mode."""
    wandb_project: str = "worldtune"
    """Weights & Biases project."""
    console_every: PositiveInt = 1
    """Steps between two console lines."""


class Health(Section):
    """What the trainer watches, and when it ends a run that is not well (training/health.py)."""

    section_affects: ClassVar[Affects] = "nothing"

    first_loss_min: NonNegativeFloat = 0.001
    """Smallest edm_loss of the first step of all; below it the run ends before its first update. A trained base leaves
    some tenths; next to nothing is left where no frame is left to predict, or the latents are constant."""
    first_loss_max: PositiveFloat = 2.0
    """Largest edm_loss of the first step of all; above it the run ends before its first update. edm_loss is the mean
    squared error under the objective's weight, without the uncertainty term, whose size is the base's own. The weight
    turns it into the error of what the network puts out, and that has a target of variance 1 at every noise level. So
    an output of zero leaves 1, a trained base less, and an output that knows nothing of its target (wrong weights,
    latents or wiring) 1 plus its own variance, mostly far more. That is the mean over clips: at high noise levels, one
    clip of strong contrast alone may leave twice as much, and a global batch may be one clip. Given frames have no
    error: where a share of the frames is always given, lower it by that share."""
    max_skipped_in_a_row: PositiveInt = 20
    """The run ends when so many steps in a row had a loss or gradient that is not finite; each makes no update."""
    max_skipped: PositiveInt = 100
    """The run ends when so many steps since step 0 had one."""
    max_data_wait: float = Field(default=0.05, gt=0.0, le=1.0)
    """Share of the step time that the slowest rank may wait for data, read and encoded, before the trainer warns: the
    mean over 20 steps, not the first ones after a start."""
    hang_seconds: PositiveFloat = 900.0
    """Seconds without progress of any process, in one part of a step, after which the job ends itself and names the
    process that keeps the others waiting; four times as long while the model is built, compiled, measured or saved."""


class Cluster(Section):
    """What the training job asks of SLURM; account and partitions are in config/config.yaml."""

    section_affects: ClassVar[Affects] = "nothing"

    gpus_per_node: PositiveInt = 8
    """GPUs that one node gives; the job takes as many nodes as its processes need."""
    cpus_per_gpu: PositiveInt = 12
    """CPU cores for each process."""
    mem_gb_per_gpu: PositiveFloat = 120.0
    """Main memory for each process, in GiB."""
    gpu_memory_gb: NonNegativeFloat = 79.0
    """Memory of one GPU in GiB, which a recipe must fit before a job is submitted; a GPU of "80 GB" has 79. 0 checks
    nothing."""
    runtime_minutes: PositiveInt = 1440
    """Time limit of one job; a run that needs longer continues in the next one."""
    save_seconds: PositiveInt = Field(default=600, le=65535)
    """Seconds before the time limit at which SLURM asks the job to save and end: a step and a checkpoint."""


class Recipe(Section):
    """A resolved recipe."""

    experiment: Experiment
    data: Data
    network: Network
    checkpoints: Checkpoints
    control: Control
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    ema: Ema = Ema()
    training: Training
    parallel: Parallel = Parallel()
    validation: Validation = Validation()
    sampling: Sampling = Sampling()
    previews: Previews = Previews()
    saving: Saving = Saving()
    logging: Logging = Logging()
    health: Health = Health()
    cluster: Cluster = Cluster()

    @property
    def world_size(self) -> int:
        """Processes of a training job."""
        return self.parallel.tensor * self.parallel.context * self.parallel.data

    @property
    def num_nodes(self) -> int:
        """Nodes that a training job takes."""
        return math.ceil(self.world_size / self.cluster.gpus_per_node)

    @property
    def processes_per_node(self) -> int:
        """Processes, one a GPU, on each node of a training job."""
        return self.world_size // self.num_nodes

    @property
    def num_latent_frames(self) -> int:
        """Latent frames of a sample."""
        return (self.data.num_frames - 1) // LATENT_FRAMES + 1

    @property
    def num_views(self) -> int:
        """Views that are stacked along time in one sample."""
        return self.network.base.n_views

    @property
    def takes_given_frames(self) -> bool:
        """Whether the networks have a channel that marks given frames."""
        return self.network.base.in_channels + int(self.network.base.is_extend_model) > LATENT_CHANNELS

    @property
    def video_sizes_wh(self) -> dict[str, tuple[int, int]]:
        """Pixel sizes (width, height) by aspect ratio."""
        return VIDEO_SIZES_WH[self.data.resolution]
