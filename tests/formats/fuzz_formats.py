"""The formats that are fuzzed: how a small valid file is made, and the readers that meet files of that kind."""

import functools
import io
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hostile_pickles import CANARY, HOSTILE_PICKLES, ODD_PICKLES
from safetensors.numpy import save as save_arrays
from safetensors.torch import save as save_tensors

from worldtune.checkpoint.reading import read_checkpoint
from worldtune.common.errors import WorldtuneError
from worldtune.common.files import read_json
from worldtune.controls.keypoint import draw_skeletons
from worldtune.controls.seg import paint, read_masks
from worldtune.dataset.caption_text import read_caption
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.download import listed_clips
from worldtune.dataset.embedded import ParquetError, unpack
from worldtune.dataset.listing import list_dataset
from worldtune.dataset.manifest import CLIP_COLUMNS, read_manifest, write_manifest
from worldtune.dataset.source_clips import SourceClip
from worldtune.dataset.text import SAFETENSORS_KEY, read_t5
from worldtune.formats.rle import encode_clip_mask
from worldtune.media.video import check_video, iterate_frames, probe, read_frames, write_video
from worldtune.recipe.schema import KeypointControl

__all__ = ["CANARY", "FORMATS", "Format"]

NUM_FRAMES, HEIGHT, WIDTH = 6, 16, 32
NUM_TOKENS, CHANNELS = 5, 8


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file."""

    name: str
    suffix: str
    make: Callable[[], list[bytes]]
    """Makes valid files."""
    read: Callable[[Path], object]
    """Reads a file with each reader that meets it; raises WorldtuneError where one refuses it."""
    tokens: tuple[bytes, ...] = ()
    """Names of fields, and values that are worth a try."""
    by_hand: tuple[bytes, ...] = ()

    def valid(self) -> list[bytes]:
        """Return valid files."""
        return _made(self.make)

    def hostile(self) -> tuple[bytes, ...]:
        """Return files that were made by hand to do harm."""
        return self.by_hand


@functools.cache
def _made(make: Callable[[], list[bytes]]) -> list[bytes]:
    return make()


def _each(*readers: Callable[[], object]) -> None:
    """Call all; raise the last refusal in the end, so that one reader does not hide another."""
    refused = None
    for reader in readers:
        try:
            reader()
        except WorldtuneError as error:
            refused = error
    if refused is not None:
        raise refused


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _written(suffix: str, write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        write(path)
        return path.read_bytes()


def _mp4() -> list[bytes]:
    frames = _pixels(NUM_FRAMES, HEIGHT // 8, WIDTH // 8, 3).repeat(8, axis=1).repeat(8, axis=2)
    return [_written(".mp4", lambda path: write_video(path, frames, 24))]


def _mkv() -> list[bytes]:
    edges = (_pixels(NUM_FRAMES, HEIGHT, WIDTH) > 200).astype(np.uint8) * 255
    return [_written(".mkv", lambda path: write_video(path, edges, 24, lossless=True))]


def _read_video(path: Path) -> None:
    _each(
        lambda: probe(path),
        lambda: check_video(path),
        lambda: read_frames(path, 1, 3),
        lambda: [None for _ in iterate_frames(path)],
    )


def _pickles(value: object) -> list[bytes]:
    return [pickle.dumps(value, protocol=protocol) for protocol in (0, 2, 4, 5)]


def _seg() -> list[bytes]:
    masks = _pixels(2, NUM_FRAMES, HEIGHT, WIDTH) > 128
    return _pickles([{"phrase": "a dog", "segmentation_mask_rle": encode_clip_mask(mask)} for mask in masks])


def _read_seg(path: Path) -> None:
    masks = read_masks(path)
    paint(path, masks, [(255, 0, 0)] * len(masks), 1, (3, HEIGHT, WIDTH))


def _keypoint() -> list[bytes]:
    points = np.random.default_rng(0).random((133, 3)).astype(np.float16)
    person = {"body-keypoints": points, "hand-keypoints": points[91:], "face-bbox": points[0]}
    return _pickles({frame: [person] * (frame % 2) for frame in range(NUM_FRAMES)})


def _embedding() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((NUM_TOKENS, CHANNELS)).astype(np.float16)


def _t5() -> list[bytes]:
    tokens = _embedding()
    nested = {"pickle": {"ground_truth": {"embeddings": {"t5_xxl": [tokens]}}}}
    return [data for value in ([tokens], tokens, nested) for data in _pickles(value)]


def _checkpoint_tensors() -> dict[str, torch.Tensor]:
    return {"net.a": torch.arange(6.0).reshape(2, 3), "net.b": torch.ones(4, dtype=torch.bfloat16)}


def _read_index(path: Path) -> None:
    path.with_name("a.safetensors").write_bytes(save_tensors(_checkpoint_tensors()))
    read_checkpoint(path)


def _saved(**options: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"model": _checkpoint_tensors(), "ema": None}, stream, **options)
    return stream.getvalue()


def _lines(*records: object) -> list[bytes]:
    return ["".join(json.dumps(record) + "\n" for record in records).encode()]


def _caption_list() -> list[bytes]:
    first = {"video": "a.mp4", "caption": "A dog.", "start_s": 0, "end_s": 1.5}
    return _lines(first, {"video": "b/c.mp4", "caption": "A cat."})


def _caption_csv() -> list[bytes]:
    return [b'video,caption,start_s,end_s\na.mp4,"A dog, running.",0,1.5\nb/c.mp4,A cat.,,\n']


def _caption_parquet() -> list[bytes]:
    rows = {"video": ["a.mp4", "b/c.mp4"], "caption": ["A dog.", None], "start_s": [0.0, None], "end_s": [1.5, None]}
    return [_written(".parquet", lambda path: pq.write_table(pa.table(rows), path))]


def _embedded_videos() -> list[bytes]:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    videos = pa.array([{"bytes": bytes(40), "path": "a.webm"}, {"bytes": b"x" * 30, "path": None}, None], kind)
    table = pa.table({"video": videos, "caption": ["A dog.", None, "A cat."]})
    return [
        _written(".parquet", lambda path: pq.write_table(table, path, row_group_size=2)),
        _written(".parquet", lambda path: pq.write_table(table, path, use_dictionary=False, data_page_version="2.0")),
    ]


def _unpack(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            list(unpack(path, Path(folder), "file", "caption"))
        except ParquetError as error:
            raise WorldtuneError(f"{path}: {error}") from error


def _read_caption_list(path: Path) -> None:
    options = {"kind": "folder", "path": str(path.parent), "captions": str(path), "num_shards": 1}
    list_dataset.cache_clear()
    listing = list_dataset("fuzzed", DatasetConfig.model_validate(options))
    listing.videos("0000")
    listing.captions("0000")


def _metadata() -> list[bytes]:
    record = {"url": "https://youtu.be/x", "video_id": "x", "clip_id": "x.0.mp4", "caption": "A dog."}
    record |= {"span_start": "0:00:01.000", "span_end": "0:00:03.500"}
    return _lines(record, {**record, "video_id": "y", "url": "https://youtu.be/y"})


def _manifest() -> list[bytes]:
    row = {"clip_id": "0" * 16, "source_key": "a.mp4", "start_s": None, "end_s": 1.5, "status": "ok", "reason": ""}
    rows = [row, {**row, "clip_id": "1" * 16, "source_key": "b.mp4", "status": "unusable", "reason": "too short"}]
    return [_written(".parquet", lambda path: write_manifest(path, rows, CLIP_COLUMNS))]


def _caption_json() -> list[bytes]:
    return [json.dumps({"caption": "A dog.", "tags": ["a", 1, None]}).encode()]


def _read_caption_json(path: Path) -> None:
    def caption() -> None:
        found = read_caption(path.parent, SourceClip(key="a.mp4", caption_key=path.name))
        assert found is not None
        assert found.text is not None or found.problem

    _each(caption, lambda: read_json(path))


JSON_TOKENS = (
    *(b"[" * 5000, b'{"a":' * 5000, b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"null", b"true"),
    *(rb'"\ud800"', rb'"\u0000"', b"\xff\xfe", b"\xef\xbb\xbf", b"../", b"/", b"\n", b'"', b"{}", b"[]", b"0:99:99"),
    *(b"https://[", b'"caption"', b'"video"', b'"start_s"', b'"span_end"', b'"weight_map"', b"-1", b"0", b"\r"),
)
MP4_TOKENS = (
    *(b"ftyp", b"moov", b"mvhd", b"trak", b"tkhd", b"edts", b"elst", b"mdia", b"mdhd", b"hdlr", b"minf", b"stbl"),
    *(b"stsd", b"avc1", b"avcC", b"stts", b"stss", b"stsc", b"stsz", b"stco", b"ctts", b"mdat", b"pasp", b"colr"),
)
MKV_TOKENS = (
    *(b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x16T\xaek", b"\xae", b"\xe0", b"\xb0", b"\xba", b"\x1fC\xb6u", b"\xa3"),
    *(b"\xe7", b"\x1cS\xbbk", b"c\xa2", b"\x86", b"DURATION", b"V_FFV1", b"\x01\xff\xff\xff\xff\xff\xff\xff"),
)
PICKLE_TOKENS = (
    *(b"numpy", b"dtype", b"ndarray", b"f2", b"cos\nsystem\n", b"R", b"b", b"\x81", b"\x93", b"2\x86", b"22\x87"),
    *(b"h\x00", b"q\x00", b"\x94", b"(", b"t", b"s", b"u", b".", b"\x96", b"\x8e", b"\x8b", b"counts", b"mask_shape"),
)
SAFETENSORS_TOKENS = (
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"F16"', b'"BF16"', b'"F8_E4M3"', b'"F4"', b'"I64"', b'"BOOL"'),
    *(b"[" * 500, b"18446744073709551615", b"-1", b"0", b"__metadata__", b"[0,0]", b"1e9", b"null", b"[", b"]"),
)
PICKLES = (*HOSTILE_PICKLES, *ODD_PICKLES)
CLIP_SHAPE = (3, HEIGHT, WIDTH)

FORMATS = {
    form.name: form
    for form in (
        Format(name="mp4", suffix=".mp4", make=_mp4, read=_read_video, tokens=MP4_TOKENS),
        Format(name="mkv", suffix=".mkv", make=_mkv, read=_read_video, tokens=MKV_TOKENS),
        Format(name="seg", suffix=".pickle", make=_seg, read=_read_seg, tokens=PICKLE_TOKENS, by_hand=PICKLES),
        Format(
            name="keypoint",
            suffix=".pickle",
            make=_keypoint,
            read=lambda path: draw_skeletons(path, 1, CLIP_SHAPE, KeypointControl()),
            tokens=PICKLE_TOKENS,
            by_hand=PICKLES,
        ),
        Format(
            name="t5_pickle",
            suffix=".pickle",
            make=_t5,
            read=lambda path: read_t5(path, 512, CHANNELS),
            tokens=PICKLE_TOKENS,
            by_hand=PICKLES,
        ),
        Format(
            name="t5_safetensors",
            suffix=".safetensors",
            make=lambda: [save_arrays({SAFETENSORS_KEY: _embedding()})],
            read=lambda path: read_t5(path, 512, CHANNELS),
            tokens=SAFETENSORS_TOKENS,
        ),
        Format(
            name="checkpoint_safetensors",
            suffix=".safetensors",
            make=lambda: [save_tensors(_checkpoint_tensors(), {"format": "pt"})],
            read=read_checkpoint,
            tokens=SAFETENSORS_TOKENS,
        ),
        Format(
            name="checkpoint_index",
            suffix=".safetensors.index.json",
            make=lambda: [json.dumps({"metadata": {}, "weight_map": {"net.a": "a.safetensors"}}).encode()],
            read=_read_index,
            tokens=JSON_TOKENS,
        ),
        Format(
            name="checkpoint_pt",
            suffix=".pt",
            make=lambda: [_saved(), _saved(_use_new_zipfile_serialization=False)],
            read=read_checkpoint,
            tokens=PICKLE_TOKENS,
            by_hand=HOSTILE_PICKLES[:16],
        ),
        Format(name="caption_jsonl", suffix=".jsonl", make=_caption_list, read=_read_caption_list, tokens=JSON_TOKENS),
        Format(name="caption_csv", suffix=".csv", make=_caption_csv, read=_read_caption_list, tokens=JSON_TOKENS),
        Format(name="caption_parquet", suffix=".parquet", make=_caption_parquet, read=_read_caption_list),
        Format(
            name="embedded_videos",
            suffix=".parquet",
            make=_embedded_videos,
            read=_unpack,
            tokens=(b"PAR1", b"ARROW:schema", b"bytes", b"\x15\x00", b"\x15\xff\xff\xff\xff\x0f", b"\x18\xff\x7f"),
        ),
        Format(name="caption_json", suffix=".json", make=_caption_json, read=_read_caption_json, tokens=JSON_TOKENS),
        Format(
            name="hdvila_jsonl",
            suffix=".jsonl",
            make=_metadata,
            read=lambda path: listed_clips(path, 10),
            tokens=JSON_TOKENS,
        ),
        Format(
            name="parquet",
            suffix=".parquet",
            make=_manifest,
            read=lambda path: read_manifest(path, CLIP_COLUMNS),
            tokens=(b"PAR1", b"ARROW:schema", b"clip_id", b"\x15\x00", b"\x26\xff\xff\xff\xff\x0f"),
        ),
    )
}
