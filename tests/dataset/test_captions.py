import json

from worldtune.common.files import read_json
from worldtune.dataset.captions import COLUMNS
from worldtune.dataset.clips import caption_path, clip_id
from worldtune.dataset.ledger import ledger_path
from worldtune.dataset.manifest import read_manifest
from worldtune.dataset.verification import read_captions


def rows_by_key(manifest):
    return {row["source_key"]: row for row in read_manifest(manifest, COLUMNS)}


def records(source) -> int:
    return ledger_path(source.root, "captions", "0000").read_bytes().count(b'"row"')


def test_caption_files(source):
    source.add("sub/a.mp4", caption="  A dog runs.\nIt barks.\n")
    row = rows_by_key(source.captions())["sub/a.mp4"]
    assert row["status"] == "ok"
    path = caption_path(source.root, clip_id("sub/a.mp4"))
    assert path.read_text() == "A dog runs.\nIt barks.\n"
    facts = read_json(path.with_suffix(".json"))
    assert facts == {"caption": "A dog runs.\nIt barks.", "source_key": "sub/a.mp4", "start_s": None, "end_s": None}


def test_line_ends_of_other_systems_are_no_part_of_a_caption(source):
    for name, end in (("unix", b"\n"), ("windows", b"\r\n"), ("old", b"\r")):
        source.add(f"{name}.mp4").with_suffix(".txt").write_bytes(b"A dog runs." + end + b"It barks." + end)
    hashes = {row["caption_sha256"] for row in rows_by_key(source.captions()).values()}
    assert len(hashes) == 1
    paths = [caption_path(source.root, clip_id(f"{name}.mp4")) for name in ("unix", "windows", "old")]
    assert {found for _, found in read_captions(paths).values()} == hashes


def test_reasons(source):
    for name in ("none", "empty", "json", "huge", "binary", "good"):
        source.add(f"{name}.mp4", caption=None)
    (source.folder / "empty.txt").write_text(" \n")
    (source.folder / "json.json").write_text(json.dumps({"text": "x"}))
    (source.folder / "huge.txt").write_text("x" * (1 << 20) + "x")
    (source.folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (source.folder / "good.txt").write_text("Good.")
    (source.folder / "lonely.txt").write_text("Where is it?")
    rows = rows_by_key(source.captions())
    reasons = {key: row["reason"] for key, row in rows.items() if row["status"] == "unusable"}
    assert set(rows) - set(reasons) == {"good.mp4"}
    assert reasons["none.mp4"].startswith("no caption: neither")
    assert reasons["empty.mp4"] == "no caption: it is empty"
    assert reasons["json.mp4"] == 'caption unreadable: it has no text "caption"'
    assert reasons["huge.mp4"].startswith("caption unreadable: it is larger")
    assert reasons["binary.mp4"] == "caption unreadable: it is no UTF-8"
    assert reasons["lonely.txt"].startswith("no video:")


def test_only_changed_captions_are_written_again(source):
    for name in ("a", "b"):
        source.add(f"{name}.mp4", caption=f"Caption {name}.")
    first = source.captions().read_bytes()
    assert source.captions().read_bytes() == first
    assert records(source) == 2
    (source.folder / "a.txt").write_text("Another.")
    source.captions()
    assert records(source) == 3
    (source.folder / "a.txt").unlink()
    assert rows_by_key(source.captions())["a.mp4"]["status"] == "unusable"
    assert not caption_path(source.root, clip_id("a.mp4")).exists()


def test_list_of_captions(source):
    source.add("a.mp4", caption="Beside.")
    captions = source.folder.parent / "list.jsonl"
    lines = [
        {"video": "a.mp4", "caption": "One.", "start_s": 0, "end_s": 1},
        {"video": "a.mp4", "caption": "", "start_s": 1, "end_s": 2},
        {"video": "b.mp4", "caption": "No such video."},
    ]
    captions.write_text("\n".join(json.dumps(line) for line in lines))
    source.options["captions"] = str(captions)
    rows = read_manifest(source.captions(), COLUMNS)
    assert {(row["source_key"], row["start_s"]): row["status"] for row in rows} == {
        ("a.mp4", 0.0): "ok",
        ("a.mp4", 1.0): "unusable",
        ("b.mp4", None): "ok",
    }
    assert caption_path(source.root, clip_id("a.mp4", 0, 1)).read_text() == "One.\n"
