from pathlib import Path
from types import SimpleNamespace

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset import hdvila
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.origin import read_origin

CONFIG = DatasetConfig(kind="hdvila", num_shards=1, max_clips=1)


@pytest.fixture
def branch(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The repository's branch, whose commit moves on; a file's content names the commit that was asked for."""
    state = SimpleNamespace(commit="a" * 40, online=True)

    class Api:
        def dataset_info(self, repository: str, *, revision: str, timeout: float) -> SimpleNamespace:
            assert (repository, revision) == ("TempoFunk/hdvila-100M", "main")
            return SimpleNamespace(sha=state.commit)

    def download(repository: str, name: str, *, repo_type: str, revision: str, local_dir: Path) -> str:
        assert (repository, repo_type) == ("TempoFunk/hdvila-100M", "dataset")
        if not state.online:
            raise OSError("no route to host")
        local_dir.mkdir(parents=True, exist_ok=True)
        (local_dir / name).write_text(revision)
        return str(local_dir / name)

    monkeypatch.setattr(hdvila, "HfApi", Api)
    monkeypatch.setattr(hdvila, "hf_hub_download", download)
    return state


def test_metadata_stay_those_of_the_first_commit(tmp_path: Path, branch: SimpleNamespace) -> None:
    target = tmp_path / "source/metadata.jsonl"
    assert read_origin(target.parent, CONFIG) == {}
    hdvila.fetch_metadata(target)
    assert target.read_text() == "a" * 40
    assert read_origin(target.parent, CONFIG) == {"repository": "TempoFunk/hdvila-100M", "commit": "a" * 40}
    branch.commit = "b" * 40
    target.unlink()
    hdvila.fetch_metadata(target)
    assert target.read_text() == "a" * 40
    (target.parent / "hub/commit.json").unlink()
    hdvila.fetch_metadata(target)
    assert target.read_text() == "b" * 40


def test_an_interrupted_download_goes_on_at_the_same_commit(tmp_path: Path, branch: SimpleNamespace) -> None:
    branch.online = False
    with pytest.raises(WorldtuneError, match=r"hdvila-100M.*no route to host"):
        hdvila.fetch_metadata(tmp_path / "metadata.jsonl")
    assert not (tmp_path / "metadata.jsonl").exists()
    branch.online, branch.commit = True, "b" * 40
    hdvila.fetch_metadata(tmp_path / "metadata.jsonl")
    assert (tmp_path / "metadata.jsonl").read_text() == "a" * 40


@pytest.mark.parametrize("record", ["{", "[]", '{"commit": "main"}', '{"commit": 3}'])
def test_a_damaged_record_of_the_commit_is_named(tmp_path: Path, branch: SimpleNamespace, record: str) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/commit.json").write_text(record)
    with pytest.raises(WorldtuneError, match=r"commit\.json .*Delete it"):
        hdvila.fetch_metadata(tmp_path / "metadata.jsonl")
