import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.common.files import sha256_file, write_json
from worldtune.dataset.clips import caption_path, clip_id, t5_path
from worldtune.dataset.ledger import Ledger
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.t5 import COLUMNS
from worldtune.dataset.text import read_t5


def rows_by_key(manifest):
    return {row["source_key"]: row for row in read_manifest(manifest, COLUMNS)}


@pytest.fixture
def captioned(source, fake_encoder):
    for name, caption in (("a", "one word"), ("b", "now four words here"), ("c", None)):
        source.add(f"{name}.mp4", caption=caption)
    source.captions()
    return source


def test_embeddings_belong_to_their_clips(captioned):
    rows = rows_by_key(captioned.t5())
    assert set(rows) == {"a.mp4", "b.mp4"}
    assert {key: row["num_tokens"] for key, row in rows.items()} == {"a.mp4": 2, "b.mp4": 4}
    path = t5_path(captioned.root, clip_id("b.mp4"))
    assert np.array_equal(read_t5(path, 4, 4)[:, 0], [3, 4, 5, 4])
    assert rows["b.mp4"]["t5_sha256"] == sha256_file(path)
    assert rows["b.mp4"]["channels"] == 4


def test_only_changed_captions_go_through_the_encoder(captioned, fake_encoder):
    first = captioned.t5().read_bytes()
    fake_encoder.texts.clear()
    assert captioned.t5().read_bytes() == first
    assert fake_encoder.texts == []
    (captioned.folder / "a.txt").write_text("changed")
    captioned.captions()
    captioned.t5()
    assert fake_encoder.texts == ["changed"]


def test_caption_that_is_taken_back_after_a_killed_job_is_embedded_again(captioned, fake_encoder, monkeypatch):
    """The killed job's file has the size of the one that the ledger knows."""
    first = captioned.t5().read_bytes()
    path = t5_path(captioned.root, clip_id("a.mp4"))
    embedding = path.read_bytes()
    (captioned.folder / "a.txt").write_text("sixsix words")
    captioned.captions()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            captioned.t5()
    assert path.stat().st_size == len(embedding)
    assert path.read_bytes() != embedding
    (captioned.folder / "a.txt").write_text("one word")
    captioned.captions()
    assert captioned.t5().read_bytes() == first
    assert path.read_bytes() == embedding


@pytest.mark.parametrize("change", ["encoder", "max_tokens"])
def test_another_encoder_or_length_does_all_again(captioned, fake_encoder, change):
    captioned.t5()
    fake_encoder.texts.clear()
    if change == "encoder":
        write_json(captioned.checkpoints / "worldtune/fake/files.json", {"model.safetensors": "1" * 64})
    else:
        captioned.options["text_max_tokens"] = 3
    rows = rows_by_key(captioned.t5())
    assert len(fake_encoder.texts) == 2
    assert rows["b.mp4"]["truncated"] == (change == "max_tokens")


def test_a_caption_that_its_stage_did_not_write_is_not_embedded(captioned):
    path = caption_path(captioned.root, clip_id("a.mp4"))
    path.write_text("Another text.\n")
    with pytest.raises(WorldtuneError, match=f"{path.name} is not what its stage wrote"):
        captioned.t5()
    path.unlink()
    captioned.captions()
    captioned.t5()


def test_missing_encoder_or_captions(captioned):
    caption_path(captioned.root, clip_id("a.mp4")).unlink()
    with pytest.raises(WorldtuneError, match=r"cannot be read\. Delete what is there, then: .* --forcerun captions`"):
        captioned.t5()
    captioned.options["text_encoder"] = "no/encoder"
    with pytest.raises(WorldtuneError, match=r"no/encoder does not exist"):
        captioned.t5()
