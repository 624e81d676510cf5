"""One picture file explained into a folder."""

import numpy as np
import pytest
from PIL import Image

from detrlab.api import Detector
from detrlab.config import DataConfig
from detrlab.data.shapes import shapes
from detrlab.data.sources import DataSet
from detrlab.errors import UserError
from detrlab.explain.inquiry import explain_file, find_target, read_point
from detrlab.explain.queries import query_use_over
from detrlab.presets import build_network
from tiny_detectors import tiny_config


@pytest.fixture(scope="module")
def data():
    train, val = shapes(train=2, val=3)
    return DataSet("shapes", train, val)


def detector_of(preset):
    config = tiny_config(preset, num_classes=6)
    classes = ("disc", "ring", "square", "triangle", "cross", "star")
    return Detector(
        build_network(config).eval(), config, classes,
        preprocessing=DataConfig(image_size=64, max_size=96),
    )  # fmt: skip


def test_a_file_is_explained(tmp_path, data):
    name = data.val.file(1).split("/")[-1]
    path = (tmp_path / name).with_suffix(".png" if "." not in name else "." + name.split(".")[-1])
    Image.fromarray(np.ascontiguousarray(data.val.picture(1).permute(1, 2, 0).numpy())).save(
        path, format="png"
    )
    answer = explain_file(
        detector_of("deformable-detr"), path, tmp_path / "out", queries=[2], points=[(0.5, 0.5)],
        layer=0, data=data,
    )  # fmt: skip
    assert len(answer.sentences) == len(data.val.targets(1).labels)
    assert (tmp_path / "out" / "query-2.png").is_file()
    assert answer.files[-1].name == "explanation.json"


def test_queries_are_drawn_over_a_data_set(tmp_path, data):
    path = tmp_path / data.val.file(0).split("/")[-1]
    pixels = data.val.picture(0).permute(1, 2, 0).numpy()
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, format="png")
    detector = detector_of("detr")
    answer = explain_file(detector, path, tmp_path / "out", data=data, statistics=True)
    assert [file.name for file in answer.files[-2:]] == ["queries.png", "explanation.json"]
    assert Image.open(answer.files[-2]).size[0] > 300
    with pytest.raises(UserError, match="give --data"):
        explain_file(detector, path, tmp_path / "out", statistics=True)


def test_use_over_a_split_is_what_single_pictures_give(data):
    detector = detector_of("deformable-detr")
    use = query_use_over(detector, data.val, limit=2)
    assert use.boxes.shape[0] == 2
    pictures = [detector.explain(data.val.picture(index)).paths.boxes[-1] for index in range(2)]
    # Batches may put images into another order: each is there.
    for boxes in pictures:
        assert (use.boxes - boxes).abs().amax((1, 2)).min() < 1e-5


def test_annotations_are_found_by_file_name(data, tmp_path):
    for table, index in ((data.val, 2), (data.train, 1)):
        target = find_target(data, tmp_path / table.file(index).split("/")[-1])
        assert target.boxes.equal(table.targets(index).boxes)
    with pytest.raises(UserError, match=r"holiday.jpg is not among the pictures of shapes"):
        find_target(data, tmp_path / "holiday.jpg")


def test_points_are_read():
    assert read_point("0.25,1") == (0.25, 1.0)
    for wrong in ("0.5", "a,b", "1.2,0.5", "0.1,0.2,0.3", "nan,0.5"):
        with pytest.raises(UserError, match="write x,y as fractions"):
            read_point(wrong)
