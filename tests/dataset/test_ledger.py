import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldtune.dataset.ledger import Ledger, make_record

ROW = {"status": "ok"}


def record(root, clip: str, value: int, *, output: bool = False):
    path = root / f"{clip}.bin"
    if output:
        path.write_bytes(b"12345")
    return make_record(root, clip, {"value": value}, (path,) if output else (), ROW | {"value": value})


def test_last_record_counts_and_inputs_must_be_equal(tmp_path):
    ledger = Ledger(tmp_path, "ingest", "0000")
    ledger.append(record(tmp_path, "a", 1), record(tmp_path, "b", 1))
    ledger.append(record(tmp_path, "a", 2))
    for reader in (ledger, Ledger(tmp_path, "ingest", "0000")):
        assert reader.current("a", {"value": 2})["row"]["value"] == 2
        assert reader.current("a", {"value": 1}) is None
        assert reader.current("b", {"value": 1}) is not None
        assert reader.current("c", {"value": 1}) is None


def test_output_must_be_there_with_its_size(tmp_path):
    Ledger(tmp_path, "ingest", "0000").append(record(tmp_path, "a", 1, output=True))
    ledger = Ledger(tmp_path, "ingest", "0000")
    assert ledger.current("a", {"value": 1}) is not None
    (tmp_path / "a.bin").write_bytes(b"1234")
    assert ledger.current("a", {"value": 1}) is None
    (tmp_path / "a.bin").unlink()
    assert ledger.current("a", {"value": 1}) is None


def test_shards_and_stages_have_their_own(tmp_path):
    Ledger(tmp_path, "ingest", "0000").append(record(tmp_path, "a", 1))
    assert Ledger(tmp_path, "ingest", "0001").current("a", {"value": 1}) is None
    assert Ledger(tmp_path, "captions", "0000").current("a", {"value": 1}) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 60))
def test_torn_last_line_is_passed_over_and_does_not_spoil_the_next(tmp_path, cut):
    ledger = Ledger(tmp_path, "ingest", "0000")
    ledger.path.unlink(missing_ok=True)
    ledger.append(record(tmp_path, "a", 1))
    whole = ledger.path.read_bytes()
    ledger.append(record(tmp_path, "b", 1))
    ledger.path.write_bytes(ledger.path.read_bytes()[: len(whole) + cut])
    torn = Ledger(tmp_path, "ingest", "0000")
    assert torn.current("a", {"value": 1}) is not None
    assert torn.current("b", {"value": 1}) is None
    torn.append(record(tmp_path, "c", 1))
    after = Ledger(tmp_path, "ingest", "0000")
    assert after.current("a", {"value": 1}) is not None
    assert after.current("c", {"value": 1}) is not None


@pytest.mark.parametrize(
    "line", ["null", "[]", '{"clip_id": "a"}', '{"clip_id": "a", "inputs": {}, "outputs": 3, "row": 1}']
)
def test_foreign_lines_are_passed_over(tmp_path, line):
    ledger = Ledger(tmp_path, "ingest", "0000")
    ledger.append(record(tmp_path, "b", 1))
    with open(ledger.path, "a") as file:
        file.write(line + "\n")
    read = Ledger(tmp_path, "ingest", "0000")
    assert read.current("a", {}) is None
    assert read.current("b", {"value": 1}) is not None
