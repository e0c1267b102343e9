"""Data set repositories of the hub (kind huggingface): first what one holds, then the files of each shard.

A repository holds videos as files, with the captions in metadata.csv, .jsonl or .parquet in their folder or one above
(columns file_name and the caption's, as the `datasets` library lays out a "videofolder"), or parquet files that hold
the videos themselves, as bytes. `source/repository.jsonl` lists its files at one commit, and each shard's job downloads
only its own: a clip's shard is a hash of its file in the repository. A download that was interrupted goes on where it
stopped. Videos lie in the dataset's source/ under their names; those out of a parquet file NAME.parquet are
NAME/<row>.mp4, and that file itself goes once they are there. Where another commit's file cannot be had or read, its
clips keep their rows, with the reason, and the videos of the earlier one go.
"""

import json
import logging
import os
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from worldtune.common.disk import disk_error_number, disk_errors_named
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import canonical_json, digest, exclusive, sha256_file, write_text
from worldtune.common.hub import Hub, RemoteFile, git_sha1, is_unsafe_name, transfer
from worldtune.dataset.clips import VIDEO_SUFFIXES, clip_id, shard_of
from worldtune.dataset.config import DatasetConfig, source_folder
from worldtune.dataset.download import DOWNLOAD_FAILED, PARTS, check_success
from worldtune.dataset.embedded import ParquetError, unpack
from worldtune.dataset.fetched import COLUMNS, STAGE
from worldtune.dataset.ledger import open_ledger
from worldtune.dataset.manifest import manifest_path, write_manifest
from worldtune.dataset.records import read_records
from worldtune.dataset.replaced import remove_replaced, tell_of_unlisted
from worldtune.dataset.work import Outcome, Task, do_tasks

VERSION = 1

LIST_FILE = "repository.jsonl"
METADATA_NAMES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
FILE_COLUMN = "file_name"
TRIES = 2
"""Downloads of a file whose content is not what the hub says, before it counts as failed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ListedFile:
    """One file of the repository that holds one clip, or many in a parquet file."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    git_sha1: str
    caption: str | None
    """The caption of a video in the metadata; None where they have none, and for parquet files."""
    problem: str = ""
    """Why there is nothing to download."""

    @property
    def holds_many(self) -> bool:
        """Whether it is a parquet file."""
        return self.name.endswith(".parquet")


@dataclass(frozen=True, kw_only=True)
class FetchJob:
    """One file to fetch."""

    repository: str
    commit: str
    file: ListedFile
    source: Path
    """The dataset's source folder."""
    shard: str
    caption_column: str
    hub: Hub
    earlier: tuple[dict[str, Any], ...] = ()
    """Clips that an earlier commit's file of this name gave, or that were lost with it."""

    @property
    def url(self) -> str:
        """Address of the file at its commit."""
        return _url(self.hub, self.repository, self.commit, self.file.name)


def list_repository(name: str, config: DatasetConfig, *, hub: Hub, datasets: Path = Path("datasets")) -> Path:
    """Write the list of a repository's videos and parquet files at one commit, with the captions of its metadata.

    Args:
        name: the dataset's name.
        config: its configuration, of kind huggingface.
        hub: where to ask.
        datasets: folder of all datasets.

    Returns:
        The path of the list: a line with the commit, then one for each file, sorted by name.

    Raises:
        WorldtuneError: the hub cannot be reached or refuses, or the metadata are wrong.
    """
    source = source_folder(name, config, datasets)
    commit, remote = _remote_files(config, hub)
    captions: dict[str, str | None] = {}
    for file in remote.values():
        if posixpath.basename(file.name) in METADATA_NAMES:
            captions |= _read_metadata(file, config, commit, source, hub)
    files = []
    for key in sorted(remote.keys() | captions.keys()):
        is_video = posixpath.splitext(key)[1].lower() in VIDEO_SUFFIXES
        is_shard = key.endswith(".parquet") and posixpath.basename(key) not in METADATA_NAMES
        if key not in remote:
            problem = "not in the repository: the metadata name it, but there is no such file"
            files.append(ListedFile(name=key, size=0, sha256="", git_sha1="", caption=captions[key], problem=problem))
        elif is_video or is_shard:
            found = remote[key]
            caption = None if is_shard else captions.get(key)
            files.append(
                ListedFile(name=key, size=found.size, sha256=found.sha256, git_sha1=found.git_sha1, caption=caption)
            )
    if not files:
        raise WorldtuneError(
            f"{_where(config, hub)} holds neither videos ({', '.join(sorted(VIDEO_SUFFIXES))}) nor parquet files. Mend "
            f"datasets.{name}.repository or .folder."
        )
    head = {"format": 1, "repository": config.repository, "commit": commit}
    path = source / LIST_FILE
    write_text(path, "".join(canonical_json(line) + "\n" for line in [head, *map(asdict, files)]))
    logger.info("%s at commit %s: %d files", config.repository, commit, len(files))
    return path


def _where(config: DatasetConfig, hub: Hub) -> str:
    return f"{hub.endpoint}/datasets/{config.repository}"


def _url(hub: Hub, repository: str, commit: str, name: str) -> str:
    # Imported late: planning the workflow needs no hub.
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, name, repo_type="dataset", revision=commit, endpoint=hub.endpoint)


def _remote_files(config: DatasetConfig, hub: Hub) -> tuple[str, dict[str, RemoteFile]]:
    """Return the commit of the configured revision and its files by name."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    files = {}
    try:
        commit = api.dataset_info(config.repository, revision=config.revision, timeout=60.0).sha
        if not commit:
            raise WorldtuneError(f"{_where(config, hub)} does not say which commit it has at {config.revision}.")
        folder = config.folder or None
        for entry in api.list_repo_tree(
            config.repository, folder, recursive=True, revision=commit, repo_type="dataset"
        ):
            if not isinstance(entry, RepoFile):
                continue
            if is_unsafe_name(entry.path) or not entry.path.isprintable():
                raise WorldtuneError(f"{_where(config, hub)} has a file with the unsafe name {entry.path!r}.")
            files[entry.path] = RemoteFile(
                entry.path, entry.size, entry.lfs.sha256 if entry.lfs else "", "" if entry.lfs else entry.blob_id
            )
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
        raise WorldtuneError(_refusal(f"{_where(config, hub)} at {config.revision}", error)) from error
    return commit, files


def _refusal(what: str, error: Exception) -> str:
    return (
        f"{what} cannot be had: {' '.join(str(error).split())} ({type(error).__name__}). Look at its page and mend the "
        "dataset's repository, revision or folder; set HF_TOKEN if it asks for a login or for its terms to be "
        "accepted; or mend the network. Then run the same snakemake command again: what was downloaded is kept."
    )


def _read_metadata(
    file: RemoteFile, config: DatasetConfig, commit: str, source: Path, hub: Hub
) -> dict[str, str | None]:
    """Return the caption by name of each file that a metadata file names; its content is fetched."""
    partial = source / PARTS / commit / file.name
    _download(hub, _url(hub, config.repository, commit, file.name), file, partial)
    columns = (FILE_COLUMN, config.caption_column)
    captions: dict[str, str | None] = {}
    what = f"the metadata of {config.repository}"
    for place, record in read_records(partial, columns, what=what, others_are_errors=False):
        name, caption = record.get(FILE_COLUMN), record.get(config.caption_column)
        key = posixpath.normpath(posixpath.join(posixpath.dirname(file.name), name)) if isinstance(name, str) else ""
        if not key or is_unsafe_name(key) or not key.isprintable():
            raise WorldtuneError(f"{file.name}, {place}: {FILE_COLUMN} is {name!r}; expected a path below its folder.")
        if caption is not None and not isinstance(caption, str):
            raise WorldtuneError(f"{file.name}, {place}: {config.caption_column} is {caption!r}; expected a text.")
        if key in captions:
            raise WorldtuneError(f"{file.name}, {place}: {name} is named twice.")
        captions[key] = caption
    return captions


def _download(hub: Hub, url: str, file: RemoteFile, partial: Path) -> None:
    """Bring one file to `partial`, verified.

    Raises:
        EntryNotFoundError: the hub does not have it.
        DamagedError: its content is not what the hub says.
        WorldtuneError: the hub refuses or cannot be reached.
        OSError: the disk is full or cannot be written.
    """
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    for _ in range(TRIES):
        try:
            with disk_errors_named(partial):
                transfer(hub, url, file, partial)
        except EntryNotFoundError:
            raise
        except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError) as error:
            if disk_error_number(error) is not None:
                raise
            raise WorldtuneError(_refusal(url, error)) from error
        size = partial.stat().st_size
        found = sha256_file(partial) if file.sha256 else git_sha1(partial)
        if size == file.size and found == (file.sha256 or file.git_sha1):
            return
        partial.unlink()
    raise DamagedError(f"its content has the hash {found}; the hub says {file.sha256 or file.git_sha1}")


class DamagedError(Exception):
    """What arrived is not what the hub announced."""


def fetch_repository(
    name: str,
    config: DatasetConfig,
    shard: str,
    *,
    hub: Hub | None = None,
    datasets: Path = Path("datasets"),
    processes: int = 1,
) -> Path:
    """Download the files of a shard that were never tried, and write its manifest.

    Args:
        name: the dataset's name.
        config: its configuration, of kind huggingface.
        shard: four digits.
        hub: where to ask; the environment's hub where it is None.
        datasets: folder of all datasets.
        processes: downloads at once.

    Returns:
        The manifest's path. It has a row for each video, with the reason where it could not be had.

    Raises:
        WorldtuneError: there is no list of the repository, the hub refuses or cannot be reached, or fewer videos than
            `min_success` could be had.
        OSError: the disk is full or cannot be written.
    """
    root, source = datasets / name, source_folder(name, config, datasets)
    repository, commit, files = read_list(source / LIST_FILE)
    own = [file for file in files if shard_of(file.name, config.num_shards) == shard]
    path = manifest_path(root, STAGE, shard)
    with open_ledger(root, STAGE, shard) as ledger:
        ledger.adopt(clip_id(file.name) for file in own)
        jobs = [
            FetchJob(
                repository=repository,
                commit=commit,
                file=file,
                source=source,
                shard=shard,
                caption_column=config.caption_column,
                hub=hub or Hub(),
                earlier=tuple((ledger.last_row(clip_id(file.name)) or {}).get("clips", ())),
            )
            for file in own
        ]
        tasks = [Task(clip_id=clip_id(job.file.name), inputs=_inputs(job), argument=job) for job in jobs]
        found = do_tasks(ledger, tasks, fetch_file, _died, label=f"{STAGE} {name} {shard}", processes=processes)
        # Only now: the ledger has the rows of the clips whose videos go.
        listed = {file.name for file in files}
        remove_replaced(source, found, listed)
        tell_of_unlisted(source, ledger.rows().values(), listed)
        rows = [row for file in found for row in _rows(file)]
        check_success(name, shard, rows, config.min_success)
        write_manifest(path, rows, COLUMNS)
    return path


def read_list(path: Path) -> tuple[str, str, list[ListedFile]]:
    """Return the repository, the commit and the files of a list that `list_repository` wrote.

    Raises:
        WorldtuneError: it is missing or damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            head, *records = map(json.loads, file)
        return str(head["repository"]), str(head["commit"]), [ListedFile(**record) for record in records]
    except FileNotFoundError as error:
        raise WorldtuneError(f"{path} does not exist. Make it: `snakemake {path}`.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise WorldtuneError(f"{path} is damaged ({error!r}). Delete it and make it: `snakemake {path}`.") from error


def _inputs(job: FetchJob) -> dict[str, Any]:
    """Return what the videos of a file depend on: not the commit, as long as the file is the same in it."""
    file = job.file
    inputs: dict[str, Any] = {"size": file.size, "hash": file.sha256 or file.git_sha1, "problem": file.problem}
    column = {"caption_column": job.caption_column} if file.holds_many else {"caption": digest(file.caption)}
    return {**inputs, **column, "version": VERSION}


def fetch_file(job: FetchJob) -> Outcome:
    """Download one file; the row holds its clips as a list."""
    from huggingface_hub.errors import EntryNotFoundError

    file = job.file
    if file.problem:
        return _refused(job, file.problem)
    partial = job.source / PARTS / job.commit / f"{file.name}.part"
    try:
        remote = RemoteFile(file.name, file.size, file.sha256, file.git_sha1)
        _download(job.hub, job.url, remote, partial)
    except (EntryNotFoundError, DamagedError) as error:
        return _refused(job, f"{DOWNLOAD_FAILED}: {' '.join(str(error).split())}")
    if file.holds_many:
        try:
            # One at a time: each may take most of the job's memory.
            with exclusive(job.source / PARTS / f"unpack.{job.shard}.lock"):
                clips = list(unpack(partial, job.source, file.name.removesuffix(".parquet"), job.caption_column))
        except ParquetError as error:
            return _refused(job, f"unreadable parquet file: {error}")
        finally:
            partial.unlink()
    else:
        target = job.source / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
        clips = [{"key": file.name, "caption": file.caption, "num_bytes": file.size, "reason": ""}]
    made = tuple(job.source / clip["key"] for clip in clips if not clip["reason"])
    return Outcome(row=_row(job, "", clips), outputs=made)


def _died(job: FetchJob) -> Outcome:
    return _refused(job, f"{DOWNLOAD_FAILED}: its process ended without a word")


def _refused(job: FetchJob, reason: str) -> Outcome:
    lost = [clip | {"num_bytes": None, "reason": reason} for clip in job.earlier] if job.file.holds_many else []
    return Outcome(row=_row(job, reason, lost))


def _row(job: FetchJob, reason: str, clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the ledger keeps of a file; its clips become the rows of the manifest."""
    name = job.file.name
    status = "unusable" if reason else "ok"
    facts = {"clip_id": clip_id(name), "source_key": name, "status": status, "reason": reason}
    return {**facts, "url": job.url, "caption": job.file.caption, "clips": clips}


def _rows(file: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the manifest's rows of one file."""
    nothing = {"key": file["source_key"], "caption": file["caption"], "num_bytes": None, "reason": file["reason"]}
    for clip in file["clips"] or [nothing]:
        yield {
            "clip_id": clip_id(clip["key"]),
            "source_key": clip["key"],
            "start_s": None,
            "end_s": None,
            "status": "unusable" if clip["reason"] else "ok",
            "reason": clip["reason"],
            "url": file["url"],
            "num_bytes": clip["num_bytes"],
            "caption": clip["caption"],
        }
