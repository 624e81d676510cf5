"""Every layout that people have opens without a flag, and means the same data."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from coco_folders import annotation, image_entry, picture, write_coco
from layouts import (
    LAYOUTS,
    PLAIN,
    YAMLS,
    coco,
    contents,
    expected,
    rewritten,
    voc,
    voc_xml,
    write_entries,
    yolo,
)

from detrlab.config import DataConfig
from detrlab.data import batches, open_data
from detrlab.data.locate import split_of
from detrlab.data.measure import measure, read_headers
from detrlab.data.reading import read_raw
from detrlab.data.sources import stratified_split
from detrlab.errors import UserError


@pytest.mark.parametrize("layout", sorted(LAYOUTS.keys() - {"test for val"}))
def test_coco_layouts(tmp_path, layout):
    data = open_data(coco(tmp_path, layout))
    assert contents(data.train) == expected(1, 6)
    assert contents(data.val) == expected(11, 3)
    assert data.train.classes == ("cat", "dog")
    assert data.train.category_ids == data.val.category_ids == (1, 5)
    assert not data.notes
    assert data.train.read(0).image.shape[1:] == (31, 41)


def test_same_file_names_in_two_splits_are_two_files(tmp_path):
    """facemask's own trap: ids and names start anew in every split."""
    for split, seed in (("train", 0), ("val", 5)):
        images = [image_entry(0, "a.png", 20, 20), image_entry(1, "b.png", 20, 20)]
        write_coco(
            tmp_path, images=images, annotations=[annotation(0, 0, 1, [1, 1, 5, 5])],
            categories={1: "x"}, name=f"annotations/{split}.json", image_folder=f"{split}2017",
        )  # fmt: skip
        picture(seed, 20, 20).save(tmp_path / f"{split}2017" / "a.png")
    data = open_data(tmp_path)
    assert data.train.file(0) == "train2017/a.png"
    assert data.val.file(0) == "val2017/a.png"


@pytest.mark.parametrize(
    "written",
    ["images/{}", "./images/{}", "..\\images\\{}", "C:\\work\\images\\{}", "/mnt/x/images/{}",
     "../images/{}", "else/{}"],
)  # fmt: skip
def test_file_names_of_other_machines_are_found(tmp_path, written):
    write_entries(tmp_path, 1, 4, "annotations/train.json", "images")

    def rename(document):
        for entry in document["images"]:
            entry["file_name"] = written.format(entry["file_name"])

    rewritten(tmp_path / "annotations" / "train.json", rename)
    data = open_data(tmp_path)
    assert len(data.train) + len(data.val) == 4


def test_other_tasks_of_the_official_folder_are_left_alone(tmp_path):
    coco(tmp_path)
    for name in ("captions_train2017", "person_keypoints_train2017", "image_info_test2017"):
        (tmp_path / "annotations" / f"{name}.json").write_text("not even json")
    assert len(open_data(tmp_path).train) == 6


def test_two_files_for_one_split_are_an_error_unless_one_is_official(tmp_path):
    coco(tmp_path)
    path = tmp_path / "annotations"
    shutil.copy(path / "instances_val2017.json", path / "my_val.json")
    assert len(open_data(tmp_path).val) == 3
    shutil.copy(path / "my_val.json", path / "instances_val2018.json")
    with pytest.raises(UserError, match="several COCO files for 'val'"):
        open_data(tmp_path)


def test_a_file_can_be_named_instead_of_a_folder(tmp_path):
    coco(tmp_path)
    data = open_data(tmp_path / "annotations" / "instances_train2017.json")
    assert len(data.train) + len(data.val) == 6
    assert "split off" in data.notes[0]
    assert len(open_data(tmp_path / "annotations").train) == 6  # the folder of jsons means both


def test_test_split_is_used_for_validation(tmp_path):
    """CPPE-5's own layout."""
    data = open_data(coco(tmp_path, "test for val"))
    assert contents(data.val) == expected(11, 3)
    assert data.test is None
    assert any("test split is used" in note for note in data.notes)


def test_three_splits_and_one_without_a_name(tmp_path):
    coco(tmp_path, "roboflow")
    write_entries(tmp_path, 21, 2, "test/_annotations.coco.json", "test")
    write_entries(tmp_path, 31, 2, "other/boxes.json", "other")
    data = open_data(tmp_path)
    assert contents(data.test) == expected(21, 2)
    assert any("not used" in note and "other/boxes.json" in note for note in data.notes)


def test_roboflows_placeholder_category_is_left_out(tmp_path):
    coco(tmp_path, "roboflow")

    def add(document):
        for category in document["categories"]:
            category["supercategory"] = "animals"
        document["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})

    for split in ("train", "valid"):
        rewritten(tmp_path / split / "_annotations.coco.json", add)
    data = open_data(tmp_path)
    assert data.train.classes == ("cat", "dog")
    assert data.train.category_ids == (1, 5)


def test_splits_that_number_their_categories_differently_agree_by_name(tmp_path):
    coco(tmp_path)
    other = {1: 5, 5: 1}

    def swap(document):
        for category in document["categories"]:
            category["id"] = other[category["id"]]
        for box in document["annotations"]:
            box["category_id"] = other[box["category_id"]]

    rewritten(tmp_path / "annotations" / "instances_val2017.json", swap)
    data = open_data(tmp_path)
    assert contents(data.val) == expected(11, 3)
    assert data.train.category_ids == (1, 5)
    assert data.val.category_ids == (5, 1)
    assert any("disagree" in note for note in data.notes)


# YOLO ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", YAMLS)
def test_yolo_yamls(tmp_path, kind):
    data = open_data(yolo(tmp_path, YAMLS[kind]))
    assert contents(data.train) == expected(1, 6)
    assert contents(data.val) == expected(11, 3)
    assert data.train.classes == ("cat", "dog")
    assert data.train.category_ids == (0, 1)
    assert not data.notes
    assert open_data(tmp_path / "data.yaml").train.file(0) == data.train.file(0)


@pytest.mark.parametrize("where", ["{}/images", "{}"], ids=["inside the splits", "together"])
def test_yolo_images_and_labels(tmp_path, where):
    description = {split: where.format(split) for split in ("train", "val")}
    labels = where.replace("images", "labels")
    yolo(tmp_path, {**description, "names": ["cat", "dog"]}, images=where, labels=labels)
    data = open_data(tmp_path)
    assert contents(data.train) == expected(1, 6)
    assert contents(data.val) == expected(11, 3)


def test_yolo_lists_of_files(tmp_path):
    yolo(tmp_path, {"train": "train.txt", "val": "val.txt", "names": ["cat", "dog"]})
    (tmp_path / "train.txt").write_text(
        "\n".join(f"./images/train/p{i:03d}.png" for i in range(1, 5))
    )
    (tmp_path / "val.txt").write_text(
        "\n".join(f"/data/pets/images/val/p{i:03d}.png" for i in range(11, 14))
    )
    data = open_data(tmp_path)
    assert contents(data.train) == expected(1, 4)
    assert contents(data.val) == expected(11, 3)


def test_yolo_without_a_yaml(tmp_path):
    yolo(tmp_path, None)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert contents(open_data(tmp_path).train) == expected(1, 6)
    (tmp_path / "classes.txt").unlink()
    assert open_data(tmp_path).train.classes == ("0", "1")


def test_yolo_polygons_give_their_extent_and_images_without_labels_are_negatives(tmp_path):
    yolo(tmp_path, YAMLS["plain"])
    label = tmp_path / "labels" / "train" / "p001.txt"
    label.write_text("1 0.1 0.2 0.5 0.25 0.3 0.75\n")
    (tmp_path / "labels" / "train" / "p002.txt").unlink()
    (tmp_path / "labels" / "train" / "p003.txt").write_text("")
    train = contents(open_data(tmp_path).train)
    name, *box = train["p001"][0]
    assert name == "dog"
    assert box == pytest.approx([0.1 * 41, 0.2 * 31, 0.4 * 41, 0.55 * 31], abs=1e-6)
    assert train["p002"] == train["p003"] == []


# VOC -------------------------------------------------------------------------------------------


def test_voc_counts_pixels_from_one_unless_a_box_starts_at_zero(tmp_path):
    """Both corner pixels belong to the box; difficult objects are for the evaluation only."""
    voc(tmp_path, {"train": ["v0", "v1", "v2"], "val": ["v5"]})
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val)) == (3, 1)
    assert contents(data.train)["v1"] == [("cat", 0, 0, 20, 16), ("dog", 4, 5, 26, 25)]
    assert [len(data.train.read(i).labels) for i in range(3)] == [2, 2, 1]
    assert data.train.crowd.tolist() == [False] * 5 + [True]
    page = voc_xml("v0.jpg", 40, 50, [("cat", (0, 0, 20, 15), False)])
    (tmp_path / "Annotations" / "v0.xml").write_text(page)
    train = contents(open_data(tmp_path).train)
    assert train["v0"] == [("cat", 0, 0, 20, 15)]
    assert train["v1"][1] == ("dog", 5, 6, 25, 24)


def test_voc_image_sets_are_respected(tmp_path):
    lists = {"train": ["v0", "v3"], "val": ["v1"], "test": ["v2"], "cat_train": ["v7 -1"]}
    data = open_data(voc(tmp_path, lists))
    assert set(contents(data.train)) == {"v0", "v3"}
    assert set(contents(data.test)) == {"v2"}
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    (tmp_path / "ImageSets" / "Main" / "trainval.txt").write_text("v4\nv5\nv6\n")
    assert set(contents(open_data(tmp_path).train)) == {"v4", "v5", "v6"}


def test_voc_without_lists_is_split(tmp_path):
    data = open_data(voc(tmp_path))
    assert len(data.train) + len(data.val) == 8
    assert len(data.val) >= 1


def test_voc_files_beside_images_in_split_folders(tmp_path):
    for split, numbers in (("train", range(4)), ("valid", range(4, 6))):
        (tmp_path / split).mkdir()
        for i in numbers:
            page = voc_xml("whatever.jpg", 40, 50, [("cat", (1, 1, 9, 9), False)])
            (tmp_path / split / f"v{i}.xml").write_text(page)
            picture(i, 40, 50).save(tmp_path / split / f"v{i}.jpg")
    data = open_data(tmp_path)
    assert (len(data.train), len(data.val)) == (4, 2)


# Archives, splits, sizes -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_files_are_read_where_they_lie(tmp_path, kind, method):
    folder = tmp_path / "pets"
    folder.mkdir()
    build, *more = {
        "coco": (coco,),
        "yolo": (yolo, PLAIN),
        "voc": (voc, {"train": ["v0", "v1", "v2"], "val": ["v5"]}),
    }[kind]
    build(folder, *more)
    plain = open_data(folder)
    with zipfile.ZipFile(tmp_path / "pets.zip", "w", method) as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(tmp_path))
    before = sorted(tmp_path.rglob("*"))
    packed = open_data(tmp_path / "pets.zip")
    assert contents(packed.train) == contents(plain.train)
    config = DataConfig(image_size=32, max_size=48, augmentation="none")
    for workers in (0, 2):
        ours, theirs = (
            next(iter(batches(data.val, config, batch=1, train=False, workers=workers)))
            for data in (packed, plain)
        )
        assert (ours.images.pixels == theirs.images.pixels).all()
    assert sorted(tmp_path.rglob("*")) == before


def test_split_words():
    assert split_of("annotations/instances_train2017.json") == "train"
    assert split_of("valid/_annotations.coco.json") == "val"
    assert split_of("data/test-dev.json") == "val"
    assert split_of("training_data/labels.json") == "train"
    assert split_of("contest/values.json") == ""


def test_split_off_validation_is_stratified_and_reproducible(tmp_path):
    rng = np.random.default_rng(0)
    images = [image_entry(i, f"p{i}.png", 20, 20) for i in range(100)]
    boxes = [
        annotation(3 * i + k, i, label, [1, 1, 9, 9])
        for i in range(90)
        for k, label in enumerate(
            [1, *([2] if rng.random() < 0.3 else []), *([3] if i % 30 == 0 else [])]
        )
    ]
    write_coco(tmp_path, images=images, annotations=boxes, categories={1: "a", 2: "b", 3: "c"})
    one, same, other = open_data(tmp_path), open_data(tmp_path), open_data(tmp_path, seed=1)
    assert one.val.image_ids.tolist() == same.val.image_ids.tolist()
    assert one.val.image_ids.tolist() != other.val.image_ids.tolist()
    assert not set(one.val.image_ids.tolist()) & set(one.train.image_ids.tolist())
    assert len(one.train) + len(one.val) == 100
    for data in (one, other):
        train, val = (np.bincount(part.labels, minlength=3) for part in (data.train, data.val))
        assert val[0] / (train[0] + val[0]) == pytest.approx(0.2, abs=0.04)
        assert val[1] / (train[1] + val[1]) == pytest.approx(0.2, abs=0.08)
        assert val[2] == 1  # of three
        empty = (np.diff(data.val.starts) == 0).sum()
        assert empty == 2  # of ten
    assert "stratified by class (20 of 100 images, seed 0)" in one.notes[-1]


def test_split_of_a_few_images(tmp_path):
    images = [image_entry(i, f"p{i}.png", 20, 20) for i in range(3)]
    boxes = [annotation(i, i, 1, [1, 1, 9, 9]) for i in range(3)]
    write_coco(tmp_path, images=images, annotations=boxes, categories={1: "a"})
    table = open_data(tmp_path)
    assert (len(table.train), len(table.val)) == (2, 1)
    train, val = stratified_split(table.train, seed=0)
    assert (len(train), len(val)) == (1, 1)


def test_versions_of_one_picture_stay_together(tmp_path):
    """Roboflow's augmentation writes several files of each picture."""
    images = [image_entry(i, f"p{i // 3}_jpg.rf.{i:04x}.png", 20, 20) for i in range(60)]
    boxes = [annotation(i, i, 1, [1, 1, 9, 9]) for i in range(60)]
    write_coco(tmp_path, images=images, annotations=boxes, categories={1: "a"})
    data = open_data(tmp_path)
    train, val = (
        {part.file(i).split(".rf.")[0] for i in range(len(part))} for part in (data.train, data.val)
    )
    assert not train & val
    assert (len(data.train), len(data.val)) == (48, 12)


def test_declared_sizes_that_are_not_the_files(tmp_path):
    """CPPE-5's defect: some boxes fit the file, some only the declared size."""
    images = [image_entry(i, f"p{i}.png", 60, 80) for i in range(1, 13)]
    boxes = [annotation(i, i, 1, [5, 5, 20, 20]) for i in range(1, 13)]
    boxes[1]["bbox"] = [50, 40, 25, 18]
    write_coco(tmp_path, images=images, annotations=boxes, categories={1: "x"}, name="train.json")
    shutil.copy(tmp_path / "train.json", tmp_path / "val.json")
    for i in (1, 2):
        picture(i, 30, 40).save(tmp_path / "images" / f"p{i}.png")
    data = open_data(tmp_path)
    assert data.train.sizes[:3].tolist() == [[30, 40], [30, 40], [60, 80]]
    assert data.train.boxes[:2].tolist() == [[5, 5, 20, 20], [25, 20, 12.5, 9]]
    assert any("declared size" in note for note in data.notes)
    split = read_raw(tmp_path).splits[0]
    measured = measure(split, read_headers(split), {1: 0})
    assert (measured.mismatched, measured.drawn_on_declared) == ([0, 1], [1])


def test_large_sets_trust_declared_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("detrlab.data.sources.MAX_MEASURED", 3)
    coco(tmp_path)
    data = open_data(tmp_path)
    assert any("were not compared with the files" in note for note in data.notes)
    assert contents(data.train) == expected(1, 6)


@pytest.mark.real_data
def test_facemask_as_it_lies(shared_data):
    data = open_data(shared_data / "facemask")
    assert (len(data.train), len(data.val)) == (677, 171)
    assert (len(data.train.boxes), len(data.val.boxes)) == (3106, 915)
    assert data.train.classes == ("mask_weared_incorrect", "with_mask", "without_mask")
    assert data.train.category_ids == (0, 1, 2)
    source = json.loads((shared_data / "facemask/annotations/custom_val.json").read_text())
    truth = {record["id"]: record for record in data.val.coco_ground_truth()["annotations"]}
    assert len(truth) == len(source["annotations"])
    for record in source["annotations"]:
        ours = truth[record["id"]]
        assert ours["bbox"] == record["bbox"]
        assert ours["area"] == record["area"]
        assert (ours["image_id"], ours["category_id"]) == (
            record["image_id"],
            record["category_id"],
        )


@pytest.mark.real_data
def test_bccd_as_it_lies(shared_data):
    data = open_data(shared_data / "bccd")
    assert (len(data.train), len(data.val), len(data.test)) == (205, 87, 72)
    assert data.train.classes == ("Platelets", "RBC", "WBC")
    boxes = sum(len(part.boxes) for part in (data.train, data.val, data.test))
    assert boxes == 4888 - 2  # two are a click without area
    assert len(data.notes) == 2


def test_licences_are_kept_and_nonsense_is_not(tmp_path):
    stated = [{"id": 1, "name": "CC BY 4.0", "url": "https://example.org"}, {"name": " MIT "}]
    stated += [{"name": 3}, "text", None, {}]
    coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    rewritten(path, lambda document: {**document, "licenses": stated})
    assert open_data(tmp_path).licences == ("CC BY 4.0 (https://example.org)", "MIT")


def test_a_folder_that_is_called_like_a_built_in_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_data("shapes-easy").notes == ()
    (tmp_path / "shapes-easy").mkdir()
    (note,) = open_data("shapes-easy").notes
    assert "write ./shapes-easy" in note
    with pytest.raises(UserError, match="is empty"):
        open_data("./shapes-easy")
