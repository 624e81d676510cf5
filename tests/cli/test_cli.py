"""The command line as a person meets it: help, mistakes, and one whole path through the verbs."""

import json
import subprocess
import sys

import numpy as np
import psutil
import pytest
from PIL import Image

import detrlab
from detrlab.cli import VERBS, main
from detrlab.data import open_data
from detrlab.errors import UserError
from detrlab.training.folder import RunConfig

SMALL = {
    "backbone": "resnet10t", "backbone_norms": "trained", "width": 32, "num_heads": 2,
    "ffn_width": 32, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 20,
}  # fmt: skip


def fails(capsys, *arguments) -> str:
    """The one line that a mistake is answered with; the exit code is 2 and nothing is raised."""
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_flags(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert f"detrlab {verb}" in capsys.readouterr().out


def test_help_and_version_load_nothing_heavy():
    program = (
        "import sys; from detrlab.cli import main; main(['--help']); main(['--version']);"
        "heavy = {'torch', 'numpy', 'timm', 'tyro', 'pydantic'} & set(sys.modules);"
        "sys.exit(' '.join(heavy) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert detrlab.__version__ in result.stdout
    assert all(verb in result.stdout for verb in VERBS)


def test_an_unknown_flag_names_the_closest(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--epocs", "3"])
    assert left.value.code == 2
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("trian", "did you mean 'train'"),
        ("train detr", "detrlab train --model detr"),
        ("compare detr-dc5 detr", "detrlab compare --models detr-dc5"),
        ("ablate path/to/data", "detrlab ablate --data path/to/data"),
        ("eval --data shapes", "--model"),
        ("train --model deformable-dert", "did you mean 'deformable-detr'?"),
        ("train --recipe laptob", "did you mean 'laptop'?"),
        ("compare --processes 2", "--processes is gone"),
        ("train --recipe tiny --set model.widht=64", "did you mean 'model.width'?"),
        ("train --recipe tiny --set width", "write NAME=VALUE"),
        ("train --recipe tiny --set model.width=90", "not divisible"),
        ("train --recipe tiny --set model.backbone=resnet5O", "did you mean"),
        ("train --recipe tiny --data no/such/folder", "no/such/folder"),
        ("train --recipe tiny --batch 0", "batch"),
        ("train --recipe tiny --imgsz 8", "image_size"),
        ("train --recipe tiny --device abacus", "abacus"),
        ("train --recipe tiny --weights no-such.safetensors", "no-such.safetensors"),
    ],
)
def test_mistakes_are_one_clear_line(command, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the folders of runs
    assert expected in fails(capsys, *command.split()).splitlines()[-1]


@pytest.fixture
def checkpoint(tmp_path):
    data = open_data("shapes")
    detector = detrlab.build("deformable-detr-two-stage", data.val.classes, **SMALL)
    return detector.save(tmp_path / "tiny.safetensors")


def noise(path, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def printed(capsys, *command):
    """What a command prints last, as JSON."""
    capsys.readouterr()
    assert main(command) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_predict_and_explain_at_another_size(checkpoint, tmp_path, capsys):
    picture = str(noise(tmp_path / "a.png"))
    common = [picture, "--model", str(checkpoint)]
    predict = ["predict", *common, "--conf", "0.0", "--json"]
    found, explained = [], []
    for size in ([], ["--imgsz", "64"]):
        found.append(printed(capsys, *predict, *size))
        output = tmp_path / f"explained{len(found)}"
        assert main(["explain", *common, *size, "--output", str(output)]) == 0
        explained.append((output / "explanation.json").read_text())
    assert found[0] != found[1]
    assert explained[0] != explained[1]
    detector = detrlab.load(checkpoint).at_size(64)
    assert found[1] == [
        r | {"image_id": picture} for r in detector.predict(picture, threshold=None).to_coco()
    ]
    assert "image_size" in fails(capsys, *predict, "--imgsz", "8")


def test_eval_judges_a_checkpoint_and_its_own_predictions_alike(
    checkpoint, tmp_path, capsys, monkeypatch
):
    output, again = tmp_path / "judged", tmp_path / "again"
    common = ["eval", "--data", "shapes", "--json", "--output"]
    sizes = ["--imgsz", "64"]
    first = printed(capsys, *common, str(output), *sizes, "--model", str(checkpoint))
    analysis = json.loads((output / "analysis.json").read_text())
    assert analysis["layers"][-1]["ap"] == first["ap"]
    assert (output / "hard_images.jpg").exists()
    assert (output / "pictures" / "layers.png").exists()
    theirs = ["--no-analysis", "--predictions", str(output / "predictions.json")]
    second = printed(capsys, *common, str(again), *theirs)
    assert not (again / "analysis.json").exists()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, nan_ok=True), name
    # Where the analysis would not fit into memory, one line says so, and the metrics are the same.
    memory = psutil.virtual_memory()._replace(available=10_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert main([*common, str(again), *theirs[1:]]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == second
    assert "metrics alone, without the analysis: about" in told.err
    assert not (tmp_path / "again-2" / "analysis.json").exists()


def photographs(folder, names):
    """A COCO set without splits: an image and a box for each of the class names."""
    folder.mkdir()
    classes = sorted(set(names))
    images, boxes = [], []
    for i, name in enumerate(names):
        noise(folder / f"{i}.png", seed=i)
        images.append({"id": i, "file_name": f"{i}.png", "width": 90, "height": 70})
        box = {"id": i + 1, "image_id": i, "bbox": [9, 9, 30, 30], "area": 900, "iscrowd": 0}
        boxes.append(box | {"category_id": classes.index(name)})
    words = [{"id": k, "name": name} for k, name in enumerate(classes)]
    document = {"images": images, "annotations": boxes, "categories": words}
    (folder / "photos.json").write_text(json.dumps(document))
    return folder


def test_eval_judges_photographs_without_splits_and_without_some_classes(
    checkpoint, tmp_path, capsys
):
    data = photographs(tmp_path / "later", ["ring", "disc"] * 5)
    command = ["eval", "--data", str(data), "--model", str(checkpoint), "--imgsz", "64", "--json"]
    output = ["--output", str(tmp_path / "judged")]
    assert main([*command, "--split", "all", *output]) == 0
    told = capsys.readouterr()
    assert "split off" not in told.err
    per_class = json.loads(told.out)["per_class"]
    assert {name for name, ap in per_class.items() if ap is not None} == {"ring", "disc"}
    truth = json.loads((tmp_path / "judged" / "predictions.json").read_text())
    assert {record["image_id"] for record in truth} == set(range(10))
    assert main([*command, *output]) == 0
    assert "--split all judges all of it" in capsys.readouterr().err
    assert "has no test split" in fails(capsys, *command, "--split", "test")
    other = photographs(tmp_path / "other", ["cat"] * 5)
    command[2] = str(other)
    assert "the data has cat" in fails(capsys, *command, "--split", "all")


def test_training_splits_off_what_eval_judges(tmp_path, monkeypatch):
    data = photographs(tmp_path / "data", ["ring", "disc"] * 10)
    opened = []

    def train(_config, _folder, data, _options):
        opened.append(data)
        raise UserError("enough")

    monkeypatch.setattr("detrlab.training.loop.train", train)
    for seed in ("1", "2"):
        assert main(["train", "--recipe", "tiny", "--data", str(data), "--seed", seed]) == 2
    expected = open_data(data).val.image_ids.tolist()
    assert [each.val.image_ids.tolist() for each in opened] == [expected, expected]


def test_more_epochs_do_not_move_the_drop_of_a_run_that_has_begun(tmp_path, capsys):
    data = photographs(tmp_path / "data", ["ring", "disc"] * 4)
    command = ["train", "--recipe", "tiny", "--data", str(data), "--output", str(tmp_path / "run")]
    small = ["--imgsz", "64", "--no-preflight", "--device", "cpu"]
    assert main([*command, *small, "--epochs", "1"]) == 0
    assert main([*command, *small, "--epochs", "2", "--resume"]) == 0
    train = RunConfig.load(tmp_path / "run" / "config.yaml").train
    assert (train.epochs, train.drop_epoch) == (2, 1)
    moved = ["--epochs", "2", "--resume", "--set", "train.drop_epoch=2"]
    assert main([*command, *small, *moved]) == 2
    assert "train.drop_epoch is 1 there and 2 here" in capsys.readouterr().err


def test_models_lists_every_preset(capsys):
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    plain = {row["preset"]: row for row in rows if row["backbone"] == "resnet50"}
    assert plain["deformable-detr-two-stage"]["parameters"] == 41_181_529
    assert plain["detr"]["ap"] == 42.0
