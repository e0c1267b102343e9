"""What config/config.yaml may say of a dataset: unknown keys are errors, a description under each field."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.annotators import Annotators
from worldtune.dataset.captioner import CaptionerConfig
from worldtune.dataset.clips import COMPUTED_CONTROLS, COMPUTED_IN_TRAINING, CONTROL_SUFFIXES, TextStore
from worldtune.dataset.layout import Layout, ViewText
from worldtune.recipe.project import config_path, read_config
from worldtune.recipe.schema import Recipe

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
VIDEO_FOLDER = "videos"
"""Folder of the videos in the original's layout."""
REPOSITORY_PATTERN = re.compile(r"[\w.-]+/[\w.-]+")
VIEW_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MAX_SHARDS = 9999
"""Shards are named by four digits."""
WORLD_CAMERAS: dict[str, tuple[str, ...]] = {
    "objects": (),
    "driving": (
        "pinhole_front",
        "pinhole_front_left",
        "pinhole_front_right",
        "pinhole_side_left",
        "pinhole_side_right",
    ),
}
"""Cameras of each rendered world that may be views; a dataset without views has the first, or the only one."""
WORLD_CONTROLS: dict[str, tuple[str, ...]] = {
    "objects": ("depth", "seg", "keypoint"),
    "driving": ("hdmap", "lidar"),
}
"""Controls that are rendered with each world's videos."""
LIST_SUFFIXES = (".csv", ".jsonl", ".parquet")
"""Formats of a list of captions."""
CUTTABLE_KINDS = ("folder", "huggingface")
"""Kinds of dataset whose videos can be cut; HD-VILA's metadata cut its own."""
TEXT_CHANNELS = {"google-t5/t5-11b": 1024, "worldtune/demo-t5": 64}
"""Width of the embeddings of each text encoder in the catalogue, known before it is downloaded or made."""
NEAR = 0.7
"""Below this likeness a suggestion leads astray, and the whole list says more."""


class CutConfig(BaseModel):
    """How long videos are divided into clips."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    scenes: bool = True
    """Whether videos are cut where PySceneDetect sees the scene change."""
    threshold: PositiveFloat = 27.0
    """Mean change of hue, saturation and brightness from a frame to the next (0 to 255) that is a change of scene."""
    min_s: PositiveFloat
    """Shorter parts are not used and keep a row that says so; in seconds."""
    max_s: PositiveFloat | None = None
    """Longer scenes are divided into parts of this length, in seconds. null keeps them whole."""

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.max_s is not None and self.max_s < self.min_s:
            raise ValueError(f"max_s {self.max_s:g} is less than min_s {self.min_s:g}, so that no part could be used")
        if not self.scenes and self.max_s is None:
            raise ValueError("scenes is false and max_s is null, so that nothing would be cut; set one of them")
        return self


class DatasetConfig(BaseModel):
    """One dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    kind: Literal["folder", "huggingface", "synthetic", "hdvila"]
    """Where the videos come from: a folder of yours, a data set repository of the Hugging Face hub, rendered scenes, or
    the HD-VILA download."""
    path: str = ""
    """Folder of the videos (kind folder), searched with its subfolders. Hidden names and subfolders that are named
    after a control (depth, seg, ...) are passed over; those hold the given controls, as depth/NAME.mp4 beside NAME.mp4.
    """
    captions: str = ""
    """List of captions (kind folder), a file anywhere, .csv, .jsonl or .parquet with no columns but video (path below
    `path`), caption and, where a video is cut into clips, start_s and end_s: both, or neither for a whole video. Videos
    outside the list take NAME.txt, or "caption" of NAME.json, beside them; so do all where this is empty."""
    captioner: CaptionerConfig | None = None
    """How captions are made from the videos that have none; without it such videos are not used."""
    layout: Layout = "beside"
    """Where the files of a video lie (kind folder). beside: captions beside the video, controls in folders there.
    original: a folder for each kind below `path`, as Cosmos-Transfer1 has it: videos/NAME.mp4, metas/NAME.txt,
    t5_xxl/NAME.pickle, depth/NAME.mp4 and so on; with `views`, videos/VIEW/NAME.mp4, hdmap/VIEW/NAME.mp4,
    t5_xxl/VIEW/NAME.pkl and cache/prefix_VIEW.pkl. Without a caption of its own, NAME_0 takes that of NAME."""
    cut: CutConfig | None = None
    """Divides long videos into clips, each with the caption of its video, as {min_s: 5, max_s: 10}: `min_s` seconds is
    the shortest part that is used (others keep a row that says so), `max_s` (or null) the longest; `scenes` (true) cuts
    where PySceneDetect sees the scene change, by more than `threshold` (27.0). null takes videos as they are."""
    views: dict[str, str] = {}
    """Cameras of a multi-view dataset, the main one first: folder below the source -> caption of the videos there that
    have none of their own. The video of a scene is FOLDER/NAME.mp4 in each, with the same frames; its given controls
    are beside it, as FOLDER/hdmap/NAME.mp4. Only the main camera's caption may be empty. Empty for other datasets.
    """
    repository: str = ""
    """Data set repository (kind huggingface), as organization/name: videos as files, with their captions in
    metadata.csv, .jsonl or .parquet (column file_name and `caption_column`), or parquet files that hold the videos."""
    revision: str = "main"
    """Branch, tag or commit of the repository (kind huggingface); a commit stays what it is."""
    folder: str = ""
    """Folder of the repository that is read (kind huggingface), with its subfolders; empty reads all."""
    caption_column: str = "caption"
    """Column of the captions, in the metadata and in parquet files (kind huggingface)."""
    min_success: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of a shard's videos that must have arrived (kinds hdvila and huggingface). With less its job fails: an
    address that was blocked, or a wrong repository, is found at the first shard and not after all of them."""
    num_shards: PositiveInt = Field(le=MAX_SHARDS)
    """Jobs of each stage. A few hundred clips a shard are a good number; a change makes every manifest again, but no
    clip whose file is there."""
    held_out_fraction: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Share of the clips that are kept out of training; at least one is. Parts of one video stay together."""
    min_clips: int = Field(default=2, ge=2)
    """Usable clips without which the dataset is not fit to train on."""
    min_frames: PositiveInt = 121
    """Clips with fewer frames are not used."""
    controls: tuple[str, ...] = ("edge",)
    """Controls that every clip must have: edge is computed, those of `annotate` are made by networks, the others
    (depth, seg, keypoint, hdmap, lidar) are given beside the videos, frame by frame. Clips that are cut out of a video,
    such as those of kind hdvila, can have none that is given. Recipes of the controls vis and upscale need none, since
    training computes them."""
    annotate: Annotators = Annotators()
    """Controls that networks make from the clips: a table for each of them, which may be empty. The others of
    `controls`, apart from edge, are given."""
    text: Literal["made", "given"] = "made"
    """Whether text embeddings are made from the captions, or given as t5_xxl/NAME.pickle, .pkl or .safetensors where
    the layout has the controls (kind folder). Given ones need no captions. With `views`, a video of the main view has
    the embedding given for it, and one of another view that of its view, t5_xxl/prefix_VIEW.pkl (layout original:
    cache/prefix_VIEW.pkl)."""
    view_text: ViewText = "alone"
    """How the embedding of a view is used (text: given). alone: it is the text of all videos of a view other than the
    main one. before: every view has one, and each of its videos has it before its own."""
    text_store: TextStore = "pickle"
    """Format of the embeddings' files: the pickle of Cosmos-Transfer1, or safetensors, which are read faster. Training
    reads either; a change makes the embeddings again."""
    text_encoder: str = "google-t5/t5-11b"
    """T5 encoder for the captions, as a folder below checkpoints/."""
    text_max_tokens: PositiveInt = 512
    """Longer captions are cut to this number of tokens."""
    text_precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Type that the T5 encoder computes in, on GPUs and CPUs alike; a change makes the embeddings again, whose files
    hold float16 in either case. float32 is as published, slower on GPUs, and takes twice the memory."""
    world: Literal["objects", "driving"] = "objects"
    """What is rendered (kind synthetic): moving objects, or streets as cameras on a car see them."""
    num_clips: PositiveInt | None = None
    """Scenes to render (kind synthetic)."""
    max_clips: PositiveInt | None = None
    """Videos to download (kind hdvila): the first ones of the metadata, one clip of each."""
    seed: NonNegativeInt = 0
    """Seed of the scenes (kind synthetic)."""
    num_frames: PositiveInt = 33
    """Frames of each scene (kind synthetic)."""
    width: PositiveInt = Field(default=320, multiple_of=2)
    """Pixels of a row (kind synthetic)."""
    height: PositiveInt = Field(default=192, multiple_of=2)
    """Rows of a frame (kind synthetic)."""
    fps: PositiveFloat = 24.0
    """Frames a second (kind synthetic)."""

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, controls: tuple[str, ...]) -> tuple[str, ...]:
        for kind in controls:
            if kind in COMPUTED_IN_TRAINING:
                raise ValueError(f"the control {kind!r} has no files: training computes it. Leave it out")
            if kind not in CONTROL_SUFFIXES:
                raise ValueError(f"there is no control {kind!r}{_suggest(kind, CONTROL_SUFFIXES)}")
        if len(set(controls)) < len(controls):
            raise ValueError("a control is named twice")
        return controls

    @field_validator("views")
    @classmethod
    def _known_views(cls, views: dict[str, str]) -> dict[str, str]:
        for number, (name, caption) in enumerate(views.items()):
            if not VIEW_PATTERN.fullmatch(name):
                raise ValueError(f"{name!r} is no folder of a view; its name is made of letters, digits, _, - and .")
            if name in CONTROL_SUFFIXES:
                raise ValueError(f"{name!r} is the folder of a control and can be no view")
            if number and not caption.strip():
                raise ValueError(f"{name!r} needs a caption; only the main camera, which comes first, may have none")
        if len(views) == 1:
            raise ValueError("give at least two views, or none")
        return views

    @field_validator("text_encoder")
    @classmethod
    def _repository(cls, name: str) -> str:
        parts = name.split("/")
        if not all(parts) or any(part in (".", "..") for part in parts):
            raise ValueError(f"{name!r} is no folder below checkpoints/, such as google-t5/t5-11b")
        return name

    @model_validator(mode="after")
    def _keys_of_kind(self) -> Self:
        keys = {
            "folder": {"path", "captions", "layout", "text", "view_text"},
            "synthetic": {"world", "num_clips", "seed", "num_frames", "width", "height", "fps"},
            "hdvila": {"max_clips", "min_success"},
            "huggingface": {"repository", "revision", "folder", "caption_column", "min_success"},
        }
        for kind, names in keys.items():
            foreign = sorted((names - keys[self.kind]) & self.model_fields_set)
            if foreign:
                raise ValueError(f"{', '.join(foreign)} belongs to kind {kind!r}, but the kind is {self.kind!r}")
        if self.kind == "folder" and not self.path:
            raise ValueError("kind 'folder' needs path, the folder of the videos")
        if "view_text" in self.model_fields_set and not (self.views and self.text == "given"):
            raise ValueError("view_text belongs to given embeddings (text: given) of several views")
        if self.captions and Path(self.captions).suffix not in LIST_SUFFIXES:
            raise ValueError(f"captions: {self.captions!r} must end in {', '.join(LIST_SUFFIXES)}")
        if self.kind == "synthetic" and self.num_clips is None:
            raise ValueError("kind 'synthetic' needs num_clips")
        if self.kind == "synthetic":
            self._check_world()
        if self.kind == "huggingface" and not REPOSITORY_PATTERN.fullmatch(self.repository):
            raise ValueError(
                f"kind 'huggingface' needs repository, such as organization/name; it is {self.repository!r}"
            )
        if self.folder and any(part in ("", ".", "..") for part in self.folder.split("/")):
            raise ValueError(f"folder: {self.folder!r} is no path below the repository, such as data/train")
        if self.kind == "hdvila" and self.max_clips is None:
            raise ValueError("kind 'hdvila' needs max_clips, the number of videos to download")
        if self.cut is not None and (self.views or self.kind not in CUTTABLE_KINDS):
            what = "datasets with views" if self.views else f"kind {self.kind!r}"
            raise ValueError(f"cut: {what} cannot be cut; leave it out. Kinds that can: {', '.join(CUTTABLE_KINDS)}")
        made = [kind for kind in Annotators.model_fields if self.annotate.find(kind)]
        unused = [kind for kind in made if kind not in self.controls]
        if unused:
            raise ValueError(f"annotate makes {', '.join(unused)}, which controls does not name. Add or remove it")
        given = [kind for kind in self.controls if kind not in (*COMPUTED_CONTROLS, *made)]
        if self.kind == "huggingface" and (given or self.views):
            what = f"controls {', '.join(given)} cannot be given" if given else "views cannot be told apart"
            raise ValueError(f"kind 'huggingface': {what}; download the videos and use kind 'folder'")
        if (self.kind == "hdvila" or self.cut is not None) and given:
            cutter = "kind 'hdvila'" if self.kind == "hdvila" else "`cut`"
            raise ValueError(
                f"controls: {cutter} cuts its clips out of longer videos, for which {', '.join(given)} cannot be "
                "given. Let a network make them (annotate), or put videos with these files into a folder (kind "
                "'folder')"
            )
        return self

    def _check_world(self) -> None:
        cameras, controls = WORLD_CAMERAS[self.world], ("edge", *WORLD_CONTROLS[self.world])
        for view in self.views:
            if view not in cameras:
                raise ValueError(
                    f"views: world {self.world!r} has no camera {view!r}{_suggest(view, cameras) if cameras else ''}"
                )
        for kind in self.controls:
            if kind not in controls:
                raise ValueError(f"controls: world {self.world!r} has no {kind}, only {', '.join(controls)}")

    def __hash__(self) -> int:
        """Hash the fields; a table of views has no hash of its own."""
        return hash(self.model_dump_json(exclude={"views"}))


def _suggest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=NEAR)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f"; expected one of {', '.join(names)}" if names else "; it has none yet"


def parse_datasets(values: Any, where: str) -> dict[str, DatasetConfig]:
    """Check the table `datasets`.

    Args:
        values: dataset name -> table of keys.
        where: the file, for the messages.

    Raises:
        WorldtuneError: a name or key is wrong; the message names all of them.
    """
    if not isinstance(values, Mapping):
        raise WorldtuneError(f"{where}: datasets must be a table of dataset names.")
    datasets: dict[str, DatasetConfig] = {}
    problems: list[str] = []
    for name, table in values.items():
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            problems.append(f"{name!r}: a dataset's name is made of letters, digits, _ and -")
            continue
        try:
            datasets[name] = DatasetConfig.model_validate(table)
        except ValidationError as error:
            problems += [f"{name}.{_describe(detail)}" for detail in error.errors()]
    if problems:
        raise WorldtuneError(f"{where}, datasets:\n  " + "\n  ".join(problems))
    return datasets


def _describe(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        *tables, name = map(str, detail["loc"])
        return f"{key}: there is no such key{_suggest(name, _table_at(tables).model_fields)}"
    return f"{key}: {detail['msg']}" if key else str(detail["msg"])


def _table_at(names: Iterable[str]) -> type[BaseModel]:
    """Return the class of a table within that of a dataset."""
    table: type[BaseModel] = DatasetConfig
    for name in names:
        annotation = table.model_fields[name].annotation
        # A table that may be left out is "its class, or None".
        parts = (annotation, *get_args(annotation))
        table = next(part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))
    return table


def load_datasets(path: Path) -> dict[str, DatasetConfig]:
    """Return the datasets of a project's config file by name; `${oc.env:NAME}` in it is resolved.

    Raises:
        WorldtuneError: the file is missing or wrong; the message names the keys.
    """
    return parse_datasets(read_config(Path(path)).get("datasets", {}), str(path))


def find_dataset(path: Path, name: str) -> DatasetConfig:
    """Return one dataset of a project's config file.

    Raises:
        WorldtuneError: the file is wrong or has no such dataset.
    """
    datasets = load_datasets(path)
    if name not in datasets:
        raise WorldtuneError(f"{path} has no dataset {name!r}{_suggest(name, datasets)}.")
    return datasets[name]


def dataset_of(run: str, recipe: Recipe, datasets: Mapping[str, DatasetConfig]) -> DatasetConfig:
    """Return the dataset that a run's recipe trains on.

    Raises:
        WorldtuneError: there is no such dataset, or it will not have what the recipe needs.
    """
    name, what, where = recipe.data.dataset, f"Recipe {run}", config_path()
    if name not in datasets:
        raise WorldtuneError(
            f"{what}: data.dataset = {name!r}, but {where} has no such dataset{_suggest(name, datasets)}."
        )
    config = datasets[name]
    missing = [kind for kind in recipe.control.kinds if kind not in (*COMPUTED_IN_TRAINING, *config.controls)]
    if missing:
        raise WorldtuneError(
            f"{what} trains the {recipe.control.label} control, but dataset {name} has only {list(config.controls)}. "
            f"Add {', '.join(map(repr, missing))} to its controls in {where}."
        )
    if config.text_max_tokens > recipe.data.text_tokens:
        raise WorldtuneError(
            f"{what} takes {recipe.data.text_tokens} text tokens (data.text_tokens), but dataset {name} has up to "
            f"{config.text_max_tokens} (text_max_tokens in {where}). Make one of them the other."
        )
    channels, expected = TEXT_CHANNELS.get(config.text_encoder), recipe.network.base.crossattn_emb_channels
    if channels is not None and channels != expected:
        fitting = [encoder for encoder, width in TEXT_CHANNELS.items() if width == expected]
        raise WorldtuneError(
            f"{what} takes text embeddings of {expected} channels (network.base.crossattn_emb_channels), but dataset "
            f"{name} has {channels} of {config.text_encoder} (datasets.{name}.text_encoder in {where})."
            + (f" Set text_encoder to {' or '.join(fitting)}, or train another network." if fitting else "")
        )
    return config


def source_folder(name: str, config: DatasetConfig, datasets: Path = Path("datasets")) -> Path:
    """Return the folder of a dataset's source videos; rendered and downloaded ones lie in datasets/<name>/source."""
    if config.kind != "folder":
        return datasets / name / "source"
    return Path(config.path) / VIDEO_FOLDER if config.layout == "original" else Path(config.path)


def missing_folder(name: str, config: DatasetConfig) -> str:
    """Say what is wrong where the folder of a dataset's videos does not exist; empty where it does or is made here."""
    if config.kind != "folder" or Path(config.path).is_dir():
        return _missing_videos(name, config)
    return (
        f"{config_path()}: datasets.{name}.path = {config.path!r} is {Path(config.path).absolute()}, which is no "
        "folder. Put the videos there, or mend the path; a relative one starts at the repository's root."
    )


def missing_list(name: str, config: DatasetConfig) -> str:
    """Say what is wrong where a dataset names a list of captions that does not exist; empty where it does not."""
    if config.kind != "folder" or not config.captions or Path(config.captions).is_file():
        return ""
    return (
        f"{config_path()}: datasets.{name}.captions = {config.captions!r} is {Path(config.captions).absolute()}, which "
        "is no file. Put the list there, or mend the path; a relative one starts at the repository's root."
    )


def _missing_videos(name: str, config: DatasetConfig) -> str:
    videos = Path(config.path) / VIDEO_FOLDER
    if config.kind != "folder" or config.layout != "original" or videos.is_dir():
        return ""
    return (
        f"{config_path()}: datasets.{name}.layout = 'original', but {videos.absolute()} is no folder. Put the videos "
        "there, or set layout to 'beside'."
    )
