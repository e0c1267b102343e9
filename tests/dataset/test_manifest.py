import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.manifest import read_manifest, write_manifest

COLUMNS = {"clip_id": pa.string(), "value": pa.float64(), "note": pa.string()}
ROWS = [{"clip_id": f"{number:02x}", "value": number / 3, "note": None} for number in range(20)]


def test_equal_rows_give_equal_bytes_in_any_order(tmp_path, monkeypatch):
    write_manifest(tmp_path / "a.parquet", ROWS, COLUMNS)
    time.sleep(0.01)
    monkeypatch.setenv("HOSTNAME", "another")
    write_manifest(tmp_path / "sub/b.parquet", reversed(ROWS), COLUMNS)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "sub/b.parquet").read_bytes()
    assert read_manifest(tmp_path / "a.parquet", COLUMNS) == ROWS


def test_no_rows(tmp_path):
    write_manifest(tmp_path / "a.parquet", [], COLUMNS)
    assert read_manifest(tmp_path / "a.parquet", COLUMNS) == []


def test_rows_have_exactly_the_columns(tmp_path):
    with pytest.raises(ValueError, match="a row has the columns"):
        write_manifest(tmp_path / "a.parquet", [{"clip_id": "a"}], COLUMNS)


def test_manifest_of_another_version_is_refused(tmp_path):
    write_manifest(tmp_path / "a.parquet", ROWS, COLUMNS)
    with pytest.raises(WorldtuneError, match="expected clip_id, other"):
        read_manifest(tmp_path / "a.parquet", {"clip_id": pa.string(), "other": pa.string()})
    with pytest.raises(WorldtuneError, match=r"none\.parquet does not exist"):
        read_manifest(tmp_path / "none.parquet", COLUMNS)


def test_texts_that_are_no_utf8_are_refused(tmp_path):
    texts = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"clip_id": texts}), tmp_path / "a.parquet")
    with pytest.raises(WorldtuneError, match=r"a\.parquet cannot be read: .*utf-8"):
        read_manifest(tmp_path / "a.parquet", {"clip_id": pa.string()})
