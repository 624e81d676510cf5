"""``detrlab export``, and exported files in the other verbs."""

import json

import numpy as np
import onnx
import pytest
from onnx_files import detr_line

import detrlab
from detrlab.checkpoints.published import ASSETS
from detrlab.cli import main
from detrlab.data import open_data

SHAPE = open_data("shapes").val.classes[0]
MODEL = str(ASSETS / "figures-detr.safetensors")
NAME = "figures-detr"


def fails(capsys, *arguments) -> str:
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8"], "--precision int8 needs --data"),
        (["--format", "torch", "--precision", "float16"], "keeps float32"),
        (["--images", "nowhere"], "no image in this folder"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, "export", MODEL, *arguments)
    assert not list(tmp_path.iterdir())


def test_any_file_is_judged_with_its_classes_renamed(tmp_path, capsys):
    path = str(detr_line(tmp_path / "a.onnx", metadata={"names": "['ball', 'dog', 'tree']"}))
    given = ["eval", "--model", path, "--data", "shapes", "--no-analysis"]
    given += ["--output", str(tmp_path / "out")]
    assert "no class is common to both" in fails(capsys, *given)
    assert "write MODEL=DATA" in fails(capsys, *given, "--rename", "ball")
    assert main([*given, "--rename", f"ball={SHAPE}"]) == 0
    said = capsys.readouterr().err
    assert f"ball is judged as {SHAPE}" in said
    assert "2 classes of the model are not in the data" in said
    assert "stretched to 96 x 64" in said
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["per_class"][SHAPE] is not None


def test_a_hostile_file_is_one_line(tmp_path, capsys):
    node = onnx.helper.make_node("Run", ["images"], ["ran"], domain="evil")
    path = str(detr_line(tmp_path / "a.onnx", nodes=[node]))
    for verb in (["eval", "--data", "shapes"], ["benchmark"]):
        assert "needs the operator evil.Run" in fails(capsys, *verb, "--model", path)
    given = ["compare", "--data", "shapes", "--output", str(tmp_path / "out")]
    assert "evil.Run" in fails(capsys, *given, "--detectors", f"x={path}")
    assert "write NAME=MODEL" in fails(capsys, *given, "--detectors", path)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Pictures whose truth is what the packaged detector of figures finds in them."""
    folder = tmp_path_factory.mktemp("labelled")
    detector, table = detrlab.load(MODEL), open_data("shapes").val
    images, annotations = [], []
    for number in range(1, 21):
        found = detector.predict(table.picture(number), threshold=0.2)
        found.image.save(folder / f"{number}.png")
        height, width = found.size
        name = f"{number}.png"
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        for record, label in zip(found.to_coco(), found.labels.tolist(), strict=True):
            x, y, w, h = record["bbox"]
            place = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": label}
            annotations.append(ids | place)
    categories = [{"id": label, "name": name} for label, name in enumerate(detector.classes)]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(values))
    return str(folder)


@pytest.fixture(scope="module")
def folder(labelled, tmp_path_factory):
    """That detector, exported."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    assert main(["export", MODEL, "--data", labelled, "--output", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_certificate_says_what_was_measured(folder):
    values = json.loads((folder / f"{NAME}.certificate.json").read_text())
    assert values["accepted"] is True
    assert values["agreement"]["compared"] > 0
    assert values["agreement"]["box"] <= 0.05
    assert values["agreement"]["score"] <= 1e-4
    assert values["ap"]["before"] == pytest.approx(values["ap"]["after"], abs=1e-3)
    assert values["speed"]["rows"].keys() == {"PyTorch", "onnx float32"}
    from detrlab.files import sha256

    assert values["sha256"] == {f"{NAME}.onnx": sha256(folder / f"{NAME}.onnx")}
    page = (folder / f"{NAME}.certificate.md").read_text()
    assert page.startswith(f"# {NAME}.onnx: accepted")
    assert sorted(each.name for each in folder.iterdir()) == [
        f"{NAME}.certificate.json", f"{NAME}.certificate.md", f"{NAME}.onnx"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_file_serves_the_other_verbs(folder, labelled, tmp_path, capsys):
    path = str(folder / f"{NAME}.onnx")
    ap = json.loads((folder / f"{NAME}.certificate.json").read_text())["ap"]["before"]
    output = ["--output", str(tmp_path / "eval")]
    assert main(["eval", "--model", path, "--data", labelled, "--no-analysis", *output]) == 0
    found = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert found["ap"] == pytest.approx(ap, abs=1e-3)
    capsys.readouterr()
    assert main(["benchmark", "--model", path, "--rounds", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["calls"] == 2
    assert row["p50_ms"] > 0
    assert "--imgsz 64: " in fails(
        capsys, "eval", "--model", path, "--data", labelled, "--imgsz", "64"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_with_onnx_runtime_and_numpy_alone(folder):
    import onnxruntime

    import detrlab
    from detrlab.data import open_data

    picture = open_data("shapes").val.picture(0)
    expected = detrlab.load(MODEL).predict(picture, threshold=None, limit=20)
    session = onnxruntime.InferenceSession(str(folder / f"{NAME}.onnx"))
    about = json.loads(session.get_modelmeta().custom_metadata_map["detrlab"])
    prepared = detrlab.load(MODEL).prepare(picture).pixels
    from detrlab.data.transforms import resize_pixels

    resized = resize_pixels(picture, *prepared.shape[2:]).numpy()[None]
    size = np.array([[picture.shape[2], picture.shape[1]]])
    labels, boxes, scores = session.run(None, {"images": resized, "orig_target_sizes": size})
    assert about["classes"] == list(expected.classes)
    best = [about["classes"][label] for label in labels[0, :20]]
    assert sorted(best) == sorted(expected.names)
    np.testing.assert_allclose(scores[0, :20], expected.scores.numpy(), atol=1e-4)
    assert boxes.shape[2] == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_differs_is_refused_and_not_kept(tmp_path, monkeypatch, capsys):
    from detrlab.export import deploy

    write = deploy.write_onnx

    def damaged(program, path, metadata):
        """One weight of the neck is another."""
        result = write(program, path, metadata)
        model = onnx.load(path)
        tensor = next(t for t in model.graph.initializer if "neck.projections.0.0.weight" in t.name)
        values = onnx.numpy_helper.to_array(tensor) * 1.2
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)
        return result

    monkeypatch.setattr(deploy, "write_onnx", damaged)
    out = tmp_path / "out"
    assert main(["export", MODEL, "--output", str(out)]) == 1
    assert "refused" in capsys.readouterr().err
    assert not (out / f"{NAME}.onnx").exists()
    values = json.loads((out / f"{NAME}.certificate.json").read_text())
    assert values["accepted"] is False
    assert values["first_difference"]["module"].startswith("network.encoder.neck.projections.0")
    assert "The first layer that differs" in (out / f"{NAME}.certificate.md").read_text()
