from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from worldtune.common.files import write_json
from worldtune.dataset.captions import captions
from worldtune.dataset.clips import shard_names
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.controls import make_controls
from worldtune.dataset.ingest import ingest
from worldtune.dataset.listing import list_dataset
from worldtune.dataset.make_captions import make_captions
from worldtune.dataset.t5 import embed_captions
from worldtune.media.video import write_video


@dataclass
class Source:
    """A folder of small videos and a dataset made of it."""

    folder: Path
    datasets: Path
    checkpoints: Path
    options: dict[str, object]

    @property
    def config(self) -> DatasetConfig:
        return DatasetConfig.model_validate(
            {"kind": "folder", "path": str(self.folder), "num_shards": 1, "min_frames": 5} | self.options
        )

    @property
    def root(self) -> Path:
        return self.datasets / "tiny"

    def add(self, key: str, *, caption: str | None = "A thing.", num_frames: int = 6, seed: int = 0) -> Path:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = np.random.default_rng(seed).integers(0, 256, (num_frames, 4, 6, 3), dtype=np.uint8)
        write_video(path, blocks.repeat(8, axis=1).repeat(8, axis=2), 24)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)
        return path

    def listing(self):
        # The workflow lists once a process; a test changes the folder in between.
        list_dataset.cache_clear()
        return list_dataset("tiny", self.config, self.datasets)

    def ingest(self, **options: object) -> Path:
        self.listing()
        return ingest("tiny", self.config, "0000", datasets=self.datasets, **options)

    def captions(self) -> Path:
        self.listing()
        return captions("tiny", self.config, "0000", datasets=self.datasets)

    def make_captions(self) -> Path:
        self.listing()
        folders = {"datasets": self.datasets, "checkpoints": self.checkpoints}
        return make_captions("tiny", self.config, "0000", device="cpu", **folders)

    def controls(self, kind: str = "edge", **options: object) -> Path:
        return make_controls("tiny", self.config, "0000", kind, datasets=self.datasets, **options)

    def t5(self) -> Path:
        folders = {"datasets": self.datasets, "checkpoints": self.checkpoints}
        return embed_captions("tiny", self.config, "0000", device="cpu", **folders)

    def all_stages(self) -> None:
        for shard in shard_names(self.config.num_shards):
            self.run_shard(shard)

    def run_shard(self, shard: str) -> None:
        self.listing()
        arguments = ("tiny", self.config, shard)
        ingest(*arguments, datasets=self.datasets)
        captions(*arguments, datasets=self.datasets)
        embed_captions(*arguments, datasets=self.datasets, checkpoints=self.checkpoints, device="cpu")
        for kind in self.config.controls:
            make_controls(*arguments, kind, datasets=self.datasets)


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path / "source", tmp_path / "datasets", tmp_path / "checkpoints", {})


class FakeEncoder:
    """Stands for a T5 encoder: a text gives one token a word, of its length."""

    channels = 4
    texts: list[str] = []  # noqa: RUF012 - shared on purpose: a stage makes its own instance

    def __init__(self, folder: Path, device: str, precision: str) -> None:
        self.folder, self.precision = folder, precision

    def encode(self, texts, max_tokens):
        from worldtune.annotate.t5 import TextEmbedding

        for index, text in enumerate(texts):
            self.texts.append(text)
            words = [len(word) for word in text.split()]
            tokens = np.tile(np.array(words[:max_tokens], np.float32)[:, None], (1, self.channels))
            yield index, TextEmbedding(tokens=tokens, truncated=len(words) > max_tokens)


@pytest.fixture
def fake_encoder(monkeypatch, source):
    """A source whose captions are embedded without transformers; `texts` lists what went through the encoder."""
    import worldtune.annotate.t5

    monkeypatch.setattr(worldtune.annotate.t5, "TextEncoder", FakeEncoder)
    monkeypatch.setattr(FakeEncoder, "texts", [])
    source.options["text_encoder"] = "worldtune/fake"
    write_json(source.checkpoints / "worldtune/fake/files.json", {"model.safetensors": "0" * 64})
    return FakeEncoder
