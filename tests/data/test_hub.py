"""Rows with an image and a column of objects: the Hub's layout, parquet, metadata.jsonl."""

import io
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detrlab.cli import main
from detrlab.data import open_data
from detrlab.data.columns import BOX_FORMATS, Columns, recognise
from detrlab.data.hub import parse
from detrlab.errors import UserError

datasets = pytest.importorskip("datasets")

NAMES = ["ant", "bee", "cat"]
WIDTH, HEIGHT = 96, 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DETRLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache" / "datasets")


def encoded(seed, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def truth(count, seed=0):
    """Boxes in xywh pixels and class numbers for each image; the second one shows nothing."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        objects = 0 if i == 1 else int(draw.integers(1, 4))
        start = draw.integers(0, (WIDTH // 2, HEIGHT // 2), (objects, 2))
        side = draw.integers(4, (WIDTH // 2, HEIGHT // 2), (objects, 2))
        rows.append((np.hstack([start, side]).astype(float), draw.integers(0, 3, objects)))
    return rows


def told(boxes, kind, *, fractions=False):
    """xywh pixels in another format."""
    first, side = boxes[:, :2], boxes[:, 2:]
    made = {
        "xywh": (first, side),
        "xyxy": (first, first + side),
        "cxcywh": (first + side / 2, side),
    }
    scale = [WIDTH, HEIGHT, WIDTH, HEIGHT] if fractions else 1
    return (np.hstack(made[kind]) / scale).tolist()


def table(rows, kind="xywh", fractions=False, names=NAMES, key="category"):
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "image_id": datasets.Value("int64"),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float64"))),
                key: datasets.List(label),
            },
        }
    )
    columns = {
        "image": [{"bytes": encoded(i), "path": f"p{i}.png"} for i in range(len(rows))],
        "image_id": list(range(len(rows))),
        "objects": [
            {"bbox": told(boxes, kind, fractions=fractions), key: labels.tolist()}
            for boxes, labels in rows
        ],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def check_equal(split, rows, places=6):
    assert len(split) == len(rows)
    by_name = {split.file(i): i for i in range(len(split))}
    assert len(by_name) == len(rows)
    for number, (boxes, labels) in enumerate(rows):
        i = by_name[next(name for name in by_name if name.endswith(f"p{number}.png"))]
        span = slice(int(split.starts[i]), int(split.starts[i + 1]))
        np.testing.assert_allclose(split.boxes[span], boxes, atol=10**-places)
        assert split.labels[span].tolist() == labels.tolist()


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize("kind", BOX_FORMATS)
def test_parquet_in_every_box_format(tmp_path, kind, fractions):
    folder = tmp_path / "pets" / "data"
    folder.mkdir(parents=True)
    train, val = truth(12, 1), truth(5, 2)
    for name, rows in (("train", train), ("validation", val)):
        file = folder / f"{name}-00000-of-00001.parquet"
        table(rows, kind, fractions).to_parquet(file)
    data = open_data(tmp_path / "pets")
    assert data.train.classes == tuple(NAMES)
    check_equal(data.train, train, places=3)
    check_equal(data.val, val, places=3)
    unit = "fractions of the image" if fractions else "pixels"
    assert any(f"objects.bbox is read as {kind} in {unit}" in note for note in data.notes)


def test_the_bytes_stay_and_are_written_once(tmp_path, monkeypatch):
    table(truth(6)).to_parquet(tmp_path / "train.parquet")
    first = open_data(tmp_path / "train.parquet")
    files = sorted((tmp_path / "cache" / "hf").rglob("*.png"))
    assert [file.read_bytes() for file in files] == [encoded(i) for i in range(6)]
    monkeypatch.setattr("detrlab.data.hub._Writer.add", None)  # would fail if it wrote again
    second = open_data(f"hf:{tmp_path / 'train.parquet'}")
    assert files == sorted((tmp_path / "cache" / "hf").rglob("*.png"))
    assert np.array_equal(first.train.boxes, second.train.boxes)


def test_a_data_set_by_name(monkeypatch):
    """As the Hub has it, behind ``load_dataset``; also with a configuration and box format."""
    train = truth(8)
    asked = []

    def load_dataset(path, **arguments):
        asked.append((path, arguments["name"], arguments["revision"]))
        assert "trust_remote_code" not in arguments
        return datasets.DatasetDict(train=table(train, "xyxy", names=None, key="label"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = open_data("hf:me/pets:full@v1?boxes=xyxy")
    assert asked == [("me/pets", "full", "v1")]
    assert data.name == "pets"
    assert data.train.classes == ("class 0", "class 1", "class 2")
    assert sum(len(split.boxes) for split in (data.train, data.val)) == sum(
        len(boxes) for boxes, _ in train
    )
    assert any("(as given)" in note for note in data.notes)


def test_rows_that_name_files_reach_no_other_folder(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(1))
    rows = table(truth(1)).cast_column("image", datasets.Image(decode=False))
    row = {**rows[0], "image": {"bytes": None, "path": str(secret)}}
    split = datasets.Dataset.from_dict(
        {key: [value] for key, value in row.items()}, features=rows.features
    )
    split.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="is no file of this data set"):
        open_data(tmp_path / "a.parquet")
    assert not list((tmp_path / "cache" / "hf").glob("*"))


def folder_with_metadata(folder, objects, names=("a.png", "b.png")):
    folder.mkdir(parents=True)
    lines = []
    for i, (name, each) in enumerate(zip(names, objects, strict=True)):
        (folder / "a.png").parent.mkdir(exist_ok=True)
        if "/" not in name:
            (folder / name).write_bytes(encoded(i))
        lines.append(json.dumps({"file_name": name, "objects": each}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def test_an_image_folder_with_metadata(tmp_path):
    """Read where it lies, without the package; objects as columns or as records."""
    objects = [
        {"bbox": [[1, 2, 30, 20], [40, 10, 20, 30]], "categories": ["bee", "ant"]},
        [{"bbox": [5, 5, 50, 40], "categories": "cat"}],
    ]
    folder_with_metadata(tmp_path / "pets" / "train", objects)
    folder_with_metadata(tmp_path / "pets" / "val", objects)
    data = open_data(tmp_path / "pets")
    assert data.train.classes == ("ant", "bee", "cat")
    assert data.train.boxes.tolist() == [[1, 2, 30, 20], [40, 10, 20, 30], [5, 5, 50, 40]]
    assert data.val.labels.tolist() == [1, 0, 2]
    assert any("categories as class names" in note for note in data.notes)
    assert not (tmp_path / "cache").exists()


def test_metadata_reaches_no_other_folder(tmp_path):
    (tmp_path / "c.png").write_bytes(encoded(1))
    objects = [{"bbox": [[1, 2, 30, 20]], "category": ["a"]}] * 2
    folder_with_metadata(tmp_path / "pets", objects, ("a.png", "../c.png"))
    with pytest.raises(UserError, match="too much would be left out"):
        open_data(tmp_path / "pets")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[]", "line 1: it should be a JSON object"),
        ("{", "line 1: it should be a JSON object"),
        ('{"file_name": "a.png"}', "no column of objects is recognised"),
        ('{"file_name": "a.png", "objects": []}', "holds no boxes"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1,2,3,4]], "label": []}}', "1 boxes and 0"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1,2,3,4]], "label": [-1]}}', "is -1"),
        ('{"file_name": "a.png", "objects": {"bbox": [[1,2,3,4]], "label": [4000000]}}', "4000000"),
        (
            '{"file_name": "a.png", "objects": {"bbox": [[900,2,3,4]], "label": [0]}}',
            "cannot be told how the boxes are meant",
        ),
    ],
)
def test_broken_metadata_is_one_clear_line(tmp_path, line, expected):
    (tmp_path / "a.png").write_bytes(encoded(1))
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(UserError, match=expected):
        open_data(tmp_path)


def test_what_stands_behind_hf():
    assert parse("hf:me/pets:full@v1?boxes=xyxy") == ("me/pets", "full", "v1", "xyxy")
    assert parse("hf:pets") == ("pets", None, None, None)
    for wrong in ("hf:", "hf:me/pets?box=xyxy"):
        with pytest.raises(UserError):
            parse(wrong)
    with pytest.raises(UserError, match="should be one of xywh"):
        Columns("x", "corners")


def test_without_the_package_one_line_says_so(tmp_path, monkeypatch, capsys):
    table(truth(3)).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["check", "--data", str(tmp_path / "a.parquet")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('pip install "detrlab[datasets]"')


def test_a_data_set_that_is_not_there_is_one_line(capsys):
    assert main(["check", "hf:nobody/has-this"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "hf:nobody/has-this cannot be read as a data set" in line


def test_check_takes_the_data_in_both_ways(tmp_path, monkeypatch, capsys):
    table(truth(3)).to_parquet(tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    reports = []
    for arguments in (["a.parquet"], ["--data", "a.parquet"]):
        main(["check", *arguments, "--json"])
        reports.append(capsys.readouterr().out)
    assert reports[0] == reports[1]
    for arguments in ([], ["a.parquet", "--data", "a.parquet"]):
        assert main(["check", *arguments]) == 2
        assert "name one data set" in capsys.readouterr().err


def test_convert_writes_beside_and_names_it(tmp_path, monkeypatch):
    table(truth(3)).to_parquet(tmp_path / "train.parquet")
    monkeypatch.chdir(tmp_path)
    assert main(["convert", f"hf:{tmp_path / 'train.parquet'}", "--to", "yolo"]) == 0
    assert len(list((tmp_path / "train-yolo" / "images").rglob("*.png"))) == 3


@given(st.sampled_from(BOX_FORMATS), st.booleans(), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_enough_boxes_tell_their_format(kind, fractions, seed):
    """Sixty boxes anywhere in their images, the larger half of them past the middle."""
    draw = np.random.default_rng(seed)
    sides = draw.integers(50, 500, (60, 2)).astype(float)
    first = draw.uniform(0.3, 0.7, (60, 2)) * sides
    side = draw.uniform(0.3, 1, (60, 2)) * (sides - first)
    made = {
        "xywh": (first, side),
        "xyxy": (first, first + side),
        "cxcywh": (first + side / 2, side),
    }
    boxes = np.hstack(made[kind]) / (np.tile(sides, 2) if fractions else 1)
    found, unit, share = recognise(boxes, sides, None, "here")
    assert (unit, share) == (fractions, 1.0)
    if kind != "cxcywh":  # such boxes may lie inside as xywh or corners too, and none is wrong then
        assert found == kind
