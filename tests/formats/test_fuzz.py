"""Mutated files of every format; `python tests/formats/fuzz.py` throws more of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faulty_formats import FAULTY
from fuzz import file_content
from fuzz_formats import FORMATS
from hostile_pickles import HOSTILE_PICKLES, ODD_PICKLES

from worldtune.common.errors import WorldtuneError
from worldtune.formats.pickles import read_pickle


def fuzz(names: list[str], num_files: int) -> dict[str, Any]:
    """Run the fuzzer, which forks, in a process of its own."""
    script = Path(__file__).with_name("fuzz.py")
    command = [sys.executable, str(script), "--json", "--files", str(num_files), "--only", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def assert_clean(results: dict[str, Any], num_files: int) -> None:
    assert {name: result["faults"] for name, result in results.items() if result["faults"]} == {}
    for name, result in results.items():
        counts = result["counts"]
        assert counts["read"] + counts["refused"] == num_files
        # Else the files are so broken that nothing behind the first look at them is tried, or not broken at all.
        assert counts["read"] > 0, name
        assert counts["refused"] > num_files / 4, name


def test_mutated_files_are_read_or_refused() -> None:
    assert_clean(fuzz(list(FORMATS), 200), 200)


@pytest.mark.slow
def test_ten_thousand_mutated_files_of_each_format() -> None:
    assert_clean(fuzz(list(FORMATS), 10_000), 10_000)


def test_the_fuzzer_finds_faults_and_goes_on() -> None:
    results = fuzz(list(FAULTY), 3)
    for fault, result in results.items():
        assert result["counts"]["read"] == 2
        assert list(result["faults"]) == ["1"]
        assert result["faults"]["1"].startswith(fault.removesuffix(" later"))


@pytest.mark.parametrize("number", [4865, 7819])
def test_files_that_ended_the_process_are_refused(tmp_path: Path, number: int) -> None:
    form = FORMATS["embedded_videos"]
    path = tmp_path / f"damaged{form.suffix}"
    path.write_bytes(file_content(form, number))
    with pytest.raises(WorldtuneError):
        form.read(path)


@pytest.mark.parametrize("number", range(len(HOSTILE_PICKLES)))
def test_hostile_pickles_are_refused(tmp_path: Path, number: int) -> None:
    path = tmp_path / "hostile.pickle"
    path.write_bytes(HOSTILE_PICKLES[number])
    with pytest.raises(WorldtuneError, match=r"hostile\.pickle is no pickle of plain arrays"):
        read_pickle(path, 1 << 30)


@pytest.mark.parametrize("number", range(len(ODD_PICKLES)))
def test_odd_pickles_are_little(tmp_path: Path, number: int) -> None:
    path = tmp_path / "odd.pickle"
    path.write_bytes(ODD_PICKLES[number])
    value = read_pickle(path, 1 << 30)
    assert value is None or not len(value)


def test_files_are_the_same_each_time_and_differ() -> None:
    form = FORMATS["t5_safetensors"]
    files = [file_content(form, number) for number in range(20)]
    assert files == [file_content(form, number) for number in range(20)]
    assert len(set(files)) > 15
