"""The table: slicing, clamping, crowd regions, and the ids that come back out."""

import json
import pickle

import pytest
import torch
from coco_folders import annotation, image_entry, write_coco

from detrlab.data import open_data, open_whole
from detrlab.data.shapes import shapes
from detrlab.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Two images; ids and categories as crooked as COCO's own."""
    write_coco(
        tmp_path,
        images=[image_entry(139, "b.png", 60, 80), image_entry(7, "a.png", 50, 40)],
        annotations=[
            annotation(11, 7, 90, [10, 10, 20, 20]),
            annotation(5, 139, 3, [70, 50, 20, 20]),
            annotation(8, 139, 3, [0, 0, 30, 30], iscrowd=1),
            annotation(9, 139, 90, [-5, -5, 15, 25], area=77.5),
        ],
        categories={90: "kite", 3: "car"},
    )
    return tmp_path


def test_class_indices_are_contiguous_and_ids_come_back(folder):
    table = _single(folder)
    assert table.classes == ("car", "kite")
    assert table.category_ids == (3, 90)
    truth = table.coco_ground_truth()
    assert sorted(image["id"] for image in truth["images"]) == [7, 139]
    by_id = {record["id"]: record for record in truth["annotations"]}
    assert set(by_id) == {5, 8, 9, 11}
    assert by_id[11]["category_id"] == 90
    assert by_id[11]["image_id"] == 7
    assert by_id[9] == {
        "id": 9, "image_id": 139, "category_id": 90, "bbox": [-5, -5, 15, 25],
        "area": 77.5, "iscrowd": 0,
    }  # fmt: skip
    json.dumps(truth)


def test_training_gets_clamped_boxes_without_crowd(folder):
    table = _single(folder)
    i = table.image_ids.tolist().index(139)
    sample = table.read(i)
    assert sample.original_size == (60, 80)
    assert sample.boxes.tolist() == [[70, 50, 80, 60], [0, 0, 10, 20]]
    assert sample.labels.tolist() == [0, 1]
    target = table.targets(i)
    assert torch.allclose(
        target.boxes,
        torch.tensor([[75 / 80, 55 / 60, 10 / 80, 10 / 60], [5 / 80, 10 / 60, 10 / 80, 20 / 60]]),
    )


def test_select_keeps_images_and_boxes_together():
    train, _ = shapes(train=12, val=1)
    chosen = train.select([7, 2, 2, 0])
    assert chosen.image_ids.tolist() == [8, 3, 3, 1]
    for position, original in enumerate([7, 2, 2, 0]):
        assert torch.equal(chosen.read(position).boxes, train.read(original).boxes)
        assert torch.equal(chosen.read(position).image, train.read(original).image)
        assert torch.equal(chosen.targets(position).boxes, train.targets(original).boxes)
    with pytest.raises(UserError, match="outside"):
        train.select([12])


def test_columns_cannot_be_written():
    train, _ = shapes(train=2, val=1)
    with pytest.raises(ValueError, match="read-only"):
        train.boxes[0] = 0


def test_text_ids_stay_text(tmp_path):
    write_coco(
        tmp_path,
        images=[image_entry("007", "a.png", 50, 40), image_entry("b", "b.png", 50, 40)],
        annotations=[annotation(1, "007", 1, [1, 1, 9, 9]), annotation(2, "b", 1, [1, 1, 9, 9])],
        categories={1: "x"},
    )
    table = _single(tmp_path)
    assert table.read(0).image_id == "007"
    assert table.coco_ground_truth()["images"][1]["id"] == "b"


def test_one_picture_too_few_to_split_is_one_clear_error(tmp_path):
    write_coco(
        tmp_path,
        images=[image_entry(1, "a.png", 50, 40)],
        annotations=[annotation(1, 1, 1, [1, 1, 9, 9])],
        categories={1: "x"},
    )
    with pytest.raises(UserError, match="too few to split"):
        open_data(tmp_path)


def test_tables_can_be_pickled():
    train, _ = shapes(train=3, val=1)
    copy = pickle.loads(pickle.dumps(train))
    assert torch.equal(copy.read(1).image, train.read(1).image)


def _single(folder):
    """Both images in one table."""
    return open_whole(folder).train
