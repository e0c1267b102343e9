"""Upload an exported model to the model hub: exactly the files that the export lists, its model card among them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json, sha256_file
from worldtune.common.hub import Hub

PROVENANCE = "provenance.json"
CARD = "README.md"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class PushPlan:
    """What an upload would send, and where to."""

    model: Path
    """The export's folder."""
    repository: str
    """organization/name, or a name alone, which the hub puts below the account of the token."""
    sizes: dict[str, int]
    """Bytes by path below `model`, sorted."""
    card: str
    """The model card."""
    weights: str
    """What the weights are of: an attempt and its step, in words."""

    def describe(self) -> str:
        """Return the repository, what the weights are of, the files with their sizes and the card, for people."""
        lines = [f"{size:>15,}  {name}" for name, size in self.sizes.items()]
        total = f"{sum(self.sizes.values()):>15,}  bytes in {len(self.sizes)} files"
        head = f"{self.model} -> {self.repository}"
        return "\n".join([head, self.weights, "", *lines, total, "", f"{CARD}:", "", self.card])


def plan_push(run_dir: Path, repository: str | None = None) -> PushPlan:
    """Look through a run's export and return what would be uploaded; nothing is sent.

    Args:
        run_dir: results/<run>.
        repository: organization/name; None takes the run's name in the account of the token.

    Raises:
        WorldtuneError: there is no export, it is of other weights than the run's manifest, a file of it is missing or
            not as it was exported, or the repository has no name that the hub takes.
    """
    model = run_dir / "model"
    if not (model / PROVENANCE).is_file():
        raise WorldtuneError(f"{model} holds no export. Make it first: `snakemake {model}`.")
    name = repository or run_dir.name
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise WorldtuneError(f"{name!r} is no name of a repository, such as organization/name: {error}") from error
    provenance = read_json(model / PROVENANCE)
    hashes = provenance.get("files") if isinstance(provenance, dict) else None
    if not isinstance(hashes, dict) or not hashes:
        raise WorldtuneError(f"{model / PROVENANCE} lists no files; it is of another version. Export the run again.")
    exported = _weights(provenance, "step")
    trained = _weights(read_json(run_dir / MANIFEST), "final_step")
    if exported != trained:
        raise WorldtuneError(
            f"{model} is of {exported}, but {run_dir / MANIFEST} names {trained}. Export the run again: "
            f"`snakemake {model}`."
        )
    for file in (*hashes, CARD):
        if not (model / file).is_file():
            raise WorldtuneError(f"{model / file} is missing. Delete {model} and export the run again.")
    for file, expected in hashes.items():
        if sha256_file(model / file) != expected:
            raise WorldtuneError(
                f"{model / file} is not as it was exported ({PROVENANCE} has another SHA-256). Delete {model} and "
                "export the run again."
            )
    names = sorted({*hashes, PROVENANCE, CARD})
    return PushPlan(
        model=model,
        repository=name,
        sizes={file: (model / file).stat().st_size for file in names},
        card=(model / CARD).read_text(encoding="utf-8"),
        weights=exported,
    )


def _weights(record: Any, step_key: str) -> str:
    known = record if isinstance(record, dict) else {}
    return f"attempt {known.get('identity')}, step {known.get(step_key)}"


def push(plan: PushPlan, *, hub: Hub, private: bool = True) -> str:
    """Upload a plan's files in one commit and return the commit's address; the repository is made where it is missing.

    Args:
        plan: what to send.
        hub: where to, and as whom.
        private: whether a repository that is made here can be seen by its owner only; one that exists stays as it is.

    Raises:
        WorldtuneError: there is no token, it may not write there, or the hub cannot be reached.
    """
    if not hub.has_token:
        raise WorldtuneError(
            f"no token is set. Make an access token with write permission at {hub.endpoint}/settings/tokens and set "
            "HF_TOKEN to it."
        )
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    with _explained(plan, hub):
        repository = api.create_repo(plan.repository, private=private, exist_ok=True).repo_id
        # By name, so that neither a snakemake's stamp nor a stray file goes along.
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=plan.model,
            allow_patterns=list(plan.sizes),
            commit_message=f"{plan.model.parent.name}, {plan.weights}",
        )
    return str(commit.commit_url)


@contextlib.contextmanager
def _explained(plan: PushPlan, hub: Hub) -> Iterator[None]:
    """Turn the hub's errors into ones that say what to do."""
    what = f"{plan.repository} at {hub.endpoint}"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise WorldtuneError(
            f"HF_HUB_OFFLINE is set, so nothing is sent to {what}. Push where there is a network, with "
            "HF_HUB_OFFLINE=0."
        ) from error
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, error.server_message or "no reason given"
        if status == 401:
            raise WorldtuneError(
                f"{what}: the token is not valid ({reason}). Make a new one with write permission at "
                f"{hub.endpoint}/settings/tokens and set HF_TOKEN to it."
            ) from error
        if status in (403, 404):
            raise WorldtuneError(
                f"{what}: the token may not write there ({status}; {reason}). Use one with write permission for that "
                "name, or another repository (REPO=organization/name)."
            ) from error
        raise WorldtuneError(f"{what} answered with status {status} ({reason}). Try again later.") from error
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise WorldtuneError(
            f"The upload to {what} broke off ({error}). Check the network and push again: files that have arrived are "
            "not sent twice, and nothing shows before all have."
        ) from error
    except (ValueError, RuntimeError) as error:
        # What the client raises where the hub refuses single files.
        raise WorldtuneError(f"The upload to {what} failed: {error}. Push again.") from error
