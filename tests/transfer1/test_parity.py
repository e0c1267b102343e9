import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldtune.transfer1.parity import BOUND, error_of, errors_of_case

REPOSITORY = Path(__file__).parents[2]
COMMITTED = REPOSITORY / "tests" / "golden" / "transfer1"


def elsewhere() -> Path:
    """Folder of the cases that are too large to be committed."""
    return Path(os.environ.get("WORLDTUNE_GOLDEN", REPOSITORY.parent / "shared" / "golden")) / "transfer1"


def case_prefix(name: str) -> Path:
    for folder in (COMMITTED, elsewhere()):
        if (folder / f"{name}.json").exists():
            print(f"{name} from {folder}")
            return folder / name
    if "WORLDTUNE_GOLDEN" in os.environ:
        pytest.fail(f"{name}.json is neither in {COMMITTED} nor in {elsewhere()}, where WORLDTUNE_GOLDEN points")
    pytest.skip(f"{name} is not committed: set WORLDTUNE_GOLDEN to the folder that has transfer1/{name}.json")


def case_names() -> list[str]:
    found = {path.stem for folder in (COMMITTED, elsewhere()) for path in folder.glob("case_*.json")}
    return sorted(found | {"case_a", "case_b", "case_e"})


@pytest.mark.parametrize("name", case_names())
def test_every_output_feature_and_gradient_equals_the_reference(name: str) -> None:
    errors = errors_of_case(str(case_prefix(name)))
    over = {name: error for name, error in errors.items() if not error <= BOUND}
    assert len(errors) > 5
    assert not over


def test_a_wrong_reference_is_seen(tmp_path: Path) -> None:
    prefix = case_prefix("case_a")
    for suffix in ("base.safetensors", "ctrl.safetensors", "json"):
        (tmp_path / f"case_a.{suffix}").write_bytes(Path(f"{prefix}.{suffix}").read_bytes())
    tensors = load_file(f"{prefix}.io.safetensors")
    tensors["out/combined"] = tensors["out/combined"] * (1 + 1e-4)
    tensors["out/unknown"] = torch.ones(1)
    save_file(tensors, tmp_path / "case_a.io.safetensors")
    errors = errors_of_case(str(tmp_path / "case_a"))
    assert sorted(name for name, error in errors.items() if error > BOUND) == ["out/combined", "out/unknown"]


def test_error_measure() -> None:
    reference = torch.tensor([1.0, -2.0])
    assert error_of(reference, reference) == 0
    assert error_of(torch.tensor([1.0, -2.2]), reference) == pytest.approx(0.1)
    assert error_of(torch.tensor([1.0]), reference) == float("inf")
    assert error_of(torch.tensor([1.0, float("nan")]), reference) == float("inf")
    assert error_of(None, reference) == float("inf")
    assert error_of(torch.full((2,), 1e-13), torch.zeros(2)) == 0
    assert error_of(torch.full((2,), 1e-11), torch.zeros(2)) == float("inf")
