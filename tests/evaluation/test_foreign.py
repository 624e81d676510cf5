import json

import numpy as np
import pytest
from scenes import fill, pycocotools_metrics, scene

from detrlab.errors import UserError
from detrlab.evaluation import foreign
from detrlab.evaluation.coco import Evaluator
from detrlab.evaluation.foreign import load_predictions
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


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("chunk", [1 << 20, 97])
def test_metrics_equal_pycocotools(write, monkeypatch, indent, chunk):
    monkeypatch.setattr(foreign, "_CHUNK", chunk)
    truth, results = scene(0, crowd_share=0.2)
    path = write(results, indent=indent)
    expected = pycocotools_metrics(truth, results)
    metrics = judge(path, truth).to_dict()
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], abs=1e-9), name


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
    with pytest.raises(UserError, match=f"would all fit if read .*{categories}"):
        load_predictions(path, truth)
    assert judge(path, truth, categories=categories) == judge(write(results), truth)


def contiguous(seed):
    """Category ids 0, 1, 2, 3: where being off by one stays within the known ids."""
    truth, results = scene(seed, num_images=20, **PRECISE)
    for row in truth["categories"]:
        row["id"] = (row["id"] - 3) // 2
    for row in truth["annotations"] + results:
        row["category_id"] = (row["category_id"] - 3) // 2
    return truth, results


def test_ids_off_by_one_are_suspected_even_where_all_are_known(write):
    truth, results = contiguous(4)
    shifted = [
        {**row, "category_id": row["category_id"] + 1} for row in results if row["category_id"] < 3
    ]
    with pytest.raises(UserError, match="counted from 1"):
        load_predictions(write(shifted), truth)
    load_predictions(write(shifted), truth, trust=True)
    assert judge(write(shifted), truth, categories="from-1").ap > 0.2


def convert(results, box):
    return [{**row, "bbox": box(*row["bbox"])} for row in results]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (lambda x, y, w, h: [x, y, x + w, y + h], r"\[x1, y1, x2, y2\]"),
        (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "subtract half the size"),
        (lambda x, y, w, h: [y, x, h, w], "swap x with y"),
        (lambda x, y, w, h: [x / 640, y / 480, w / 640, h / 480], "fractions"),
    ],
)
def test_other_box_conventions_are_named(write, box, message):
    truth, results = scene(5, num_images=20, **PRECISE)
    load_predictions(write(results), truth)
    with pytest.raises(UserError, match=message):
        load_predictions(write(convert(results, box)), truth)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("options", [{"found": 0.1}, {"jitter": 0.5}, {"confused": 0.9}])
def test_a_bad_detector_is_not_taken_for_a_wrong_convention(write, options, seed):
    truth, results = scene(seed, num_images=20, **options)
    assert load_predictions(write(results), truth).detected


BROKEN = {
    "score": [("0.9", "score '0.9'"), (float("nan"), "score nan"), (None, "score None")],
    "bbox": [
        ([1, 2, 3], "four"),
        ([1, 2, 3, float("nan")], "finite"),
        ([1, 2, "3", 4], "four finite"),
        ([5, 5, -2, 4], "negative"),
        (None, "bbox None"),
    ],
    "category_id": [("1", "category_id '1'"), (1.5, "1.5"), (True, "True"), (99, "99 is unknown")],
    "image_id": [(None, "image_id None"), ([1], r"image_id \[1\]"), (12345, "12345")],
}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [(key, value, message) for key, rows in BROKEN.items() for value, message in rows],
)
def test_broken_records_are_named(write, key, value, message):
    truth, results = scene(6)
    results[4][key] = value
    with pytest.raises(UserError, match=message) as caught:
        load_predictions(write(results), truth)
    if "unknown" not in message and value != 12345:
        assert "record 5" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": [], "images": []}', "holds an object"),
        ("", "no json list"),
        ("[1, 2]", "1 is no record"),
        ('[{"image_id": 0}]', "it has no category_id, bbox, score"),
        ('[{"image_id": 0, "category_id": 3, "bbox": [0, 0, 1', "written to the end"),
        ('[{"image_id": 0, "category_id": 3, "segmentation": {}, "score": 1}]', "no bbox"),
        ('[{"image_id": 0,, }]', "broken json"),
    ],
)
def test_broken_files_are_named(write, text, message):
    with pytest.raises(UserError, match=message):
        load_predictions(write(text), scene(0)[0])


def test_a_missing_file_and_other_data_are_named(write, tmp_path):
    truth, results = scene(0)
    with pytest.raises(UserError, match="cannot be read"):
        load_predictions(tmp_path / "nothing.json", truth)
    others = [{**row, "image_id": row["image_id"] + 1} for row in results]
    with pytest.raises(UserError, match="another split"):
        load_predictions(write(others), truth)
    (tmp_path / "theirs.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text"):
        load_predictions(tmp_path / "theirs.json", truth)


def test_notes_say_what_is_odd(write):
    truth, results = scene(7, num_images=4)
    results = [row for row in results if row["image_id"] != 7] + results[:3]
    for row in results:
        row["score"] *= 100
    notes = " ".join(load_predictions(write(results), truth).notes)
    assert "1 of 4 images have no detections" in notes
    assert "scores range" in notes
    assert "3 detections stand in the file more than once" in notes
    assert "holds no detections" in load_predictions(write([]), truth).notes[0]
    assert judge(write([]), truth).ap == 0.0


def test_ids_of_either_kind_work_without_file_names(write):
    truth, results = scene(8, string_ids=True)
    for image in truth["images"]:
        del image["file_name"]
    assert GroundTruth.from_coco(truth).file_names[0] == ""
    assert judge(write(results), truth).ap > 0


@pytest.mark.real_data
def test_a_yolo_tools_file_on_real_annotations(write, shared_data):
    """File stems for image ids, classes counted from 1: as YOLO tools write their json."""
    truth = json.loads((shared_data / "facemask/annotations/custom_val.json").read_text())
    for number, annotation in enumerate(truth["annotations"], start=1):
        annotation["id"] = number  # pycocotools loses the annotation whose id is 0
    stems = {image["id"]: image["file_name"].removesuffix(".jpg") for image in truth["images"]}
    rng = np.random.default_rng(0)
    results = []
    for annotation in truth["annotations"]:
        box = np.array(annotation["bbox"], dtype=float)
        for _ in range(rng.integers(0, 3)):
            moved = np.r_[box[:2] + rng.normal(0, 0.1, 2) * box[2:], box[2:]]
            label = annotation["category_id"] if rng.random() < 0.9 else int(rng.integers(3))
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": label,
                    "bbox": [round(side, 3) for side in moved.tolist()],
                    "score": round(float(rng.random()), 5),
                }
            )
    theirs = [
        {**row, "image_id": stems[row["image_id"]], "category_id": row["category_id"] + 1}
        for row in results
    ]
    path = write(theirs)
    with pytest.raises(UserError, match="from-1"):
        load_predictions(path, truth)
    metrics = judge(path, truth, categories="from-1").to_dict()
    expected = pycocotools_metrics(truth, results)
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], abs=1e-9), name
