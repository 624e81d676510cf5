"""ONNX files from somebody else: nothing outside of their folder, bounded, one line each."""

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_files import constant_file, detr_line, picture

from detrlab.errors import UserError
from detrlab.export import load
from detrlab.export.sessions import open_session


def refused(path, message):
    with pytest.raises(UserError, match=message) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def with_weights_at(path, place):
    """A file whose weights lie elsewhere."""
    model = onnx.load(detr_line(path))
    tensor = model.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", place), ("length", "32")):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("place", ["../secret", "/etc/passwd", "down/../../secret", "link"])
def test_weights_outside_of_the_folder_are_refused(tmp_path, place):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(32))
    (folder / "link").symlink_to(tmp_path / "secret")
    refused(with_weights_at(folder / "a.onnx", place), "outside of its folder: refused")


def test_weights_beside_the_file_are_read(tmp_path):
    values = np.arange(8, dtype=np.float32)
    (tmp_path / "weights").write_bytes(values.tobytes())
    found = load(with_weights_at(tmp_path / "a.onnx", "weights")).predict(picture(), threshold=None)
    assert sorted(found.boxes.flatten().tolist()) == list(range(8))
    (tmp_path / "weights").unlink()
    refused(tmp_path / "a.onnx", "'weights' are missing beside it")


def test_operators_from_elsewhere_are_refused(tmp_path):
    node = helper.make_node("Run", ["images"], ["ran"], domain="evil")
    refused(detr_line(tmp_path / "a.onnx", nodes=[node]), r"needs the operator evil\.Run")


def test_operators_in_a_branch_are_refused(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Run", [], ["ran"], domain="evil")],
        "inner",
        [],
        [helper.make_tensor_value_info("ran", 1, None)],
    )
    node = helper.make_node("If", ["labels.value"], ["x"], then_branch=inner, else_branch=inner)
    refused(detr_line(tmp_path / "a.onnx", nodes=[node]), r"needs the operator evil\.Run")


def test_damaged_and_missing_files(tmp_path):
    path = detr_line(tmp_path / "a.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    refused(path, r"damaged|cannot be run|no outputs")
    (tmp_path / "b.onnx").write_text("hello")
    refused(tmp_path / "b.onnx", "no ONNX file")
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx", "it has no outputs")
    refused(tmp_path / "none.onnx", "does not exist")
    refused(tmp_path / "a.pt", r"should end in \.onnx or \.xml")
    (tmp_path / "a.xml").write_text("<net/>")
    refused(tmp_path / "a.xml", r"its weights are missing: a\.bin")
    (tmp_path / "a.bin").write_bytes(b"")
    refused(tmp_path / "a.xml", "cannot be run")


def test_a_graph_that_asks_for_a_terabyte_is_refused(tmp_path):
    nodes = [
        helper.make_node("ConstantOfShape", ["labels.value"], ["x"]),
        helper.make_node("Add", ["x", "scores.value"], ["big"]),
    ]
    outputs = {
        "labels": np.array([1_000_000, 300_000]),
        "boxes": np.zeros((1, 2, 4), np.float32),
        "scores": np.zeros((1, 1), np.float32),
    }
    path = constant_file(tmp_path / "a.onnx", outputs, nodes=nodes)
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("big", 1, None))
    onnx.save(model, path)
    with pytest.raises(UserError, match="cannot be run") as raised:
        load(path).predict(picture())
    assert "\n" not in str(raised.value)


def test_a_batch_of_fixed_size_is_refused(tmp_path):
    inputs = {"images": ("float32", (4, 3, 64, 96))}
    outputs = {"output0": np.zeros((4, 7, 5), np.float32)}
    refused(
        constant_file(tmp_path / "a.onnx", outputs, inputs=inputs), "no input takes one picture"
    )


def test_weights_are_counted(tmp_path):
    session = open_session(detr_line(tmp_path / "a.onnx"))
    assert session.parameters == 8 + 2  # boxes and scores; labels are integers
