import json

import numpy as np
import psutil
import pytest
from scenes import fill, pycocotools_metrics, scene

from detrlab.errors import UserError
from detrlab.evaluation.coco import Evaluator
from detrlab.evaluation.foreign import BYTES, load_predictions
from detrlab.evaluation.records import GroundTruth

PRECISE = {"jitter": 0.04, "found": 0.9, "confused": 0.05, "false_alarms": 3}


@pytest.fixture
def write(tmp_path):
    def to_file(records, **options):
        path = tmp_path / "theirs.json"
        path.write_text(records if isinstance(records, str) else json.dumps(records, **options))
        return path

    return to_file


def judge(path, truth, **options):
    evaluator = Evaluator(truth)
    evaluator.extend(load_predictions(path, evaluator.truth, **options).detected)
    return evaluator.metrics()


def test_metrics_equal_pycocotools(write):
    truth, results = scene(0, crowd_share=0.2)
    path = write("\ufeff" + json.dumps(results, indent=2))
    expected = pycocotools_metrics(truth, results)
    metrics = judge(path, truth).to_dict()
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], abs=1e-9), name


def test_a_large_file_is_read_in_pieces_with_the_same_result(write, monkeypatch):
    truth, results = scene(0)
    results.append(results[3])
    path = write("\ufeff" + json.dumps(results, indent=2))
    whole = load_predictions(path, truth)
    monkeypatch.setattr("detrlab.evaluation.foreign.LARGE", 1)
    monkeypatch.setattr("detrlab.data.pieces.PIECE", 1)
    parts = load_predictions(path, truth)
    for name in ("image", "label", "boxes", "score"):
        np.testing.assert_array_equal(getattr(parts.detected, name), getattr(whole.detected, name))
    assert parts.notes == whole.notes
    assert "1 detections are in the file more than once" in " ".join(parts.notes)
    results[4] = {**results[4], "score": "high"}
    with pytest.raises(UserError, match=r"json, record 5: score 'high'"):
        load_predictions(write(results), truth)
    for text in (
        "{}",
        "[]]",
        "[{}",
        '[{"image_id": 1}',
        "[,]",
        "[] []",
        "5",
        json.dumps(results)[:-1],
    ):
        with pytest.raises(UserError, match=r"theirs\.json(, record 1:| is no COCO results file)"):
            load_predictions(write(text), truth)
    assert len(load_predictions(write(" [ ] "), truth).detected) == 0


def test_a_file_that_would_not_fit_into_memory_is_refused_before_it_is_read(write, monkeypatch):
    truth, results = scene(0)
    path = write(results)
    monkeypatch.setattr("detrlab.evaluation.foreign.LARGE", 1)
    assert len(load_predictions(path, truth).detected) == len(results)
    memory = psutil.virtual_memory()._replace(available=BYTES * len(results) - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr("detrlab.evaluation.foreign.list_in_pieces", None)
    told = f"was not read: about {len(results)} detections take about 0.0 GB of memory, and 0.0 GB"
    with pytest.raises(UserError, match=told):
        load_predictions(path, truth)


def test_our_own_file_comes_back_bit_for_bit(tmp_path):
    truth, results = scene(1, decimals=9)
    ours = fill(Evaluator(truth), results)
    ours.save_predictions(tmp_path / "ours.json")
    loaded = load_predictions(tmp_path / "ours.json", truth).detected
    for name in ("image", "label", "boxes", "score"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(ours.detected(), name))


@pytest.mark.parametrize("key", [lambda n: n, lambda n: n.rsplit(".", 1)[0], lambda n: "val/" + n])
def test_file_names_serve_as_image_ids(write, key):
    truth, results = scene(2)
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    expected = judge(write(results), truth)
    renamed = [{**row, "image_id": key(names[row["image_id"]])} for row in results]
    if key("") == "":
        # Names such as "3.jpg" without their ending could be ids; these cannot.
        for image in truth["images"]:
            image["file_name"] = "x" + image["file_name"]
        renamed = [{**row, "image_id": "x" + row["image_id"]} for row in renamed]
    path = write(renamed)
    assert judge(path, truth) == expected
    assert "file names" in load_predictions(path, truth).notes[0]


def test_ids_written_as_text_are_read(write):
    truth, results = scene(2)
    path = write([{**row, "image_id": str(row["image_id"])} for row in results])
    assert "read as text" in load_predictions(path, truth).notes[0]


@pytest.mark.parametrize(("categories", "first"), [("from-0", 0), ("from-1", 1)])
def test_positions_serve_as_categories_when_asked(write, categories, first):
    truth, results = scene(3, **PRECISE)
    moved = [{**row, "category_id": (row["category_id"] - 3) // 2 + first} for row in results]
    path = write(moved)
    with pytest.raises(UserError, match=f"--categories {categories}"):
        load_predictions(path, truth)
    assert judge(path, truth, categories=categories) == judge(write(results), truth)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], r"corners \[x1, y1, x2, y2\]"),
        (lambda x, y, w, h: [x / 640, y / 480, w / 640, h / 480], "fractions"),
    ],
)
def test_boxes_that_are_not_xywh_pixels_are_refused(write, box, message):
    truth, results = scene(5, num_images=20, **PRECISE)
    load_predictions(write(results), truth)
    path = write([{**row, "bbox": box(*row["bbox"])} for row in results])
    with pytest.raises(UserError, match=message):
        load_predictions(path, truth)
    load_predictions(path, truth, trust=True)


def test_bad_detections_are_accepted(write):
    for options in ({"found": 0.1}, {"jitter": 0.5}, {"confused": 0.9}):
        truth, results = scene(0, num_images=20, **options)
        assert len(load_predictions(write(results), truth).detected) == len(results)


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        *(("score", value, "record 5: score") for value in ("0.9", float("nan"), None, True)),
        *(
            ("bbox", value, "record 5: bbox")
            for value in ([1, 2, 3], [1, 2, 3, float("nan")], [1, 2, "3", 4], [5, 5, -2, 4], None)
        ),
        *(("bbox", [*range(4), 5], "record 5: bbox"), ("bbox", [0, 0, 1e999, 1], "record 5: bbox")),
        *(("category_id", value, "record 5: category_id") for value in ("1", 1.5, True)),
        ("category_id", 99, "category_id 99"),
        *(("image_id", value, "record 5: image_id") for value in (None, [1], 1.5)),
        ("image_id", 12345, "12345"),
    ],
)
def test_broken_records_are_named(write, key, value, fact):
    truth, results = scene(6)
    results[4][key] = value
    with pytest.raises(UserError, match=fact):
        load_predictions(write(results), truth)


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ('{"annotations": [], "images": []}', "json list"),
        ("", "theirs.json"),
        ("[1, 2]", "record 1"),
        ('[{"image_id": 0}]', "record 1: category_id"),
        ('[{"image_id": 0, "category_id": 3, "bbox": [0, 0, 1', "EOF"),
        ('[{"image_id": 0, "category_id": 3, "segmentation": {}, "score": 1}]', "record 1: bbox"),
        ('[{"image_id": 0,, }]', "line 1"),
        ("[" * 100_000, "theirs.json"),
    ],
)
def test_broken_files_are_named(write, text, fact):
    with pytest.raises(UserError, match=fact):
        load_predictions(write(text), scene(0)[0])


def test_a_missing_file_and_other_data_are_named(write, tmp_path):
    truth, results = scene(0)
    with pytest.raises(UserError, match="cannot be read"):
        load_predictions(tmp_path / "nothing.json", truth)
    others = [{**row, "image_id": row["image_id"] + 1} for row in results]
    with pytest.raises(UserError, match="another split"):
        load_predictions(write(others), truth)
    (tmp_path / "theirs.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"theirs.json .*JSON"):
        load_predictions(tmp_path / "theirs.json", truth)


def test_notes_say_what_is_odd(write):
    truth, results = scene(7, num_images=4)
    results = [row for row in results if row["image_id"] != 7] + results[:3]
    for row in results:
        row["score"] *= 100
    notes = " ".join(load_predictions(write(results), truth).notes)
    assert "1 of 4 images have no detections" in notes
    assert "scores range" in notes
    assert "3 detections are in the file more than once" in notes
    assert "holds no detections" in load_predictions(write([]), truth).notes[0]
    assert judge(write([]), truth).ap == 0.0


def test_ids_of_either_kind_work_without_file_names(write):
    truth, results = scene(8, string_ids=True)
    for image in truth["images"]:
        del image["file_name"]
    assert GroundTruth.from_coco(truth).file_names[0] == ""
    assert judge(write(results), truth).ap > 0
