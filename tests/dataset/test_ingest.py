import os
import subprocess

import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.dataset.clips import clip_id, video_path
from worldtune.dataset.config import DatasetConfig
from worldtune.dataset.ingest import COLUMNS, ingest
from worldtune.dataset.ledger import ledger_path
from worldtune.dataset.manifest import read_manifest
from worldtune.media.video import check_video, ffmpeg_executable, read_frames


def ffmpeg(*arguments: object) -> None:
    subprocess.run([ffmpeg_executable(), "-y", "-v", "error", *map(str, arguments)], check=True)


def rows_by_key(manifest):
    return {row["source_key"]: row for row in read_manifest(manifest, COLUMNS)}


def records(source) -> int:
    return ledger_path(source.root, "ingest", "0000").read_bytes().count(b'"row"')


def test_usable_video_is_copied(source):
    path = source.add("sub/a.mp4")
    row = rows_by_key(source.ingest())["sub/a.mp4"]
    clip = video_path(source.root, clip_id("sub/a.mp4"))
    assert (row["status"], row["num_frames"], row["width"], row["height"], row["fps"]) == ("ok", 6, 48, 32, 24.0)
    assert row["action"] == "copy"
    assert clip.read_bytes() == path.read_bytes()


def test_source_keeps_its_mode_and_its_clip_its_content(source):
    path = source.add("a.mp4")
    path.chmod(0o444)
    source.ingest()
    clip = video_path(source.root, clip_id("a.mp4"))
    content = clip.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o444
    assert path.stat().st_nlink == 1
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.write(b"written in place")
    assert clip.read_bytes() == content


def test_unusable_videos_keep_rows_with_reasons(source):
    source.add("good.mp4")
    source.add("short.mp4", num_frames=4)
    whole = source.add("cut.mp4").read_bytes()
    (source.folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (source.folder / "empty.mp4").touch()
    (source.folder / "text.mp4").write_text("no video")
    (source.folder / "gone.mp4").symlink_to("nothing")
    rows = rows_by_key(source.ingest())
    reasons = {key: row["reason"] for key, row in rows.items() if row["status"] == "unusable"}
    assert set(rows) - set(reasons) == {"good.mp4"}
    assert reasons["short.mp4"] == "too short: 4 frames; at least 5 are needed"
    assert reasons["cut.mp4"].startswith("truncated video: cut.mp4")
    assert reasons["empty.mp4"].startswith("empty video: empty.mp4 has 0 bytes")
    assert reasons["text.mp4"].startswith("unreadable video: text.mp4")
    assert reasons["gone.mp4"].startswith("no video: gone.mp4 does not exist")
    # The table is the same wherever the folder lies.
    assert str(source.folder) not in str(rows)
    assert [path.stem for path in (source.root / "videos").iterdir()] == [clip_id("good.mp4")]


def test_only_changed_clips_are_done_again(source):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        source.add(name)
    first = source.ingest().read_bytes()
    assert records(source) == 3
    manifest = source.ingest()
    assert records(source) == 3
    assert manifest.read_bytes() == first
    source.add("b.mp4", num_frames=8, seed=5)
    source.add("d.mp4")
    rows = rows_by_key(source.ingest())
    assert records(source) == 5
    assert rows["b.mp4"]["num_frames"] == 8
    (source.folder / "a.mp4").unlink()
    assert set(rows_by_key(source.ingest())) == {"b.mp4", "c.mp4", "d.mp4"}
    assert records(source) == 5


def test_lost_clip_file_is_made_again(source):
    source.add("a.mp4")
    source.ingest()
    clip = video_path(source.root, clip_id("a.mp4"))
    clip.unlink()
    source.ingest()
    assert clip.exists()


def test_changed_parameter_does_all_again(source):
    source.add("a.mp4")
    source.ingest()
    source.options["min_frames"] = 7
    assert rows_by_key(source.ingest())["a.mp4"]["status"] == "unusable"
    assert not video_path(source.root, clip_id("a.mp4")).exists()
    source.options["min_frames"] = 5
    assert rows_by_key(source.ingest())["a.mp4"]["status"] == "ok"


def test_torn_ledger_line_costs_one_clip(source):
    for name in ("a.mp4", "b.mp4"):
        source.add(name)
    first = source.ingest().read_bytes()
    path = ledger_path(source.root, "ingest", "0000")
    path.write_bytes(path.read_bytes()[:-9])
    assert source.ingest().read_bytes() == first
    # The torn line and the one that was done again.
    assert records(source) == 3


def test_manifest_is_the_same_from_another_place_and_with_several_processes(source, tmp_path):
    for number in range(4):
        source.add(f"{number}.mp4", seed=number)
    (source.folder / "bad.mp4").touch()
    first = source.ingest().read_bytes()
    moved = tmp_path / "moved"
    source.folder.rename(moved)
    source.folder = moved
    source.datasets = tmp_path / "other"
    assert source.ingest(processes=2).read_bytes() == first


def test_time_ranges_are_cut_out(source):
    path = source.add("a.mp4", num_frames=48)
    captions = source.folder.parent / "list.csv"
    captions.write_text("video,caption,start_s,end_s\na.mp4,One.,0,0.5\na.mp4,Two.,1,1.75\na.mp4,Three.,1.5,9\n")
    source.options["captions"] = str(captions)
    rows = {row["start_s"]: row for row in read_manifest(source.ingest(), COLUMNS)}
    assert (rows[0.0]["num_frames"], rows[1.0]["num_frames"]) == (12, 18)
    assert rows[1.0]["action"] == "encode"
    assert rows[1.5]["reason"].startswith("time range outside the video: it ends at 9 s, the video at 2.000 s")
    cut = read_frames(video_path(source.root, clip_id("a.mp4", 1, 1.75)), 0, 18)
    original = read_frames(path, 24, 18)
    difference = abs(cut.astype(int) - original).mean(axis=(1, 2, 3))
    shifted = abs(cut[:-1].astype(int) - original[1:]).mean(axis=(1, 2, 3))
    assert difference.max() < shifted.min()


def test_variable_rate_becomes_constant(source):
    path = source.add("a.mp4", num_frames=20)
    ffmpeg("-i", path, "-vf", "setpts='if(lt(N,10),N,10+(N-10)*2)/24/TB'", "-fps_mode", "vfr", path.with_name("v.mp4"))
    row = rows_by_key(source.ingest())["v.mp4"]
    assert row["source_variable_frame_rate"]
    assert row["action"] == "encode"
    info = check_video(video_path(source.root, clip_id("v.mp4")))
    assert not info.variable_frame_rate
    assert info.num_frames == row["num_frames"]
    assert row["fps"] == pytest.approx(row["source_fps"], rel=0.01)


def test_frames_that_are_larger_than_their_header_says_are_not_decoded(source, monkeypatch):
    source.folder.mkdir()
    frames = b""
    for size in ("64x48", "128x96"):
        ffmpeg("-f", "lavfi", "-i", f"testsrc=s={size}:d=0.5:r=24", "-f", "mjpeg", source.folder / "part")
        frames += (source.folder / "part").read_bytes()
    (source.folder / "part").write_bytes(frames)
    ffmpeg("-f", "mjpeg", "-r", 24, "-i", source.folder / "part", "-c", "copy", source.folder / "grows.avi")
    (source.folder / "list.csv").write_text("video,caption,start_s,end_s\ngrows.avi,A test card.,0,0.9\n")
    source.options = {"captions": str(source.folder / "list.csv")}
    [row] = read_manifest(source.ingest(), COLUMNS)
    assert (row["status"], row["width"]) == ("ok", 64)
    for module in ("media.video", "dataset.ingest"):
        monkeypatch.setattr(f"worldtune.{module}.MAX_PIXELS", 64 * 48)
    (source.folder / "grows.avi").touch()
    [row] = read_manifest(source.ingest(), COLUMNS)
    assert row["reason"].startswith("unreadable video: grows.avi cannot be made into a clip")


def test_turned_and_stretched_pictures_are_put_right(source):
    path = source.add("a.mp4")
    ffmpeg("-display_rotation", "90", "-i", path, "-c", "copy", path.with_name("turned.mp4"))
    ffmpeg("-i", path, "-vf", "setsar=2", path.with_name("wide.mp4"))
    rows = rows_by_key(source.ingest())
    assert (rows["turned.mp4"]["source_rotation_degrees"], rows["wide.mp4"]["source_rotation_degrees"]) == (90, 0)
    assert (rows["turned.mp4"]["width"], rows["turned.mp4"]["height"]) == (32, 48)
    assert (rows["wide.mp4"]["width"], rows["wide.mp4"]["height"]) == (96, 32)
    for name in ("turned.mp4", "wide.mp4"):
        info = check_video(video_path(source.root, clip_id(name)))
        assert info.square_pixels
        assert not info.rotation_degrees


def test_other_containers_and_codecs(source):
    path = source.add("a.mp4")
    ffmpeg("-i", path, "-c", "copy", path.with_name("b.mkv"))
    ffmpeg("-i", path, "-c:v", "mpeg4", path.with_name("c.avi"))
    ffmpeg("-i", path, "-c", "copy", path.with_name("d.mov"))
    rows = rows_by_key(source.ingest())
    assert {key: row["action"] for key, row in rows.items()} == {
        "a.mp4": "copy",
        "b.mkv": "remux",
        "c.avi": "encode",
        "d.mov": "copy",
    }
    for key in rows:
        info = check_video(video_path(source.root, clip_id(key)))
        assert (info.num_frames, info.container) == (6, "mov,mp4,m4a,3gp,3g2,mj2")
        assert rows[key]["fps"] == 24.0


def test_clips_are_independent_of_the_number_of_processes(source, tmp_path):
    path = source.add("a.mp4")
    ffmpeg("-i", path, "-c:v", "mpeg4", path.with_name("c.avi"))
    clip = clip_id("c.avi")
    source.ingest()
    first = video_path(source.root, clip).read_bytes()
    source.datasets = tmp_path / "other"
    source.ingest(processes=2)
    assert video_path(source.root, clip).read_bytes() == first


def test_missing_folder_and_download_are_named(source, tmp_path):
    with pytest.raises(WorldtuneError, match=r"datasets\.tiny\.path = .* is /.*, which is no folder"):
        source.ingest()
    with pytest.raises(WorldtuneError, match=r"metadata\.jsonl does not exist"):
        ingest("h", DatasetConfig(kind="hdvila", num_shards=1, max_clips=1), "0000", datasets=tmp_path)


def test_file_that_changes_only_its_time_is_read_again(source):
    path = source.add("a.mp4")
    first = source.ingest().read_bytes()
    os.utime(path, ns=(1, 1))
    assert source.ingest().read_bytes() == first
    assert records(source) == 2


def test_a_video_outside_of_the_views_is_not_read(source):
    source.options["views"] = {"front": "", "left": "To the left."}
    for key in ("front/a.mp4", "left/a.mp4", "rear/a.mp4"):
        source.add(key)
    rows = rows_by_key(source.ingest())
    assert [rows[key]["status"] for key in sorted(rows)] == ["ok", "ok", "unusable"]
    assert "no view" in rows["rear/a.mp4"]["reason"]
    source.options["views"] = {"front": "", "left": "To the left.", "rear": "Back."}
    assert rows_by_key(source.ingest())["rear/a.mp4"]["status"] == "ok"
    source.options["views"] = {"front": "", "left": "To the left."}
    assert rows_by_key(source.ingest())["rear/a.mp4"]["status"] == "unusable"
    assert not video_path(source.root, clip_id("rear/a.mp4")).exists()
