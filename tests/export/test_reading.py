"""Anybody's ONNX file: outputs that are recognised, or said in a YAML beside it."""

import numpy as np
import pytest
import torch
from onnx_files import constant_file, detr_line, picture, rf_detr, yolo

from detrlab.errors import UserError
from detrlab.export import load

NAMES = {"names": "{0: 'cat', 1: 'dog', 2: 'bird'}"}


def logit(values):
    values = np.asarray(values, np.float32)
    return np.log(values / (1 - values))


def test_labels_boxes_and_scores(tmp_path):
    found = load(detr_line(tmp_path / "a.onnx", metadata=NAMES))
    assert found.classes == ("cat", "dog", "bird")
    assert found.reading.size == (64, 96)
    best = found.predict(picture().permute(1, 2, 0).numpy(), threshold=None)
    assert best.names == ["cat", "bird"]  # best first
    assert best.boxes.tolist() == [[0, 0, 50, 40], [10, 20, 30, 60]]
    assert len(found.predict(picture(), threshold=0.5)) == 1
    assert len(found.predict(picture(), threshold=None, limit=1)) == 1


def test_without_names_cocos_are_assumed_and_it_is_said(tmp_path):
    found = load(detr_line(tmp_path / "a.onnx"))
    assert found.classes[:2] == ("person", "bicycle")
    assert len(found.classes) == 80
    assert any("COCO's 80" in note for note in found.notes)
    assert "stretched to 96 x 64" in found.description


def test_rf_detr(tmp_path):
    logits = logit([[[0.1, 0.9, 0.2], [0.3, 0.2, 0.1]]])
    boxes = np.array([[[0.5, 0.5, 0.5, 0.25], [0.25, 0.25, 0.5, 0.5]]], np.float32)
    path = rf_detr(tmp_path / "a.onnx", logits, boxes)
    with pytest.raises(UserError, match=r"names no classes: write a\.yaml"):
        load(path)
    path.with_suffix(".yaml").write_text("classes: [cat, dog, bird]\n")
    found = load(path)
    assert found.reading.mean == (0.485, 0.456, 0.406)
    best = found.predict(picture(128, 192), limit=2, threshold=None)
    assert best.names == ["dog", "cat"]
    torch.testing.assert_close(best.scores, torch.tensor([0.9, 0.3]))
    torch.testing.assert_close(best.boxes[0], torch.tensor([48.0, 48.0, 144.0, 80.0]))


def test_softmax_has_no_object_last(tmp_path):
    logits = np.array([[[0.0, 3.0, 0.0, 1.0], [0.0, 0.0, 0.0, 9.0]]], np.float32)
    boxes = np.full((1, 2, 4), 0.5, np.float32)
    path = constant_file(tmp_path / "a.onnx", {"logits": logits, "pred_boxes": boxes})
    path.with_suffix(".yaml").write_text("classes: [cat, dog, bird]\nscores: softmax\n")
    best = load(path).predict(picture(), limit=1, threshold=None)
    assert best.names == ["dog"]
    expected = torch.from_numpy(logits)[0, 0].softmax(-1)[1]
    torch.testing.assert_close(best.scores[0], expected)


def test_yolo_is_letterboxed_and_suppressed(tmp_path):
    # The picture of 128 x 192 fills the input of 96 x 96 from row 16 to 80, at half its size.
    rows = np.zeros((1, 7, 4), np.float32)
    rows[0, :4, 0] = (48, 48, 20, 10)  # cxcywh in pixels of the input
    rows[0, :4, 1] = (49, 48, 20, 10)  # overlaps the first
    rows[0, :4, 2] = (49, 48, 20, 10)  # as well, but of another class
    rows[0, :4, 3] = (20, 30, 8, 8)
    rows[0, 4:, 0], rows[0, 4:, 1] = (0.9, 0, 0), (0.8, 0, 0)
    rows[0, 4:, 2], rows[0, 4:, 3] = (0, 0.7, 0), (0, 0, 0.6)
    inputs = {"images": ("float32", (1, 3, 96, 96))}
    found = load(yolo(tmp_path / "a.onnx", rows, inputs=inputs, metadata=NAMES))
    best = found.predict(picture(128, 192), threshold=None)
    assert best.names == ["cat", "dog", "bird"]
    torch.testing.assert_close(best.boxes[0], torch.tensor([76.0, 54.0, 116.0, 74.0]))
    prepared, (left, top, scale) = found.prepare(picture(128, 192))
    assert (left, top, scale) == (0, 16, 0.5)
    assert prepared.shape == (1, 3, 96, 96)
    torch.testing.assert_close(prepared[0, :, 0], torch.full((3, 96), 114 / 255))


def test_yolo_end_to_end(tmp_path):
    rows = np.zeros((1, 300, 6), np.float32)
    rows[0, 5] = (10, 20, 30, 40, 0.8, 1)
    path = yolo(tmp_path / "a.onnx", rows, metadata=NAMES)
    path.with_suffix(".yaml").write_text("resize: stretch\n")
    best = load(path).predict(picture(64, 96), threshold=0.5)
    assert best.names == ["dog"]
    assert best.boxes.tolist() == [[10, 20, 30, 40]]


def test_normalisation_as_said(tmp_path):
    path = detr_line(tmp_path / "a.onnx", metadata=NAMES)
    pixels = picture(64, 96)
    path.with_suffix(".yaml").write_text(
        "channels: bgr\nrange: 255\nmean: [1, 2, 3]\nstd: [4, 5, 6]\n"
    )
    found = load(path)
    expected = pixels.flip(0).float() - torch.tensor([1, 2, 3])[:, None, None]
    expected = expected / torch.tensor([4, 5, 6])[:, None, None]
    torch.testing.assert_close(found.prepare(pixels)[0][0], expected)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layout: yolov99\n", "layout: Input should be"),
        ("clases: [a]\n", "unknown setting 'clases', did you mean 'classes'"),
        ("- a\n", "should hold 'name: value' lines"),
        ("a: [\n", "is not valid YAML"),
        ("size: [-1, 5]\n", "size"),
        ("std: [0, 1, 1]\n", "std"),
    ],
)
def test_a_bad_description_is_one_line(tmp_path, text, message):
    path = detr_line(tmp_path / "a.onnx", metadata=NAMES)
    path.with_suffix(".yaml").write_text(text)
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_unknown_outputs_are_named(tmp_path):
    outputs = {"a": np.zeros((1, 2), np.float32), "b": np.zeros((1, 3), np.float32)}
    with pytest.raises(UserError, match=r"outputs \(a \(1, 2\), b \(1, 3\)\) are of no known"):
        load(constant_file(tmp_path / "x.onnx", outputs))


def test_a_file_without_a_picture_as_input_is_refused(tmp_path):
    inputs = {"tokens": ("int64", (1, 77))}
    outputs = {"labels": np.zeros((1, 2), np.float32)}
    with pytest.raises(UserError, match=r"no input takes one picture"):
        load(constant_file(tmp_path / "x.onnx", outputs, inputs=inputs))


def test_more_classes_than_names(tmp_path):
    path = detr_line(tmp_path / "a.onnx", metadata={"names": "['cat', 'dog']"})
    with pytest.raises(UserError, match=r"finds class 2, and only 2 classes are named"):
        load(path).predict(picture())


def test_outputs_that_are_not_what_was_said(tmp_path):
    path = yolo(tmp_path / "a.onnx", np.zeros((1, 9, 5), np.float32), metadata=NAMES)
    with pytest.raises(UserError, match=r"are not yolo of 3 classes"):
        load(path).predict(picture())
