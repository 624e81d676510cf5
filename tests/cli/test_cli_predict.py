"""``detrlab predict`` as a person meets it: what it reads, what it writes, what it says."""

import csv
import errno
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import detrlab
from detrlab.cli import main
from detrlab.predicting import sources
from detrlab.predicting.sources import find_sources
from download_server import serving

SMALL = {
    "backbone": "resnet10t", "backbone_norms": "trained", "width": 32, "num_heads": 2,
    "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 20,
}  # fmt: skip
CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    built = detrlab.build("deformable-detr-two-stage", CLASSES, **SMALL).at_size(96)
    path = tmp_path_factory.mktemp("detector") / "tiny.safetensors"
    return detrlab.load(built.save(path))


@pytest.fixture
def predict(detector, tmp_path, monkeypatch, capsys):
    """Runs the command with a small detector that returns everything it finds."""
    path = str(detector.save(tmp_path / "tiny.safetensors"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0, threshold="0.0"):
        capsys.readouterr()
        flags = ["--model", path, "--device", "cpu", "--threshold", threshold]
        assert main(["predict", *map(str, arguments), *flags]) == code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told

    return run


def noise(path, seed=0, size=(70, 90)):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def assert_equal(records, expected):
    """But for rounding: images of one size pass through the network together."""
    for one, other in zip(records, expected, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert [*one["bbox"], one["score"]] == pytest.approx(
            [*other["bbox"], other["score"]], abs=1e-3
        )


def records_of(folder):
    return json.loads((folder / "predictions.json").read_text())


def test_a_folder_is_drawn_and_nothing_is_overwritten(predict, detector, tmp_path):
    pictures = [noise(tmp_path / "photos" / name, i) for i, name in enumerate(("a.png", "b.jpg"))]
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"no image")
    for name in ("found", "found-2"):
        predict("photos", "--output", "found")
        records = records_of(tmp_path / name)
        assert {path.name for path in (tmp_path / name).glob("*.jpg")} == {"a.jpg", "b.jpg"}
    found = [detector.predict(path, threshold=0.0).to_coco() for path in pictures]
    names = ("photos/a.png", "photos/b.jpg")
    expected = zip(names, found, strict=True)
    assert_equal(records, [{**r, "image_id": name} for name, each in expected for r in each])
    assert json.loads(predict("photos", "--json").out) == records


def test_every_list_holds_the_same_detections(predict, detector, tmp_path):
    path = noise(tmp_path / "in" / "a.png")
    predict(path, "--output", "out", "--save", "coco", "csv", "yolo")
    folder = tmp_path / "out"
    assert {each.name for each in folder.iterdir()} == {
        "predictions.json", "predictions.csv", "labels", "classes.txt",
    }  # fmt: skip
    found = detector.predict(path, threshold=0.0)
    assert len(records_of(folder)) == len(found)
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == found.names
    corners = [[float(row[side]) for side in ("x0", "y0", "x1", "y1")] for row in rows]
    np.testing.assert_allclose(corners, found.boxes, atol=0.006)
    assert (folder / "classes.txt").read_text().split() == list(CLASSES)
    lines = (folder / "labels" / "a.txt").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == found.labels.tolist()
    cx, cy, w, h = np.array([line.split()[1:] for line in lines], dtype=float).T
    clamped = found.boxes.numpy().clip(0, [90, 70, 90, 70])
    again = np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1) * [90, 70, 90, 70]
    np.testing.assert_allclose(again, clamped, atol=1e-3)


def test_only_the_chosen_classes(predict, tmp_path):
    path = noise(tmp_path / "a.png")
    whole = json.loads(predict(path, "--json").out)
    some = json.loads(predict(path, "--json", "--classes", "bee", "cat").out)
    assert some == [record for record in whole if record["category_id"] in (1, 2)]
    assert 0 < len(some) < len(whole)
    told = predict(path, "--classes", "bees", code=2).err
    assert told.strip().endswith("has no such class, did you mean 'bee'?")


def test_the_threshold_is_the_checkpoints_own_unless_one_is_given(detector, tmp_path):
    path = noise(tmp_path / "a.png")
    everything = detector.predict(path, threshold=None)
    middle = float(everything.scores.median())
    own = detrlab.Detector(
        detector.network, detector.config, CLASSES, None, detector.preprocessing, middle
    )
    assert len(own.predict(path)) == int((everything.scores >= middle).sum()) < len(everything)
    assert len(own.predict(path, threshold=None)) == len(everything)
    assert len(detector.predict(path)) == int((everything.scores >= 0.3).sum())


def test_a_bad_image_is_named_and_passed_over(predict, tmp_path):
    noise(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    noise(tmp_path / "in" / "z.png", 1)
    told = predict("in", "--output", "out")
    passed = [line for line in told.err.splitlines() if line.startswith("passed over: ")]
    assert [line.split()[2] for line in passed] == ["in/bad.jpg", "in/empty.png"]
    assert "in 2 images; 2 could not be read;" in told.out.splitlines()[-1]
    assert {record["image_id"] for record in records_of(tmp_path / "out")} == {
        "in/a.png",
        "in/z.png",
    }


def test_nothing_that_can_be_read_is_an_error(predict, tmp_path):
    (tmp_path / "bad").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "bad" / name).write_bytes(b"no image")
    told = predict("bad", "--output", "out", code=2).err
    assert told.splitlines()[-1] == "detrlab predict: none of 2 images and videos could be read"
    (line,) = predict("bad/a.png", "--output", "out", code=2).err.splitlines()
    assert "bad/a.png is not an image" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no.jpg"], "no.jpg does not exist"),
        (["photo.png"], "photo.png does not exist, did you mean 'photo.jpg'?"),
        (["empty"], "no image in the folder empty"),
        (["*.gif"], "no file matches *.gif"),
        (["ftp://example.org/a.jpg"], "only http and https"),
        (["camera:"], "write camera:0"),
        (["photo.jpg", "--frames", "0"], "--frames 0"),
        (["photo.jpg", "--threshold", "30"], "--threshold 30.0: scores are between 0 and 1"),
        (["photo.jpg", "--tiles", "3"], "tiles of 3 px"),
        (["photo.jpg", "--tiles", "64", "--overlap", "2"], "overlap by 2.0"),
        (["photo.jpg", "--model", "none.safetensors"], "none.safetensors"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments, expected, tmp_path, monkeypatch, capsys):
    noise(tmp_path / "photo.jpg")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["predict", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_patterns_and_files_of_one_name(predict, tmp_path):
    for i, place in enumerate(("x/a.png", "y/a.png", "y/a.jpg", "y/b.png")):
        noise(tmp_path / place, i)
    predict("?/a.*", "--output", "out")
    names = {each.name for each in (tmp_path / "out").glob("*.jpg")}
    assert names == {"a.jpg", "a-2.jpg", "a-3.jpg"}
    assert len({record["image_id"] for record in records_of(tmp_path / "out")}) == 3


def test_order_and_results_are_those_of_single_images(detector, tmp_path):
    """Read by threads, and in batches of one shape."""
    paths = [noise(tmp_path / f"{i}.png", i, size) for i, size in enumerate([(70, 90)] * 5)]
    paths += [noise(tmp_path / f"{i}.png", i, (90, 60)) for i in (5, 6)]
    alone = [detector.predict(path, threshold=None) for path in paths]
    for batch_size in (1, 3):
        together = detector.predict_each(paths, threshold=None, batch_size=batch_size)
        for one, other in zip(alone, together, strict=True):
            assert one.labels.tolist() == other.labels.tolist()
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
            assert np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_an_address_is_downloaded_and_bounded(predict, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    data = noise(tmp_path / "a.png").read_bytes()
    with serving() as server:
        server.files |= {"/my photo.png": data, "/bad.png": b"no"}
        server.files["/my%20photo.png"] = data
        told = predict(f"{server.url}/my%20photo.png", "--output", "out")
        assert "in 1 images" in told.out
        assert (tmp_path / "out" / "my photo.jpg").is_file()
        told = predict(f"{server.url}/bad.png", code=2).err
        assert f"{server.url}/bad.png is not an image" in told
        assert "answered 404" in predict(f"{server.url}/none.png", code=2).err
        monkeypatch.setattr(sources, "MAX_DOWNLOAD", len(data) - 1)
        assert "is too large" in predict(f"{server.url}/my%20photo.png", code=2).err
        monkeypatch.setenv("DETRLAB_OFFLINE", "1")
        assert "offline" in predict(f"{server.url}/bad.png", code=2).err


def test_a_slow_server_does_not_hold_us_up(predict, monkeypatch):
    """It sends a few bytes now and then, so that no read ever waits for long."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(sources, "MAX_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                for _ in range(100):
                    try:
                        connection.sendall(b"12345678")
                    except OSError:
                        return
                    time.sleep(0.1)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        told = predict(f"http://127.0.0.1:{server.getsockname()[1]}/a.png", code=2).err
        assert "took more than" in told
        assert time.monotonic() - began < 8
        thread.join()


def test_a_full_disk_is_one_line(predict, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    (tmp_path / "a.ppm").write_bytes(b"P6 40 40 255\n" + bytes(4800))
    assert "the disk is full" in predict("a.ppm", code=2).err.splitlines()[-1]


def test_names_of_files_stay_inside_the_folder():
    (source,) = find_sources(["http://example.org/..%2F..%2Fetc/pass%00wd.png?x=/../y"])
    assert source.stem == "pass_wd"
    (source,) = find_sources(["https://example.org/"])
    assert source.stem == "image"


def test_a_tiled_detector_from_python(detector, tmp_path):
    tiled = detector.tiled()
    assert tiled.side == 96
    found = tiled.predict(noise(tmp_path / "a.png", size=(120, 200)), threshold=0.0)
    assert found.size == (120, 200)
    assert found.image.size == (200, 120)
    assert found.plot().size == (200, 120)


def test_tiles_from_the_command_line(predict, tmp_path):
    path = noise(tmp_path / "a.png", size=(120, 200))
    plain = json.loads(predict(path, "--json").out)
    for side in ("96", "auto"):
        assert json.loads(predict(path, "--json", "--tiles", side).out) != plain


HEAVY = {
    "torch._dynamo", "torch._inductor", "sympy", "timm", "torchvision", "matplotlib",
    "transformers", "huggingface_hub", "pandas", "hotcoco", "accelerate", "rich", "onnxruntime",
    "onnx", "openvino",
}  # fmt: skip
"""What takes longer to import than the packaged detector takes for a picture."""


def test_the_packaged_detector_starts_without_what_it_does_not_need(tmp_path):
    noise(tmp_path / "photo.png")
    program = (
        "import sys\n"
        "from detrlab.cli import main\n"
        "assert main(['predict', 'photo.png', '--device', 'cpu']) == 0\n"
        "sys.stderr.write('loaded: ' + ' '.join(sys.modules))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    loaded = set(result.stderr.split("loaded: ")[1].split())
    assert not HEAVY & loaded
