"""Videos in, videos out; through PyAV."""

import itertools
import json
import sys

import numpy as np
import pytest
from PIL import Image

import detrlab
from detrlab.cli import main
from detrlab.errors import UserError
from detrlab.predicting.ahead import ahead, in_thread
from detrlab.predicting.video import VideoWriter, open_video

av = pytest.importorskip("av")

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]


@pytest.fixture
def clip(tmp_path):
    """Twelve frames, three of each colour; an odd width, and times that are not even."""
    writer = VideoWriter(tmp_path / "clip.mp4")
    for i in range(12):
        writer.add(Image.new("RGB", (91, 64), COLOURS[i // 3]), i * 0.1 + (0.05 if i > 5 else 0))
    writer.close()
    return tmp_path / "clip.mp4"


def colour(pixels):
    mean = np.asarray(pixels).reshape(3, -1).mean(1)
    return min(range(4), key=lambda i: np.abs(mean - COLOURS[i]).sum())


def test_a_video_comes_back_as_it_was_written(clip):
    with open_video(str(clip)) as video:
        frames = list(video)
    assert [colour(frame.pixels) for frame in frames] == [i // 3 for i in range(12)]
    times = [i * 0.1 + (0.05 if i > 5 else 0) for i in range(12)]
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-3)
    assert frames[0].pixels.shape == (3, 64, 92)


def test_video_in_video_out(clip, tmp_path, capsys):
    detector = detrlab.build(
        "deformable-detr-two-stage", ["ant"], backbone="resnet10t", backbone_norms="trained",
        width=32, num_heads=2, ffn_width=32, encoder_layers=1, decoder_layers=1, num_queries=5,
    ).at_size(64)  # fmt: skip
    model = str(detector.save(tmp_path / "tiny"))
    command = ["predict", str(clip), "--model", model, "--conf", "0", "--device", "cpu"]
    output = tmp_path / "out"
    assert main([*command, "--output", str(output), "--save", "pictures", "coco", "yolo"]) == 0
    assert "in 12 images" in capsys.readouterr().out
    records = json.loads((output / "predictions.json").read_text())
    names = list(dict.fromkeys(record["image_id"] for record in records))
    assert names == [f"{clip}#{number}" for number in range(12)]
    assert len(list((output / "labels").iterdir())) == 12
    with open_video(str(clip)) as before, open_video(str(output / "clip.mp4")) as after:
        pairs = list(zip(before, after, strict=True))
    assert [one.time for one, _ in pairs] == pytest.approx([two.time for _, two in pairs], abs=1e-3)
    assert any(
        np.abs(one.pixels.numpy() * 1.0 - two.pixels.numpy()).max() > 99 for one, two in pairs
    )
    assert main([*command, "--frames", "2", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert {record["image_id"] for record in records} == set(names[:2])


def test_a_damaged_video_is_passed_over(clip, tmp_path, capsys):
    whole = clip.read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "text.mp4").write_bytes(b"no video")
    Image.new("RGB", (40, 40)).save(tmp_path / "in" / "z.png")
    output = str(tmp_path / "out")
    assert main(["predict", str(tmp_path / "in"), "--device", "cpu", "--output", output]) == 0
    told = capsys.readouterr()
    assert "1 images; 2 could not be read" in told.out
    assert "cut.mp4 cannot be opened as a video" in told.err
    assert main(["predict", str(tmp_path / "in" / "text.mp4"), "--device", "cpu"]) == 2


def test_a_video_that_ends_early_is_used_as_far_as_it_goes(tmp_path, capsys):
    container = av.open(str(tmp_path / "clip.mkv"), "w")  # readable without its end
    stream = container.add_stream("mpeg4", rate=10)
    stream.width, stream.height = 64, 64
    draw = np.random.default_rng(0)
    for _ in range(30):
        pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
    container.mux(stream.encode())
    container.close()
    data = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    output = ["--output", str(tmp_path / "out"), "--save", "coco", "--imgsz", "64"]
    assert main(["predict", str(tmp_path / "cut.mkv"), "--device", "cpu", *output]) == 0
    found = int(capsys.readouterr().out.split(" images")[0].split()[-1])
    assert 5 < found < 30


def test_a_playlist_opens_no_other_file(clip):
    """It could name any file of the machine, or an address."""
    listed = clip.with_name("list.mp4")
    listed.write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n")
    with pytest.raises(UserError, match="cannot be opened"), open_video(str(listed)):
        pass
    listed.write_text(f"ffconcat version 1.0\nfile '{clip}'\n")
    with pytest.raises(UserError, match="cannot be opened"), open_video(str(listed)):
        pass


def test_without_pyav_one_line_says_so(clip, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["predict", str(clip)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('pip install "detrlab[video]"')


def test_a_camera_that_is_not_there(capsys):
    assert main(["predict", "camera:97"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "camera:97 cannot be opened" in line


def test_reading_ahead_keeps_the_order_and_raises_in_place():
    def half(number):
        if number == 7:
            raise UserError("seven")
        return number / 2

    given = ahead(half, range(20), workers=3)
    assert [next(given) for _ in range(7)] == [i / 2 for i in range(7)]
    with pytest.raises(UserError, match="seven"):
        next(given)


def test_a_thread_reads_ahead_within_bounds_and_stops():
    read = []

    def numbers():
        for i in range(1000):
            read.append(i)
            yield i

    given = in_thread(numbers(), depth=4)
    assert [next(given) for _ in range(3)] == [0, 1, 2]
    given.close()
    assert len(read) <= 3 + 4 + 2


def test_of_a_camera_the_newest_picture_is_taken():
    from itertools import count
    from time import sleep

    def pictures():
        for i in count():
            sleep(0.01)
            yield i

    given = in_thread(pictures(), newest=True)
    taken = [next(given)]
    for _ in range(3):
        sleep(0.3)
        taken.append(next(given))
    given.close()
    assert all(b - a > 5 for a, b in itertools.pairwise(taken[1:]))
