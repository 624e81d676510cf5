"""The command line as a person meets it: help, mistakes, and one whole path through the verbs."""

import json
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

import detrlab
from detrlab.cli import VERBS, main
from detrlab.data import open_data
from detrlab.errors import UserError
from detrlab.training.folder import RunConfig

SMALL = dict(  # noqa: C408
    backbone="resnet10t",
    backbone_norms="trained",
    width=32,
    num_heads=2,
    ffn_width=32,
    encoder_layers=1,
    decoder_layers=1,
    num_queries=20,
)


def fails(capsys, *arguments) -> str:
    """The one line that a mistake is answered with; the exit code is 2 and nothing is raised."""
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_flags(verb, capsys):
    assert import_module(f"detrlab.cli.{verb}").Options.__doc__
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


def test_an_unknown_verb_names_the_closest(capsys):
    assert "did you mean 'train'" in fails(capsys, "trian")


def test_an_unknown_flag_names_the_closest(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "--epocs", "3"])
    assert left.value.code == 2
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "detr"], "write detrlab train --model detr"),
        (["compare", "detr-dc5", "detr"], "write detrlab compare --models detr-dc5"),
        (["ablate", "path/to/data"], "write detrlab ablate --data path/to/data"),
    ],
)
def test_a_word_without_its_flag_is_answered_with_the_flag(arguments, expected, capsys):
    assert expected in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "deformable-dert"], "did you mean 'deformable-detr'?"),
        (["--recipe", "laptob"], "did you mean 'laptop'?"),
        (["--set", "model.widht=64"], "did you mean 'model.width'?"),
        (["--set", "width"], "write NAME=VALUE"),
        (["--set", "model.width=90"], "not divisible"),
        (["--model", "detr", "--set", "model.refine=true"], "deformable"),
        (["--set", "model.backbone=resnet5O"], "did you mean"),
        (["--data", "no/such/folder"], "no/such/folder"),
        (["--batch", "0"], "batch"),
        (["--imgsz", "8"], "image_size"),
        (["--device", "abacus"], "abacus"),
        (["--weights", "no-such.safetensors"], "no-such.safetensors"),
    ],
)
def test_mistakes_in_training_are_one_clear_line(arguments, expected, capsys, tmp_path):
    output = tmp_path / "run"
    message = fails(capsys, "train", "--recipe", "tiny", *arguments, "--output", str(output))
    assert expected in message.splitlines()[-1]


def test_eval_wants_one_thing_to_judge(capsys):
    assert "--model" in fails(capsys, "eval", "--data", "shapes")


def test_predict_says_what_is_missing(capsys, tmp_path):
    checkpoint = str(tmp_path / "none.safetensors")
    assert "does not exist" in fails(capsys, "predict", "no.jpg", "--model", checkpoint)
    (tmp_path / "empty").mkdir()
    assert "no image" in fails(capsys, "predict", str(tmp_path / "empty"), "--model", checkpoint)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "none" in fails(capsys, "predict", str(tmp_path / "a.png"), "--model", checkpoint)


@pytest.fixture
def checkpoint(tmp_path):
    data = open_data("shapes")
    detector = detrlab.build("deformable-detr-two-stage", data.val.classes, **SMALL)
    return detector.save(tmp_path / "tiny.safetensors")


def test_predict_draws_and_keeps_what_was_there(checkpoint, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(folder / name)
    output = tmp_path / "found"
    command = ["predict", str(folder), "--model", str(checkpoint), "--conf", "0.0"]
    for expected in (output, tmp_path / "found-2"):
        assert main([*command, "--output", str(output)]) == 0
        records = json.loads((expected / "predictions.json").read_text())
        assert {record["image_id"] for record in records} == {str(p) for p in folder.iterdir()}
        assert len(list(expected.glob("*.jpg"))) == 2
    assert main([*command, "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == records


def test_predict_and_explain_at_another_size(checkpoint, tmp_path, capsys):
    picture = tmp_path / "a.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(picture)
    common = [str(picture), "--model", str(checkpoint)]
    predict = ["predict", *common, "--conf", "0.0", "--json"]
    found = []
    for size in ([], ["--imgsz", "64"]):
        assert main([*predict, *size]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found[0] != found[1]
    assert found[1] == [
        {**record, "image_id": str(picture)}
        for record in detrlab.load(checkpoint).at_size(64).predict(picture).to_coco()
    ]
    assert "image_size" in fails(capsys, *predict, "--imgsz", "8")
    explained = []
    for size in ([], ["--imgsz", "64"]):
        output = tmp_path / f"explained{len(explained)}"
        assert main(["explain", *common, *size, "--output", str(output)]) == 0
        explained.append((output / "explanation.json").read_text())
    assert explained[0] != explained[1]


def test_eval_judges_a_checkpoint_and_its_own_predictions_alike(checkpoint, tmp_path, capsys):
    output = tmp_path / "judged"
    common = ["eval", "--data", "shapes", "--json"]
    sizes = ["--imgsz", "64"]
    assert main([*common, *sizes, "--model", str(checkpoint), "--output", str(output)]) == 0
    first = json.loads(capsys.readouterr().out)
    analysis = json.loads((output / "analysis.json").read_text())
    assert analysis["layers"][-1]["ap"] == first["ap"]
    assert (output / "hard_images.jpg").exists()
    assert (output / "pictures" / "layers.png").exists()
    again = [*common, "--no-analysis", "--predictions", str(output / "predictions.json")]
    assert main([*again, "--output", str(tmp_path / "again")]) == 0
    assert not (tmp_path / "again" / "analysis.json").exists()
    second = json.loads(capsys.readouterr().out)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert second[name] == pytest.approx(value, nan_ok=True), name


def photographs(folder, names):
    """A COCO set without splits: an image and a box for each of the class names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for i in range(len(names)):
        pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 60})
        box = {"bbox": [9, 9, 30, 30], "area": 900, "iscrowd": 0}
        boxes.append({"id": i + 1, "image_id": i, "category_id": sorted(set(names)).index(names[i])}
                     | box)  # fmt: skip
    words = [{"id": k, "name": name} for k, name in enumerate(sorted(set(names)))]
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
