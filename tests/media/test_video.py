import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from worldtune.common.errors import WorldtuneError
from worldtune.media.video import (
    EmptyVideoError,
    TruncatedVideoError,
    UndecodableVideoError,
    VideoError,
    check_video,
    ffmpeg_executable,
    iterate_frames,
    probe,
    read_frames,
    video_writer,
    write_video,
)


def ffmpeg(*arguments: object) -> None:
    subprocess.run([ffmpeg_executable(), "-y", "-v", "error", *map(str, arguments)], check=True)


@pytest.fixture
def clip(tmp_path, moving_frames):
    path = tmp_path / "clip.mp4"
    write_video(path, moving_frames(30), 24)
    return path


def test_facts_of_a_written_video(clip):
    info = check_video(clip)
    assert (info.num_frames, info.width, info.height, info.fps) == (30, 64, 48, 24.0)
    assert info.duration_s == pytest.approx(1.25)
    assert not info.variable_frame_rate
    assert info.codec == "h264"
    assert info == probe(clip)


def test_lossy_video_is_close_to_its_frames(clip, moving_frames):
    difference = np.abs(read_frames(clip, 0, 30).astype(int) - moving_frames(30))
    assert difference.mean() < 16


@pytest.mark.parametrize("shape", [(5, 33, 41, 3), (5, 33, 41)])
def test_lossless_video_is_exact(tmp_path, shape):
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_video(tmp_path / "a.mkv", frames, 29.97, lossless=True)
    expected = frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=3)
    assert np.array_equal(read_frames(tmp_path / "a.mkv", 0, 5), expected)
    assert check_video(tmp_path / "a.mkv").fps == pytest.approx(29.97)


@pytest.mark.parametrize(("name", "lossless"), [("a.mp4", False), ("a.mkv", True)])
def test_equal_frames_give_equal_bytes(tmp_path, moving_frames, name, lossless):
    for folder in ("first", "second"):
        write_video(tmp_path / folder / name, moving_frames(6), 24, lossless=lossless)
    assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["-bf", "3", "-g", "7"],
        ["-x264-params", "open-gop=1:keyint=8:bframes=3"],
        ["-bf", "2", "-g", "100", "-force_key_frames", "0.125,0.2,0.5,0.9"],
        ["-vf", "setpts='if(lt(N,10),N,10+(N-10)*2)/24/TB'", "-fps_mode", "vfr"],
        ["-vf", "setpts=PTS+1/TB"],
    ],
    ids=["plain", "b-frames", "open gop", "variable gop", "variable rate", "late start"],
)
def test_any_window_is_the_same_as_in_a_whole_read(clip, tmp_path, options):
    path = tmp_path / "other.mp4"
    ffmpeg("-i", clip, *options, path)
    whole = np.stack(list(iterate_frames(path)))
    assert len(whole) == probe(path).num_frames
    for start in range(0, len(whole) - 3, 4):
        assert np.array_equal(read_frames(path, start, 3), whole[start : start + 3])


def damage(path: Path, is_hit: Callable[[int], bool]) -> None:
    """Overwrite the compressed data of the frames (by number in the order of display) that are hit."""
    with av.open(path) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        numbers = {time: number for number, time in enumerate(sorted(packet.pts for packet in packets))}
        places = [(packet.pos, packet.size) for packet in packets if is_hit(numbers[packet.pts])]
    content = bytearray(path.read_bytes())
    for position, size in places:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)


def test_only_what_a_window_needs_is_decoded(clip: Path, tmp_path: Path) -> None:
    """Groups of ten frames: to read frames 12 to 14 nobody looks before frame 10, nor behind frame 19."""
    path = tmp_path / "groups.mp4"
    ffmpeg("-i", clip, "-bf", "2", "-g", "10", "-keyint_min", "10", "-sc_threshold", "0", path)
    expected = read_frames(path, 12, 3)
    damage(path, lambda number: not 10 <= number < 20)
    assert np.array_equal(read_frames(path, 12, 3), expected)
    for start in (9, 20):
        with pytest.raises(UndecodableVideoError):
            read_frames(path, start, 3)


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.webm"])
def test_windows_in_other_containers(clip, tmp_path, name):
    path = tmp_path / name
    ffmpeg("-i", clip, *(["-c:v", "libvpx"] if name == "a.webm" else ["-c:v", "mpeg4"]), path)
    whole = np.stack(list(iterate_frames(path)))
    assert len(whole) == check_video(path).num_frames == 30
    assert np.array_equal(read_frames(path, 17, 5), whole[17:22])


def test_video_after_a_cut_without_encoding(clip, tmp_path):
    ffmpeg("-ss", "0.5", "-i", clip, "-c", "copy", tmp_path / "cut.mp4")
    info = check_video(tmp_path / "cut.mp4")
    assert len(list(iterate_frames(tmp_path / "cut.mp4"))) == info.num_frames == 18


def test_replaced_file_is_read_anew(tmp_path, moving_frames):
    path = tmp_path / "a.mkv"
    write_video(path, moving_frames(4), 24, lossless=True)
    read_frames(path, 0, 4)
    write_video(path, moving_frames(9), 24, lossless=True)
    assert len(read_frames(path, 0, 9)) == 9


def test_variable_frame_rate_is_noticed(clip, tmp_path):
    path = tmp_path / "vfr.mp4"
    ffmpeg("-i", clip, "-vf", "setpts='if(lt(N,10),N,10+(N-10)*2)/24/TB'", "-fps_mode", "vfr", path)
    info = check_video(path)
    assert info.variable_frame_rate
    assert info.num_frames == 30
    assert info.fps == pytest.approx(29 / (48 / 24), rel=0.02)


def test_coarse_clock_is_not_a_variable_rate(clip, tmp_path):
    # Matroska rounds the times of 24 frames a second to 41 and 42 ms.
    ffmpeg("-i", clip, "-c", "copy", tmp_path / "a.mkv")
    assert not check_video(tmp_path / "a.mkv").variable_frame_rate


def test_rotation_is_reported(clip, tmp_path):
    ffmpeg("-display_rotation", "90", "-i", clip, "-c", "copy", tmp_path / "turned.mp4")
    assert probe(tmp_path / "turned.mp4").rotation_degrees == 90


def test_zero_bytes(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(EmptyVideoError, match=r"a\.mp4 has 0 bytes"):
        check_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("part", [0.3, 0.7, 0.98])
@pytest.mark.parametrize("index", ["in front", "at the end"])
def test_truncated(clip, tmp_path, index, part):
    source = tmp_path / "source.mp4"
    ffmpeg("-i", clip, "-c", "copy", *(["-movflags", "+faststart"] if index == "in front" else []), source)
    whole = source.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(TruncatedVideoError, match=r"cut\.mp4 ends"):
        check_video(tmp_path / "cut.mp4")


def test_truncated_matroska(clip, tmp_path):
    ffmpeg("-i", clip, "-c", "copy", tmp_path / "a.mkv")
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TruncatedVideoError):
        check_video(tmp_path / "cut.mkv")


def test_damaged_frame(clip):
    whole = bytearray(clip.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 200] = np.random.default_rng(1).bytes(200)
    clip.write_bytes(bytes(whole))
    with pytest.raises(UndecodableVideoError):
        check_video(clip)


@pytest.mark.parametrize("reader", [probe, check_video, lambda path: read_frames(path, 0, 1)])
def test_frames_beyond_the_largest_are_not_decoded(clip, monkeypatch, reader):
    monkeypatch.setattr("worldtune.media.video.MAX_PIXELS", 64 * 48)
    reader(clip)
    monkeypatch.setattr("worldtune.media.video.MAX_PIXELS", 64 * 48 - 1)
    # Read anew: what the container says is remembered by time and size.
    clip.touch()
    with pytest.raises(UndecodableVideoError, match=r"clip\.mp4 has frames of 64x48; at most 3071 pixels are decoded"):
        reader(clip)


@pytest.mark.parametrize("reader", [probe, check_video, lambda path: read_frames(path, 0, 1)])
def test_an_unknown_codec_is_named(clip, reader):
    clip.write_bytes(clip.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(UndecodableVideoError, match=r"clip\.mp4 is in a codec that nothing here can decode"):
        reader(clip)


def test_no_video_at_all(tmp_path):
    (tmp_path / "a.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    with pytest.raises(UndecodableVideoError, match="cannot be decoded"):
        check_video(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="does not exist"):
        read_frames(tmp_path / "b.mp4", 0, 1)


def test_sound_only(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", tmp_path / "sound.mp4")
    with pytest.raises(UndecodableVideoError, match="no video stream"):
        probe(tmp_path / "sound.mp4")


def test_playlist_is_not_followed(clip, tmp_path):
    # ffmpeg goes by the content: a playlist could name any file of this machine or address of its network.
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.25,\n{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(UndecodableVideoError):
        probe(tmp_path / "list.mp4")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{clip.name}'\n")
    with pytest.raises(UndecodableVideoError):
        probe(tmp_path / "concat.mp4")


@pytest.mark.parametrize(("start", "count"), [(25, 6), (-1, 2), (0, 0), (30, 1)])
def test_window_outside_the_video(clip, start, count):
    with pytest.raises(VideoError, match="has 30 frames"):
        read_frames(clip, start, count)


def test_what_cannot_be_written(tmp_path, moving_frames):
    with pytest.raises(WorldtuneError, match="even width"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 7, 8, 3), np.uint8), 24)
    with pytest.raises(WorldtuneError, match=r"written as \.mkv"):
        write_video(tmp_path / "a.mp4", moving_frames(2), 24, lossless=True)
    with pytest.raises(WorldtuneError, match="float32"):
        write_video(tmp_path / "a.mp4", np.zeros((2, 8, 8, 3), np.float32), 24)
    with pytest.raises(WorldtuneError, match="no frame"):
        write_video(tmp_path / "a.mp4", np.zeros((0, 8, 8, 3), np.uint8), 24)
    assert not any(tmp_path.iterdir())


def test_failure_while_writing_leaves_nothing(tmp_path, moving_frames):
    def write() -> None:
        with video_writer(tmp_path / "a.mkv", 24, lossless=True) as append:
            append(moving_frames(2))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not any(tmp_path.iterdir())


def test_equal_frames_have_equal_bytes_in_every_process(tmp_path: Path) -> None:
    """Memory that happens to lie elsewhere must not reach the file."""
    script = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom worldtune.media.video import write_video\n"
        "ballast = [bytearray(int(size)) for size in np.random.default_rng(int(sys.argv[1])).integers(1, 9**6, 40)]\n"
        "frames = np.random.default_rng(0).integers(0, 255, (17, 12, 20, 3), dtype=np.uint8)\n"
        "frames = frames.repeat(8, axis=1).repeat(8, axis=2)\n"
        "write_video(Path(sys.argv[2]), frames, 24)\n"
    )
    written = []
    for number in range(4):
        path = tmp_path / f"{number}.mp4"
        subprocess.run([sys.executable, "-c", script, str(number), str(path)], check=True)
        written.append(path.read_bytes())
    assert len(set(written)) == 1
