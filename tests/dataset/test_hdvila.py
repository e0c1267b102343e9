from pathlib import Path

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset import hdvila


def test_metadata_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repository: str, name: str, *, repo_type: str, local_dir: Path) -> str:
        assert (repository, repo_type) == ("TempoFunk/hdvila-100M", "dataset")
        local_dir.mkdir(parents=True)
        (local_dir / name).write_text('{"url": "u"}\n')
        return str(local_dir / name)

    monkeypatch.setattr(hdvila, "hf_hub_download", download)
    hdvila.fetch_metadata(tmp_path / "source/metadata.jsonl")
    assert (tmp_path / "source/metadata.jsonl").read_text() == '{"url": "u"}\n'


def test_no_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(hdvila, "hf_hub_download", download)
    with pytest.raises(WorldtuneError, match=r"hdvila-100M.*no route to host"):
        hdvila.fetch_metadata(tmp_path / "metadata.jsonl")
    assert not (tmp_path / "metadata.jsonl").exists()
