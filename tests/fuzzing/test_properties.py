"""What holds for any text and any document, as hypothesis looks for counter-examples."""

import json
import posixpath
from pathlib import Path

import numpy as np
import pytest
from coco_folders import annotation, image_entry
from hypothesis import given, settings
from hypothesis import strategies as st

from detrlab.checkpoints.hf_config import from_transformers, preprocessing_from_transformers
from detrlab.checkpoints.reading import understood
from detrlab.config import Recipe
from detrlab.data.coco import from_document
from detrlab.data.columns import Columns
from detrlab.data.store import Folder, within
from detrlab.errors import LONGEST, UserError
from detrlab.evaluation.foreign import load_predictions
from detrlab.files import parse_yaml, read_bytes
from detrlab.presets import PRESETS

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(["id", "bbox", "name"]), inner)
    ),
    max_leaves=8,
)
often = settings(max_examples=100, deadline=None)


def one_line(error):
    text = str(error.value if hasattr(error, "value") else error)
    assert text.isprintable()
    assert len(text) <= LONGEST


@often
@given(st.text() | st.text("./\\a\0:"))
def test_no_name_leaves_its_folder(name):
    found = within("data", name)
    if found is not None:
        assert not found.startswith("/")
        assert ".." not in posixpath.normpath(found).split("/")[:1]
        assert "\0" not in found


@often
@given(st.text())
def test_any_error_is_one_printable_line(text):
    one_line(UserError(text * 100))


@often
@given(st.data())
def test_any_value_in_a_coco_document(data):
    document = {
        "images": [image_entry(i, f"{i}.png", 20, 30) for i in range(2)],
        "annotations": [annotation(i, i, 1, [2, 3, 10, 9]) for i in range(2)],
        "categories": [{"id": 1, "name": "a"}],
    }
    part = data.draw(st.sampled_from(list(document)))
    key = data.draw(st.sampled_from([*document[part][0], ""]))
    value = data.draw(VALUES)
    if key:
        document[part][0][key] = value
    else:
        document[part] = value
    try:
        split = from_document(
            document, Folder(Path("here"), frozenset({"0.png", "1.png"})), "a.json", ""
        )
    except UserError as error:
        one_line(error)
        return
    assert len(split.boxes) == len(split.category_ids) == len(split.owners)
    for line in split.findings:
        assert line.describe().isprintable()


@often
@given(st.lists(st.dictionaries(st.sampled_from(["objects", "bbox", "category"]), VALUES)))
def test_any_rows_of_columns(rows):
    columns = Columns("here")
    try:
        for i, row in enumerate(rows):
            columns.add(f"{i}.png", (20, 30), row)
        document, _ = columns.document()
    except UserError as error:
        one_line(error)
        return
    assert np.array([each["bbox"] for each in document["annotations"]]).shape[1] == 4


@often
@given(VALUES)
def test_any_predictions(tmp_path_factory, values):
    truth = {
        "images": [image_entry(1, "a.png", 20, 30)],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    path = tmp_path_factory.getbasetemp() / "predictions.json"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError) if values != [] else pytest.raises(ZeroDivisionError) as error:
        load_predictions(path, truth)
        raise ZeroDivisionError
    if values != []:
        one_line(error)


@often
@given(st.dictionaries(st.sampled_from(list(Recipe.model_fields)), VALUES))
def test_any_recipe(values):
    try:
        Recipe.parse({"name": "any", **values}, "any.yaml")
    except UserError as error:
        one_line(error)


@often
@given(st.text() | st.binary())
def test_any_yaml(text):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    for as_text in (False, True):
        try:
            parse_yaml(data, "any.yaml", as_text=as_text)
        except UserError as error:
            one_line(error)


@often
@given(st.data())
def test_any_description_of_transformers(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "config.json"
    kinds = st.sampled_from(["detr", "deformable_detr", "rt_detr", "d_fine"])
    names = st.sampled_from(
        ["id2label", "num_labels", "d_model", "backbone", "backbone_config", "encoder_layers",
         "num_queries", "two_stage", "size", "image_mean", "max_size", "num_feature_levels"]
    )  # fmt: skip
    values = data.draw(st.dictionaries(names, VALUES)) | {"model_type": data.draw(kinds)}
    for read in (
        lambda: from_transformers(values, str(path)),
        lambda: preprocessing_from_transformers(values),
    ):
        try:
            with understood(path):
                read()
        except UserError as error:
            one_line(error)
            named = str(error)
            assert "config.json" in named


def test_a_bomb_in_a_compressed_result_is_refused(tmp_path):
    import lzma

    bomb = lzma.compress(bytes(40 << 20), preset=0)
    for name, data in (("bomb", bomb), ("cut", lzma.compress(b"x")[:-9])):
        (tmp_path / f"{name}.json.xz").write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}\.json\.xz (would grow|is cut short)"):
            read_bytes(tmp_path / f"{name}.json")
    (tmp_path / "large.json").write_bytes(bytes(101))
    with pytest.raises(UserError, match="101 bytes, more than the 100 allowed"):
        read_bytes(tmp_path / "large.json", 100)


@pytest.mark.parametrize("name", PRESETS)
def test_every_count_of_a_preset_is_bounded(name):
    """Also where a preset changes the default, which once lost the bounds."""
    counts = [key for key, field in PRESETS[name].model_fields.items() if field.annotation is int]
    assert {"num_classes", "num_queries"} <= set(counts)
    for key in counts:
        with pytest.raises(UserError, match=f"{key}: Input should be greater"):
            PRESETS[name].parse({"preset": name, "num_classes": 2, key: -1})
