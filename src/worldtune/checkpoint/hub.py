"""Download checkpoints of the catalogue from the model hub: resumable, verified, pinned.

Content lies in an undeclared store, `checkpoints/.store/<repository>/<commit>/<file>`, and is hard-linked to
`checkpoints/<repository>/<file>`: a rule's declared output may vanish before a re-run, the 45 GB behind it may not.
`checkpoints/catalogue.lock.json` records commit, size and SHA-256 of what was fetched; later fetches follow it, and
need no network where the store is complete.

huggingface_hub's own download keeps no part of a file that was interrupted by the end of its process, so this module
asks the hub what there is and drives the transfer itself, with one partial file beside each stored one.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm

from worldtune.checkpoint.catalogue import FILE_LIST, Repository, Request
from worldtune.common.disk import ADVICE, disk_errors_named
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import digest, link_or_copy, read_json, sha256_file, write_json

logger = logging.getLogger(__name__)

LOCK_FILE = "catalogue.lock.json"
STORE = ".store"
SPARE_BYTES = 2**30
"""Space that must stay free on the disk beside what is downloaded."""


@dataclass(frozen=True)
class Hub:
    """Where to ask, and as whom."""

    endpoint: str = huggingface_hub.constants.ENDPOINT
    """Address of the hub; the environment's HF_ENDPOINT, or the public one."""
    token: str | bool | None = None
    """Access token; None takes HF_TOKEN or the stored login, False takes none."""

    @property
    def has_token(self) -> bool:
        """Whether requests carry a token."""
        return self.token is not False and bool(self.token or huggingface_hub.get_token())


@dataclass(frozen=True)
class RemoteFile:
    """What the hub says about one file of a commit."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Of the content, for large files; else empty."""
    git_sha1: str
    """Of the content as a git blob, for small files; else empty."""


@dataclass(frozen=True)
class Stored:
    """One verified file of the store."""

    path: Path
    sha256: str
    size: int
    """Bytes."""


class Lock:
    """The record of what was fetched, `checkpoints/catalogue.lock.json`; changes are made under a file lock."""

    def __init__(self, checkpoints: Path) -> None:
        """Use the record below `checkpoints`, which need not exist."""
        self.path = checkpoints / LOCK_FILE
        self._guard = checkpoints / STORE / "lock"

    def repository(self, repository: Repository) -> dict[str, Any]:
        """Return the record of a repository, an empty one where its revision is new."""
        empty: dict[str, Any] = {"revision": repository.revision, "commit": "", "files": {}, "folder": {}}
        if not self.path.exists():
            return empty
        found = read_json(self.path).get("repositories", {}).get(repository.id)
        return found if found and found["revision"] == repository.revision else empty

    def record(
        self, repository: Repository, commit: str, files: dict[str, Stored], folder: dict[str, Any] | None
    ) -> None:
        """Add files of one commit; files of another commit of the repository are forgotten."""
        with exclusive(self._guard):
            content: dict[str, Any] = {"format": 1, "repositories": {}}
            if self.path.exists():
                content = read_json(self.path)
            old = self.repository(repository)
            known = old["files"] if old["commit"] == commit else {}
            content["repositories"][repository.id] = {
                "revision": repository.revision,
                "commit": commit,
                "files": known | {name: {"sha256": file.sha256, "size": file.size} for name, file in files.items()},
                "folder": folder or (old["folder"] if old["commit"] == commit else {}),
            }
            write_json(self.path, content)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file; another process that wants it waits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch(request: Request, checkpoints: Path, *, hub: Hub) -> Path:
    """Provide one entry of the catalogue below `checkpoints` and return its declared output.

    Raises:
        WorldtuneError: the entry is generated by a rule, its terms are not accepted, the hub cannot be reached, a file
            is missing there, the disk is too full, or the content is not what hub, lock or catalogue say.
    """
    repository = request.repository
    if repository.kind == "generated":
        raise WorldtuneError(
            f"{request.name} is not on a hub: a rule of the workflow makes it. Run `snakemake "
            f"{request.output(checkpoints)}`."
        )
    lock = Lock(checkpoints)
    record = lock.repository(repository)
    known = _from_store(request, record, checkpoints)
    if known is None:
        commit, remote = _list_files(request, record["commit"], hub)
        files = _download(request, commit, remote, record, checkpoints, hub)
        folder = {"patterns": _patterns(repository), "files": sorted(files)} if repository.folder else None
        lock.record(repository, commit, files, folder)
    else:
        logger.info("%s: commit %s is in the store", request.name, record["commit"])
        files = known
    target = checkpoints / repository.id
    for name, stored in files.items():
        link_or_copy(stored.path, target / name)
    if repository.folder is not None:
        write_file_list(target, sorted(files), {name: stored.sha256 for name, stored in files.items()})
    return request.output(checkpoints)


def write_file_list(folder: Path, names: Sequence[str], sha256: dict[str, str] | None = None) -> Path:
    """Write `files.json` (name -> SHA-256), the declared output of a folder entry, once its files lie in `folder`."""
    known = sha256 or {}
    path = folder / FILE_LIST
    write_json(path, {name: known.get(name) or sha256_file(folder / name) for name in names})
    return path


def _patterns(repository: Repository) -> str:
    """Return a digest of what a folder entry asks for; a change of it asks the hub again."""
    return digest(repository.folder.model_dump(mode="json") if repository.folder else None, 16)


def _from_store(request: Request, record: dict[str, Any], checkpoints: Path) -> dict[str, Stored] | None:
    """Return the files that the lock names, verified; None where the hub has to be asked."""
    repository = request.repository
    if repository.folder is None:
        names = [request.file]
    elif record["folder"].get("patterns") == _patterns(repository):
        names = record["folder"]["files"]
    else:
        return None
    found = {}
    for name in names:
        path = _store_path(checkpoints, repository, record["commit"], name)
        locked = record["files"].get(name)
        if locked is None or not path.is_file():
            return None
        wanted = _catalogue_sha256(repository, name) or locked["sha256"]
        if path.stat().st_size != locked["size"] or sha256_file(path) != wanted:
            logger.warning("%s: the stored copy of %s is damaged; it is fetched again", request.name, name)
            path.unlink()
            return None
        found[name] = Stored(path, wanted, locked["size"])
    return found


def _store_path(checkpoints: Path, repository: Repository, commit: str, name: str) -> Path:
    return checkpoints / STORE / repository.id / commit / name


def _catalogue_sha256(repository: Repository, name: str) -> str:
    if repository.folder is not None:
        return repository.folder.sha256.get(name, "")
    return repository.files[name].sha256


def _list_files(request: Request, locked_commit: str, hub: Hub) -> tuple[str, list[RemoteFile]]:
    """Return the commit to fetch and those of its files that are wanted."""
    repository = request.repository
    revision = locked_commit or repository.revision
    with _explained(request, hub):
        info = HfApi(endpoint=hub.endpoint, token=hub.token).model_info(
            repository.id, revision=revision, files_metadata=True, timeout=30.0
        )
    if not info.sha:
        raise WorldtuneError(f"{hub.endpoint} does not say which commit {repository.id} has at {revision}.")
    if not repository.pinned and not locked_commit:
        logger.warning(
            "%s is not pinned in the catalogue: %r is commit %s now; it is recorded in %s and followed from now on",
            repository.id,
            repository.revision,
            info.sha,
            LOCK_FILE,
        )
    listing = {}
    for sibling in info.siblings or []:
        if _unsafe(sibling.rfilename):
            raise WorldtuneError(f"{repository.id} has a file with the unsafe name {sibling.rfilename!r}; not fetched.")
        if sibling.size is not None:
            sha256 = sibling.lfs.sha256 if sibling.lfs else ""
            git_sha1 = "" if sibling.lfs else sibling.blob_id or ""
            listing[sibling.rfilename] = RemoteFile(sibling.rfilename, sibling.size, sha256, git_sha1)
    return info.sha, [listing[name] for name in _wanted(request, list(listing))]


def _unsafe(name: str) -> bool:
    return name.startswith("/") or "\\" in name or any(part in ("", ".", "..") for part in name.split("/"))


def _wanted(request: Request, names: list[str]) -> list[str]:
    """Return the names that an entry asks for, out of those that exist.

    Raises:
        WorldtuneError: a required one does not exist.
    """
    folder = request.repository.folder
    required = (request.file,) if folder is None else folder.required
    patterns = list(required)
    missing = [pattern for pattern in required if not fnmatch.filter(names, pattern)]
    if folder is not None:
        patterns += folder.optional
        first = next((pattern for pattern in folder.weights if fnmatch.filter(names, pattern)), None)
        if first is not None:
            patterns.append(first)
        elif folder.weights:
            missing.append(" or ".join(folder.weights))
    if missing:
        raise WorldtuneError(
            f"{request.repository.id} has no {', '.join(missing)}; it has {', '.join(sorted(names)) or 'no files'}. "
            "Mend the entry in config/checkpoints.toml."
        )
    wanted = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    # A file list is ours; .gitattributes and the like belong to the hub.
    return sorted(name for name in wanted if not name.startswith(".git") and name != FILE_LIST)


def _download(
    request: Request, commit: str, remote: list[RemoteFile], record: dict[str, Any], checkpoints: Path, hub: Hub
) -> dict[str, Stored]:
    """Bring all files of one commit into the store and verify them."""
    repository = request.repository
    paths = {file.name: _store_path(checkpoints, repository, commit, file.name) for file in remote}
    missing = [file for file in remote if not paths[file.name].exists()]
    _check_space(request, sum(file.size - _size(_partial(paths[file.name])) for file in missing), checkpoints)
    stored = {}
    for file in remote:
        path = paths[file.name]
        locked = record["files"].get(file.name, {}).get("sha256", "") if record["commit"] == commit else ""
        with exclusive(path.with_name(path.name + ".lock")):
            if path.exists():
                sha256 = _verify(request, file, path, locked)
            else:
                _transfer(request, commit, file, _partial(path), hub)
                sha256 = _verify(request, file, _partial(path), locked)
                os.replace(_partial(path), path)
            stored[file.name] = Stored(path, sha256, file.size)
    return stored


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(request: Request, needed: int, checkpoints: Path) -> None:
    free = shutil.disk_usage(checkpoints).free
    if needed + SPARE_BYTES > free:
        raise WorldtuneError(
            f"{request.name} needs {needed / 1e9:.1f} GB more below {checkpoints} and {SPARE_BYTES / 1e9:.1f} GB "
            f"spare, but {free / 1e9:.1f} GB are free. Make room, or make the folder a link to a larger disk."
        )


def _transfer(request: Request, commit: str, file: RemoteFile, partial: Path, hub: Hub) -> None:
    """Download one file into `partial`, going on where an earlier attempt stopped."""
    if _size(partial) > file.size:
        partial.unlink()
    done = _size(partial)
    if done:
        logger.info("%s: going on at %.2f of %.2f GB", file.name, done / 1e9, file.size / 1e9)
    url = huggingface_hub.hf_hub_url(request.repository.id, file.name, revision=commit, endpoint=hub.endpoint)
    with disk_errors_named(partial), _explained(request, hub), open(partial, "ab") as target:
        http_get(
            url,
            target,
            resume_size=done,
            headers=build_hf_headers(token=hub.token),
            expected_size=file.size,
            displayed_filename=file.name,
            tqdm_class=TransferProgress,
        )
        target.flush()
        os.fsync(target.fileno())


def _verify(request: Request, file: RemoteFile, path: Path, locked: str) -> str:
    """Return the SHA-256 of a file that is what catalogue, lock and hub say.

    Raises:
        WorldtuneError: it is not; the file is removed, so that the next try starts from nothing.
    """
    sha256 = sha256_file(path)
    checks = [
        ("config/checkpoints.toml", _catalogue_sha256(request.repository, file.name), sha256),
        (LOCK_FILE, locked, sha256),
        ("the hub", file.sha256, sha256),
        ("the hub (git blob)", file.git_sha1, _git_sha1(path) if file.git_sha1 else ""),
    ]
    for source, expected, found in checks:
        if expected and expected != found:
            path.unlink()
            raise WorldtuneError(
                f"{request.repository.id}/{file.name} has hash {found}, but {source} says {expected}. The download was "
                "removed; try again. If it happens again, the file was replaced or is damaged at its source: compare "
                "with the repository's page before you change the expected hash."
            )
    return sha256


def _git_sha1(path: Path) -> str:
    # The hub gives no other hash of its small files; it is a check of the transfer, not of who made the file.
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            blob.update(chunk)
    return blob.hexdigest()


@contextlib.contextmanager
def _explained(request: Request, hub: Hub) -> Iterator[None]:
    """Turn the hub's errors into ones that say what to do."""
    repository = request.repository
    page = f"{hub.endpoint}/{repository.id}"
    token = "the token in use has no access" if hub.has_token else "no token is set"
    login = "make an access token with read permission in your account's settings there, and set HF_TOKEN to it"
    try:
        yield
    except GatedRepoError as error:
        terms = repository.gate or "its terms"
        raise WorldtuneError(
            f"{repository.id} is gated and {token}. Log in to {page} and accept {terms}; then {login}."
        ) from error
    except RevisionNotFoundError as error:
        raise WorldtuneError(
            f"{repository.id} has no revision {repository.revision}. Mend `revision` in config/checkpoints.toml, or "
            f"remove the repository from checkpoints/{LOCK_FILE} if its recorded commit is gone."
        ) from error
    except RepositoryNotFoundError as error:
        gate = f" It asks you to accept {repository.gate}." if repository.gate else ""
        raise WorldtuneError(
            f"{repository.id} does not exist or may not be seen ({token}). Look at {page}.{gate} If it needs a login, "
            f"{login}."
        ) from error
    except EntryNotFoundError as error:
        raise WorldtuneError(f"{request.name} does not exist at {page}. Mend config/checkpoints.toml.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            terms = f", accept {repository.gate}" if repository.gate else ""
            raise WorldtuneError(f"{page} refused access ({status}; {token}). Log in there{terms}, {login}.") from error
        raise WorldtuneError(
            f"{page} answered with status {status} ({error.server_message or 'no reason given'}). Try again later; "
            "what was downloaded is kept."
        ) from error
    except OfflineModeIsEnabled as error:
        raise WorldtuneError(
            f"{request.name} is not below checkpoints/ and HF_HUB_OFFLINE is set. Fetch it where there is a network: "
            f"`HF_HUB_OFFLINE=0 python src/scripts/fetch_checkpoint.py {request.name}`."
        ) from error
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and (error.filename is not None or error.errno in ADVICE):
            raise
        raise WorldtuneError(
            f"The download of {request.name} from {page} broke off ({error}). Check the network (on a cluster, fetch "
            "on a node that has one; HF_ENDPOINT names a mirror) and run the same command again: it goes on where it "
            "stopped. If the repository is gated, HF_TOKEN must be set too."
        ) from error


class TransferProgress(tqdm):
    """A bar on a terminal; elsewhere a line each ten seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take tqdm's arguments."""
        self._plain = not sys.stderr.isatty()
        self._done = kwargs.get("initial") or 0
        self._size = kwargs.get("total") or 0
        self._label = kwargs.get("desc", "")
        self._logged_s = self._started_s = time.monotonic()
        self._start = self._done
        super().__init__(*args, **(kwargs | {"disable": self._plain}))

    def update(self, n: float | None = 1) -> bool | None:
        """Count `n` more bytes."""
        self._done += int(n or 0)
        now = time.monotonic()
        if self._plain and now - self._logged_s >= 10.0:
            self._logged_s = now
            rate = (self._done - self._start) / (now - self._started_s)
            logger.info("%s: %.2f of %.2f GB, %.1f MB/s", self._label, self._done / 1e9, self._size / 1e9, rate / 1e6)
        return super().update(n)
