"""Nothing from a file reaches the terminal as a control character."""

import re

import pytest
from coco_folders import annotation, image_entry, write_coco

from compare_cases import SMALL
from detrlab.checkpoints import native
from detrlab.cli import main
from detrlab.cli.common import printable, say
from detrlab.config import DataConfig, Recipe, TrainConfig
from detrlab.errors import LONGEST, UserError
from detrlab.presets import build_network, model_config

EVIL = "a\x1b[2J\x07\u202eb"
"""A class, a file and a folder of this name clear the screen, ring and turn the text around."""


@pytest.mark.parametrize("text", ["a\x1b[2Jb", "a\nb", "a\x9b1mb", "a\u202eb", "a\udcffb"])
def test_control_characters_are_escaped(text, capsys):
    assert printable(text).isprintable()
    assert printable(text).startswith("a\\")
    say(f"one\n{text}")
    assert capsys.readouterr().err.replace("\n", "").isprintable()


def test_letters_stay_as_they_are():
    assert printable("Maske 口罩 [red] \\x1b") == "Maske 口罩 [red] \\x1b"


def test_an_error_is_one_printable_line():
    error = UserError(f"{EVIL}\n  {'x' * 10_000}\r\n\u2028the end")
    assert str(error).isprintable()
    assert str(error).endswith("the end")
    assert len(str(error)) <= LONGEST


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, a checkpoint and a recipe with such names everywhere."""
    folder = tmp_path_factory.mktemp("hostile")
    images = [image_entry(i, f"{EVIL}{i}.png", 60, 80) for i in range(14)]
    boxes = [annotation(i, i, 1 + i % 2, [5 + i, 5, 30, 20]) for i in range(14)]
    names = {1: EVIL, 2: "[red]b"}
    for split, part in (("train", slice(0, 10)), ("val", slice(10, 14))):
        broken = [annotation(99, 0, 1, [0, 0, 1, EVIL])] if split == "train" else []
        entries = [*boxes[part], *broken]
        write_coco(folder / EVIL, images=images[part], annotations=entries, categories=names,
                   name=f"{split}.json")  # fmt: skip
    config = model_config("detr", 2, **SMALL)
    native.save(
        folder / EVIL / "model", build_network(config), config, (EVIL, "[red]b"), (1, 2),
        DataConfig(image_size=64, max_size=64), threshold=0.0,
    )  # fmt: skip
    Recipe(
        name=EVIL,
        description=EVIL,
        model=SMALL,
        train=TrainConfig(epochs=1, batch=4, weights="none"),
        data=DataConfig(image_size=64, max_size=64, augmentation="none", workers=0),
    ).save(folder / "recipe.yaml")
    return folder


DATA, MODEL, IMAGE = f"{EVIL}", f"{EVIL}/model.safetensors", f"{EVIL}/images/{EVIL}10.png"
TRAINING = ["--recipe", "recipe.yaml", "--data", DATA]


GOOD = [
    ["check", DATA, "--fix", "fixed"],
    ["convert", DATA, "--to", "yolo", "--output", "yolo"],
    ["convert", MODEL, "--to", "official", "--output", "official.pth"],
    ["eval", "--data", DATA, "--model", MODEL, "--no-analysis"],
    ["predict", IMAGE, "--model", MODEL],
    ["explain", IMAGE, "--model", MODEL, "--data", DATA],
    ["train", "--model", "detr", *TRAINING],
    ["push", MODEL, "me/model", "--dry-run", "--license", "mit"],
    *(
        pytest.param(arguments, marks=pytest.mark.slow)
        for arguments in (
            ["compare", "--models", "detr", *TRAINING, "--output", f"out{EVIL}"],
            ["compare", "--output", "new", "--collect", f"out{EVIL}"],
            ["export", MODEL, "--images", f"{EVIL}/images"],
        )
    ),
]
BAD = [
    ["check", EVIL * 2],
    ["serve", f"{EVIL}.onnx"],
    ["train", "--data", EVIL * 2],
    ["benchmark", "--model", EVIL],
    ["ladder", "--recipe", f"{EVIL}.yaml"],
    ["ablate", "--model", EVIL, "--vary", f"{EVIL}=1"],
    [EVIL],
]


def said_by(arguments, monkeypatch, place, capfd):
    """The exit code, and what a verb wrote, which holds no control characters."""
    monkeypatch.chdir(place)
    code = main(arguments)
    text = "".join(capfd.readouterr())
    assert text
    for line in text.split("\n"):
        assert printable(line) == line
    return code, text


def named(arguments):
    return re.sub(r"[^\w.-]+", "_", " ".join(arguments))


@pytest.mark.parametrize("arguments", GOOD, ids=named)
def test_every_verb_escapes_what_files_hold(place, monkeypatch, capfd, arguments):
    code, text = said_by(arguments, monkeypatch, place, capfd)
    assert code == 0, text


@pytest.mark.parametrize("arguments", BAD, ids=named)
def test_every_error_escapes_what_was_given(place, monkeypatch, capfd, arguments):
    code, text = said_by(arguments, monkeypatch, place, capfd)
    assert code == 2
    assert "a\\x1b[2J" in text
