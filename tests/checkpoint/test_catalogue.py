import tomllib
from pathlib import Path

import pytest

from worldtune.checkpoint.catalogue import Catalogue, load_catalogue
from worldtune.common.errors import WorldtuneError

ROOT = Path(__file__).parents[2]
CATALOGUE = ROOT / "config/checkpoints.toml"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue(CATALOGUE)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_it_has_every_repository_of_the_original_and_of_the_demo(catalogue: Catalogue) -> None:
    assert {repository.id for repository in catalogue.repository} == {
        "nvidia/Cosmos-Transfer1-7B",
        "nvidia/Cosmos-Transfer1-7B-Sample-AV",
        "nvidia/Cosmos-Transfer1-7B-Sample-AV-Single2MultiView",
        "nvidia/Cosmos-Tokenize1-CV8x8x8-720p",
        "nvidia/Cosmos-UpsamplePrompt1-12B-Transfer",
        "nvidia/Cosmos-Guardrail1",
        "facebook/sam2-hiera-large",
        *(f"depth-anything/Depth-Anything-V2-{size}-hf" for size in ("Small", "Base", "Large")),
        "SceneWorks/dwpose-onnx",
        "IDEA-Research/grounding-dino-tiny",
        "google-t5/t5-11b",
        "Qwen/Qwen3-VL-8B-Instruct",
        "meta-llama/Llama-Guard-3-8B",
        "worldtune/demo-transfer1",
        "worldtune/demo-transfer1-av",
        "worldtune/demo-transfer1-multiview",
        "worldtune/demo-t5",
        "worldtune/demo-tokenizer",
    }


def test_a_single_file_is_its_own_output(catalogue: Catalogue) -> None:
    request = catalogue.find("nvidia/Cosmos-Transfer1-7B/edge_control.pt")
    assert request.output(Path("checkpoints")) == Path("checkpoints/nvidia/Cosmos-Transfer1-7B/edge_control.pt")


@pytest.mark.parametrize("name", ["google-t5/t5-11b", "google-t5/t5-11b/", "google-t5/t5-11b/files.json"])
def test_a_folder_has_its_file_list_as_output(catalogue: Catalogue, name: str) -> None:
    assert catalogue.find(name).output(Path("weights")) == Path("weights/google-t5/t5-11b/files.json")


def test_every_name_is_found_and_described(catalogue: Catalogue) -> None:
    for request in catalogue.requests:
        assert catalogue.find(request.name) == request
        assert request.describe().startswith(request.name + ": ")


def test_a_wrong_name_gets_the_nearest_one(catalogue: Catalogue) -> None:
    with pytest.raises(WorldtuneError, match=r"did you mean nvidia/Cosmos-Transfer1-7B/edge_control\.pt"):
        catalogue.find("nvidia/Cosmos-Transfer1-7B/edge_contrl.pt")


def test_what_is_asked_for_must_be_listed_or_there(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.check_available("nvidia/Cosmos-Transfer1-7B/base_model.pt", "base", tmp_path)
    with pytest.raises(WorldtuneError, match=r"^base = 'my/own/x\.pt', but there is no .*/my/own/x\.pt\. .*catalogue"):
        catalogue.check_available("my/own/x.pt", "base", tmp_path)
    (tmp_path / "my/own").mkdir(parents=True)
    (tmp_path / "my/own/x.pt").touch()
    catalogue.check_available("my/own/x.pt", "base", tmp_path)


def test_what_a_job_that_reads_a_network_waits_for(catalogue: Catalogue, tmp_path: Path) -> None:
    assert catalogue.network_files("google-t5/t5-11b", "text_encoder", tmp_path) == [
        tmp_path / "google-t5/t5-11b/files.json"
    ]
    with pytest.raises(WorldtuneError, match=r"^text_encoder = 'google-t5/t5-12b', but there .*did you mean google-t5"):
        catalogue.network_files("google-t5/t5-12b", "text_encoder", tmp_path)
    folder = tmp_path / "mine/encoder"
    folder.mkdir(parents=True)
    (folder / ".hashes.json").touch()
    with pytest.raises(WorldtuneError, match=r"^text_encoder = 'mine/encoder', but .* is no folder with files"):
        catalogue.network_files("mine/encoder", "text_encoder", tmp_path)
    for name in ("model.safetensors", "config.json"):
        (folder / name).touch()
    (folder / "onnx").mkdir()
    expected = [folder / "config.json", folder / "model.safetensors"]
    assert catalogue.network_files("mine/encoder", "text_encoder", tmp_path) == expected


def test_a_repository_of_single_files_is_no_request(catalogue: Catalogue) -> None:
    with pytest.raises(WorldtuneError, match="is not in the checkpoint catalogue"):
        catalogue.find("nvidia/Cosmos-Transfer1-7B")


FILE = '[repository.files]\n"a.pt" = { purpose = "x" }\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'[[repository]]\nid = "o/r"\npurpose = "x"\nlicense = "MIT"\n{FILE}', "o/r: license"),
        (f'[[repository]]\nid = "o/r"\npurpose = "x"\npinned = true\n{FILE}', "contradict each other"),
        (f'[[repository]]\nid = "o/r"\npurpose = "x"\nrevision = "{"a" * 40}"\n{FILE}', "contradict each other"),
        ('[[repository]]\nid = "o/r"\npurpose = "x"\n', "give either files"),
        (f'[[repository]]\nid = "../r/x"\npurpose = "x"\n{FILE}', "id"),
        (f'[[repository]]\nid = "o/r"\npurpose = "x"\n{FILE}' * 2, "listed twice: o/r"),
    ],
)
def test_bad_entries_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(WorldtuneError, match=message):
        load_catalogue(write(tmp_path / "checkpoints.toml", text))


def test_a_pinned_commit_is_accepted(tmp_path: Path) -> None:
    text = f'[[repository]]\nid = "o/r"\npurpose = "x"\nrevision = "{"0a" * 20}"\npinned = true\n{FILE}'
    assert load_catalogue(write(tmp_path / "checkpoints.toml", text)).find("o/r/a.pt").repository.pinned


def test_a_missing_or_broken_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(WorldtuneError, match="does not exist"):
        load_catalogue(tmp_path / "none.toml")
    with pytest.raises(WorldtuneError, match="no valid TOML"):
        load_catalogue(write(tmp_path / "bad.toml", "[[repository"))


def test_unpinned_entries_are_told_from_pinned_ones() -> None:
    entries = tomllib.loads(CATALOGUE.read_text())["repository"]
    assert all(entry.get("pinned", False) == (len(entry.get("revision", "main")) == 40) for entry in entries)
