"""The catalogue of checkpoints: which repository and file serves what, under which terms, and at which revision.

The entries are in config/checkpoints.toml. A name is `<owner>/<repository>/<file>` where single files are asked for,
and `<owner>/<repository>` where a program needs the folder.
"""

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError, model_validator

from worldtune.common.errors import WorldtuneError

CATALOGUE_FILE = Path("config/checkpoints.toml")
FILE_LIST = "files.json"
"""Last written file of a folder entry: names and SHA-256 of its files."""


class Entry(BaseModel):
    """Base of the catalogue's parts."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class CatalogueFile(Entry):
    """One file that is asked for by itself."""

    purpose: str
    """What it is."""
    size_gb: NonNegativeFloat = 0.0
    """Approximate size in 10^9 bytes, from the number of parameters; 0 where it is not known."""
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")
    """SHA-256 of the content where it is known."""


class Folder(Entry):
    """The files of a repository that are needed together; names may be patterns (*, ?)."""

    required: tuple[str, ...] = Field(min_length=1)
    """Patterns of files that must exist; each must match at least one."""
    optional: tuple[str, ...] = ()
    """Patterns of files that are taken where they exist."""
    weights: tuple[str, ...] = ()
    """Alternative patterns of the weights; the first that matches is taken, the others are left."""
    size_gb: NonNegativeFloat = 0.0
    """Approximate size in 10^9 bytes of what is taken; 0 where it is not known."""
    sha256: dict[str, str] = {}
    """SHA-256 by file name where it is known."""


class Repository(Entry):
    """One repository: a hub's, or one that rules generate (the demo's)."""

    id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Owner and name."""
    purpose: str
    """What it is used for."""
    kind: Literal["hub", "generated"] = "hub"
    """Whether it is downloaded, or made by a rule of the workflow."""
    revision: str = "main"
    """A commit (40 hexadecimal digits), or a branch that the first fetch resolves and records."""
    pinned: bool = False
    """Whether `revision` is a commit; where it is not, the first fetch says so and pins it in the lock file."""
    licence: str = ""
    """The licence's name."""
    gate: str = ""
    """What has to be accepted on the repository's page before a download is allowed; empty where nothing is."""
    files: dict[str, CatalogueFile] = {}
    """Files that are asked for one by one."""
    folder: Folder | None = None
    """Files that are asked for together."""

    @model_validator(mode="after")
    def _consistent(self) -> "Repository":
        is_commit = len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")
        if self.kind == "hub" and self.pinned != is_commit:
            raise ValueError(f"revision {self.revision!r} and pinned = {self.pinned} contradict each other")
        if bool(self.files) == (self.folder is not None):
            raise ValueError("give either files (asked for one by one) or folder (asked for together)")
        return self


@dataclass(frozen=True)
class Request:
    """One name of the catalogue."""

    repository: Repository
    file: str
    """File name below the repository; empty for a folder."""

    @property
    def name(self) -> str:
        """The name that was asked for."""
        return f"{self.repository.id}/{self.file}" if self.file else self.repository.id

    def output(self, checkpoints: Path) -> Path:
        """Return what a rule that provides this declares: the file itself, or the folder's list of files."""
        return checkpoints / self.repository.id / (self.file or FILE_LIST)

    def describe(self) -> str:
        """Return one line for people."""
        repository = self.repository
        if repository.folder is not None:
            purpose, size_gb = repository.purpose, repository.folder.size_gb
        else:
            purpose, size_gb = repository.files[self.file].purpose, repository.files[self.file].size_gb
        size = "generated" if repository.kind == "generated" else f"~{size_gb:.1f} GB" if size_gb else "size unknown"
        gate = ", gated" if repository.gate else ""
        return f"{self.name}: {purpose} ({size}{gate})"


class Catalogue(Entry):
    """All entries."""

    repository: tuple[Repository, ...]

    @model_validator(mode="after")
    def _unique(self) -> "Catalogue":
        ids = [repository.id for repository in self.repository]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"listed twice: {', '.join(twice)}")
        return self

    @property
    def requests(self) -> tuple[Request, ...]:
        """Everything that can be asked for, in the catalogue's order."""
        return tuple(
            Request(repository, file)
            for repository in self.repository
            for file in (repository.files if repository.folder is None else [""])
        )

    def find(self, name: str) -> Request:
        """Return the entry called `name`; a folder is also found by the path of its list of files.

        Raises:
            WorldtuneError: there is none; the message has the nearest names.
        """
        wanted = name.strip("/").removesuffix("/" + FILE_LIST)
        requests = {request.name: request for request in self.requests}
        if wanted in requests:
            return requests[wanted]
        near = difflib.get_close_matches(wanted, requests, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(requests)}."
        raise WorldtuneError(f"{name} is not in the checkpoint catalogue ({CATALOGUE_FILE}): {advice}")

    def check_available(self, name: str, key: str, checkpoints: Path) -> None:
        """Check that a checkpoint is listed here or lies below `checkpoints`; nothing is downloaded.

        Args:
            name: see `find`.
            key: where it is asked for, for the message.
            checkpoints: folder of all checkpoints.

        Raises:
            WorldtuneError: it is in neither; the message has the nearest names.
        """
        if (checkpoints / name).exists():
            return
        try:
            self.find(name)
        except WorldtuneError as error:
            raise WorldtuneError(f"{key} = {name!r}, but there is no {checkpoints / name}. {error}") from error

    def network_files(self, name: str, key: str, checkpoints: Path) -> list[Path]:
        """Return what a job waits for that reads a network's folder; nothing is downloaded.

        Args:
            name: a folder below `checkpoints`.
            key: where it is asked for, for the message.
            checkpoints: folder of all checkpoints.

        Returns:
            The list of files of a folder that a rule provides; the files themselves where they were put there by hand.

        Raises:
            WorldtuneError: it is neither listed here nor there, or holds no files; the message has the nearest names.
        """
        self.check_available(name, key, checkpoints)
        if name in {request.name for request in self.requests}:
            return [checkpoints / name / FILE_LIST]
        folder = checkpoints / name
        files = own_files(folder) if folder.is_dir() else []
        if not files:
            raise WorldtuneError(
                f"{key} = {name!r}, but {folder} is no folder with files. Put the network's files there."
            )
        return files


def own_files(folder: Path) -> list[Path]:
    """Return the files of a folder by name, but not those in its subfolders, and none with a hidden name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def load_catalogue(path: Path = CATALOGUE_FILE) -> Catalogue:
    """Read the catalogue.

    Raises:
        WorldtuneError: the file is missing, is no TOML, or an entry is not as the classes above say.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WorldtuneError(f"{path} does not exist. Run from the root of the repository.") from error
    except tomllib.TOMLDecodeError as error:
        raise WorldtuneError(f"{path} is no valid TOML: {error}.") from error
    try:
        return Catalogue.model_validate(values)
    except ValidationError as error:
        problems = [
            f"{_place(values, item['loc'])}: {item['msg'].removeprefix('Value error, ')}" for item in error.errors()
        ]
        raise WorldtuneError(f"{path} has entries that are not understood:\n  " + "\n  ".join(problems)) from error


def _place(values: dict[str, object], location: tuple[int | str, ...]) -> str:
    """Return where a problem is, with the repository's id in the place of its number."""
    if len(location) < 2 or not isinstance(location[1], int):
        return ".".join(map(str, location)) or "the catalogue"
    repositories = values["repository"]
    entry = repositories[location[1]] if isinstance(repositories, list) else None
    name = entry.get("id", f"entry {location[1] + 1}") if isinstance(entry, dict) else f"entry {location[1] + 1}"
    return ": ".join([str(name), *([".".join(map(str, location[2:]))] if location[2:] else [])])
