"""``detrlab explain``: one image file explained into a folder."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detrlab.api import Detector
from detrlab.cli import main
from detrlab.cli.explain import find_target, read_point
from detrlab.config import DataConfig
from detrlab.data.shapes import shapes
from detrlab.data.sources import DataSet
from detrlab.errors import UserError
from detrlab.explain.query_use import query_use
from detrlab.presets import build_network
from tiny_detectors import tiny_config


@pytest.fixture(scope="module")
def data():
    train, val = (replace(each, classes=CLASSES) for each in shapes(train=2, val=3))
    return DataSet("shapes", train, val)


CLASSES = ("disc", "ring", "square", "triangle", "cr\x1b[31mss", "star")


def detector_of(preset):
    config = tiny_config(preset, num_classes=6)
    return Detector(
        build_network(config).eval(), config, CLASSES,
        preprocessing=DataConfig(image_size=64, max_size=96),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Glyph")
def test_an_image_of_a_data_set(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setattr("detrlab.data.open_data", lambda _: data)
    weights = detector_of("detr").save(tmp_path / "detr.safetensors")
    image = tmp_path / data.val.file(1).split("/")[-1]
    pixels = data.val.picture(1).permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(image, format="png")
    out = tmp_path / "out"
    options = ["--model", str(weights), "--output", str(out), "--query", "2", "--layer", "0"]
    common = ["explain", str(image), *options, "--point", "0.5,0.5", "--statistics"]
    assert main(common) == 2
    assert "--data" in capsys.readouterr().err
    assert main([*common, "--data", "shapes", "--conf", "0.9"]) == 0
    written = capsys.readouterr().out
    *files, numbers = [line for line in written.splitlines() if line.startswith(str(out))]
    assert numbers.endswith("explanation.json")
    assert {"query-2.png", "queries.png"} <= {path.split("/")[-1] for path in files}
    assert written.count("missed") == len(data.val.targets(1).labels)
    assert "\x1b" not in written


def test_use_over_a_split_is_what_single_images_give(data):
    detector = detector_of("deformable-detr")
    use = query_use(detector, data.val, limit=2)
    assert use.boxes.shape[0] == 2
    for index in range(2):
        path = detector.explain(data.val.picture(index)).paths
        # A batch may hold the images in another order.
        assert (use.boxes - path.boxes[-1]).abs().amax((1, 2)).min() < 1e-5
        assert (use.scores - path.scores[-1].amax(-1)).abs().amax(1).min() < 1e-5


def test_annotations_are_found_by_file_name(data, tmp_path):
    for table, index in ((data.val, 2), (data.train, 1)):
        name = tmp_path / table.file(index).split("/")[-1]
        target = find_target(data, name, CLASSES[::-1])
        assert torch.equal(target.labels, 5 - table.targets(index).labels)
        assert torch.equal(target.boxes, table.targets(index).boxes)
        with pytest.raises(UserError, match=r"shapes has disc, .* knows cat, dog: leave out"):
            find_target(data, name, ("cat", "dog"))
    with pytest.raises(UserError, match=r"holiday.jpg .*shapes"):
        find_target(data, tmp_path / "holiday.jpg", CLASSES)


def test_points_are_read():
    assert read_point("0.25,1") == (0.25, 1.0)
    for wrong in ("0.5", "a,b", "1.2,0.5", "0.1,0.2,0.3", "nan,0.5"):
        with pytest.raises(UserError, match="x,y"):
            read_point(wrong)
