"""What is said, repaired or refused when a data set is opened, and where a mistyped path leads."""

import os

import pytest
from coco_folders import annotation, image_entry, picture, write_coco
from PIL import Image
from test_sources import PLAIN, voc, yolo

from detrlab.data import open_data, open_whole
from detrlab.data.check import check
from detrlab.data.convert import convert
from detrlab.data.repair import fix
from detrlab.errors import UserError

IMAGES = 20


def coco(folder, change=lambda box: box, broken=IMAGES, **changes):
    """A set of 20 images with a box each, of which the first few are changed."""
    images = [image_entry(i, f"p{i}.png", 60, 80) for i in range(IMAGES)]
    boxes = [[30 + i, 20, 25, 30] for i in range(IMAGES)]
    boxes[:broken] = map(change, boxes[:broken])
    parts = {
        "images": images,
        "annotations": [annotation(i, i, 1, box) for i, box in enumerate(boxes)],
        "categories": {1: "a"},
        "name": "train.json",
    }
    write_coco(folder, **{**parts, **changes})
    return folder


SPOILT = {
    "corners": (lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]], "look like x0 y0 x1 y1"),
    "fractions": (lambda b: [b[0] / 80, b[1] / 60, b[2] / 80, b[3] / 60], "look like fractions"),
    "another size": (lambda b: [v * 4 for v in b], "20 of 20 boxes lie outside of their images"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_boxes_that_are_not_what_they_are_taken_for_are_refused(tmp_path, name):
    change, words = SPOILT[name]
    with pytest.raises(UserError, match=f"{words}.*detrlab check"):
        open_data(coco(tmp_path, change))
    assert check(tmp_path, quick=True).exit_code == 1


@pytest.mark.parametrize("name", ["corners", "fractions"])
def test_what_fix_makes_of_them_opens_and_means_what_was_meant(tmp_path, name):
    meant = open_data(coco(tmp_path / "meant"))
    fix(coco(tmp_path / "spoilt", SPOILT[name][0]), tmp_path / "fixed")
    found = open_data(tmp_path / "fixed")
    assert found.train.boxes.round(6).tolist() == meant.train.boxes.tolist()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (SPOILT["fractions"][0], "train: 1 boxes look like fractions of the image"),
        (lambda b: [500, 500, *b[2:]], "train: 1 boxes lie outside of their images"),
        (lambda b: [70, 50, *b[2:]], "train: 1 boxes run over the edge"),
    ],
)
def test_a_few_are_counted(tmp_path, change, words):
    assert any(words in note for note in open_data(coco(tmp_path, change, broken=1)).notes)


def test_many_boxes_over_the_edge_are_no_reason_to_refuse(tmp_path):
    notes = open_data(coco(tmp_path, lambda b: [70, 50, *b[2:]])).notes
    assert any("20 boxes run over the edge" in note for note in notes)


def test_yolo_labels_in_pixels_are_refused(tmp_path):
    yolo(tmp_path, None)
    for path in tmp_path.rglob("*.txt"):
        path.write_text("0 30 20 12 14\n")
    with pytest.raises(UserError, match="do they count fractions of the image"):
        open_data(tmp_path)


def test_a_broken_validation_file_is_not_replaced_by_a_split(tmp_path):
    coco(tmp_path)
    (tmp_path / "val.json").write_text('{"images": [')
    with pytest.raises(UserError, match=r"val\.json is not valid json"):
        open_data(tmp_path)
    assert check(tmp_path).findings.count("file-broken") == 1
    fix(tmp_path, tmp_path.parent / "fixed")
    assert check(tmp_path.parent / "fixed").exit_code == 0


def test_a_broken_test_file_does_no_harm_beside_a_validation_split(tmp_path):
    coco(tmp_path)
    coco(tmp_path, name="val.json")
    (tmp_path / "test.json").write_text("{")
    assert any("test.json is not valid json" in note for note in open_data(tmp_path).notes)


def test_one_picture_in_two_splits_is_said(tmp_path):
    coco(tmp_path)
    coco(tmp_path, name="val.json")
    assert any("20 images are in train and in val" in n for n in open_data(tmp_path).notes)


def test_nothing_usable_is_one_sentence_from_fix_as_well(tmp_path):
    coco(tmp_path, images=[])
    with pytest.raises(UserError, match="nothing usable would be left"):
        fix(tmp_path, tmp_path.parent / "fixed")


# Names of files --------------------------------------------------------------------------------

FORMS = {
    "case": ("Photo 1.JPG", "photo 1.jpg"),
    "accents": ("caf\u00e9.jpg", "cafe\u0301.jpg"),
    "address": ("my%20photo%2B1.jpg", "my photo+1.jpg"),
}


@pytest.mark.parametrize("form", FORMS)
def test_names_that_other_disks_and_tools_write_are_found(tmp_path, form):
    written, there = FORMS[form]
    images = [image_entry(i, f"p{i}.png", 60, 80) for i in range(IMAGES)]
    coco(tmp_path, images=images)
    images[0]["file_name"] = written
    coco(tmp_path, images=images)
    (tmp_path / "images" / written).unlink()
    picture(0, 60, 80).save(tmp_path / "images" / there)
    table = open_whole(tmp_path).train
    assert len(table) == IMAGES
    assert table.file(0) == f"images/{there}"


def test_a_name_that_could_be_two_files_is_missing(tmp_path):
    coco(tmp_path)
    picture(0, 60, 80).save(tmp_path / "images" / "P0.png")
    (tmp_path / "images" / "p0.png").rename(tmp_path / "images" / "P0.PNG")
    assert check(tmp_path).findings.count("file-missing") == 1


def test_classes_that_yaml_takes_for_other_things_keep_their_names(tmp_path):
    yolo(tmp_path, None)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [no, null]\n")
    assert open_data(tmp_path).train.classes == ("no", "null")


def test_labels_behind_a_link_do_not_turn_images_into_negatives(tmp_path):
    yolo(tmp_path / "data", PLAIN)
    labels = tmp_path / "data" / "labels"
    first = next(iter(sorted(labels.rglob("*.txt"))))
    first.rename(tmp_path / "outside.txt")
    os.symlink(tmp_path / "outside.txt", first)
    report = check(tmp_path / "data")
    assert report.findings.count("file-link") == 1
    assert report.exit_code == 1
    assert sum(split.images for split in report.splits) == 8
    labels.rename(tmp_path / "labels")
    os.symlink(tmp_path / "labels", labels)
    with pytest.raises(UserError, match="has no usable images"):
        open_data(tmp_path / "data")
    assert check(tmp_path / "data").findings.count("file-link") == 9


# Words for what is not there -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("my-fotos", "did you mean 'my-photos'"),
        ("shape", "did you mean 'shapes'"),
        ("xyzzy", "built in: shapes, .*cppe5"),
        ("my-photos/trian.json", "did you mean 'my-photos/train.json'"),
        ("my-fotos/train.json", "did you mean 'my-photos'"),
        ("my-photos/other/deeper", "'my-photos' has no 'other'"),
        ("", "no data is named"),
        ("  ", "no data is named"),
        ("my-photos/images/p0.png", "give the folder of the whole data set, such as 'my-photos/im"),
        ("my-photos/images", "holds 20 images and no.*name the folder that holds both"),
        ("table", "holds 1 images .*1 files such as table.csv are not read"),
        ("phone", "1 files such as a.heic are not read"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(tmp_path, monkeypatch, asked, words):
    monkeypatch.chdir(tmp_path)
    coco(tmp_path / "my-photos")
    for name in ("table", "phone"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "table" / "a.png")
    (tmp_path / "table" / "table.csv").write_text("a,b\n")
    (tmp_path / "phone" / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        open_data(asked)


def test_a_second_data_set_in_the_folder_is_mentioned(tmp_path):
    voc(tmp_path / "voc")
    coco(tmp_path)
    notes = open_data(tmp_path).notes
    assert any("xml files beside it are not, such as voc/Annotations/" in note for note in notes)


# Whole sets ------------------------------------------------------------------------------------


def test_the_whole_of_data_without_splits(tmp_path):
    whole = open_whole(coco(tmp_path))
    assert len(whole.val) == IMAGES
    assert not any("split off" in note for note in whole.notes)
    parts = open_data(tmp_path)
    assert parts.split_off
    assert len(parts.train) + len(parts.val) == IMAGES
    coco(tmp_path, name="val.json")
    with pytest.raises(UserError, match="has the splits 'train' and 'val': name one"):
        open_whole(tmp_path)


def test_check_says_what_training_will_split_off(tmp_path):
    assert any("training will split off 20%" in n for n in check(coco(tmp_path)).notes)
    coco(tmp_path, name="test.json")
    assert any("judge by the test split" in note for note in check(tmp_path).notes)
    coco(tmp_path, name="val.json")
    assert not check(tmp_path).notes


def test_a_table_in_the_words_of_a_detector_that_knows_more(tmp_path):
    table = open_whole(coco(tmp_path, categories={7: "b", 1: "a"})).train
    assert table.classes == ("a", "b")
    other = table.with_classes(("x", "b", "a"))
    assert other.classes == ("x", "b", "a")
    assert set(other.labels.tolist()) == {2}
    assert other.category_ids[1:] == (7, 1)
    assert other.category_ids[0] not in (7, 1)
    # A class without boxes may be unknown, one with boxes may not.
    assert set(table.with_classes(("a",)).labels.tolist()) == {0}
    with pytest.raises(UserError, match="not among b, c: a"):
        table.with_classes(("b", "c"))


def test_what_voc_objects_carry_is_counted_when_it_is_lost(tmp_path):
    voc(tmp_path / "data")
    first = min((tmp_path / "data" / "Annotations").iterdir())
    text = first.read_text()
    assert "<name>" in text
    more = "<pose>Left</pose><truncated>1</truncated><name>"
    first.write_text(text.replace("<name>", more, 1))
    losses = convert(tmp_path / "data", "coco", tmp_path / "coco").losses
    for extra in ("1 annotations lose their pose", "1 annotations lose their truncated mark"):
        assert extra in losses
    assert "16 annotations lose their parts" in losses
