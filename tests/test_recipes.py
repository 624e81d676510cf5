"""What recipes promise about themselves and about the published settings they go by."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from detrlab.checkpoints.published import published
from detrlab.cli import main
from detrlab.cli.settings import RecipeOptions
from detrlab.compare.entrants import changes
from detrlab.presets import FIVE, model_config
from detrlab.recipes import RECIPES, recipe

REPOSITORY = Path(__file__).resolve().parents[1]
CPPE5_IMAGES = 1000


def differences():
    """Setting -> how the improved recipe changes it."""
    old, new = recipe("cppe5"), recipe("cppe5-improved")
    lines = changes(old.train.to_dict(), new.train.to_dict())
    return dict(line.split(": ", 1) for line in lines)


def test_the_original_experiment_is_left_as_it_was():
    train = recipe("cppe5").train
    assert (train.epochs, train.batch, train.learning_rate) == (50, 16, 1e-4)
    assert (train.drop_epoch, train.weight_decay, train.weights) == (40, 1e-4, "imagenet")
    assert recipe("cppe5").train_each == {}
    assert recipe("cppe5").model == {}


def test_the_improved_one_changes_what_its_page_explains():
    old, new = recipe("cppe5"), recipe("cppe5-improved")
    assert new.data == old.data
    assert new.model == old.model
    page = (REPOSITORY / "docs" / "cppe5.md").read_text(encoding="utf-8")
    explained = {
        row[0]: f"{row[1]} -> {row[2]}"
        for row in re.findall(r"^\| `(\w+)` \| ([\w.e-]+) \| ([\w.e-]+)[ |]", page, re.MULTILINE)
    }
    assert explained == differences() | {"learning_rate": explained["learning_rate"]}
    told = {float(rate) for rate in explained["learning_rate"].split(" -> ")}
    assert told == {old.train.learning_rate, new.train_for("detr").learning_rate}


def test_epochs_on_the_command_line_move_the_drop_along():
    settled = RecipeOptions(recipe="cppe5", epochs=25).settled()
    assert (settled.train.epochs, settled.train.drop_epoch) == (25, 20)
    kept = RecipeOptions(recipe="cppe5", set=("train.epochs=25",)).settled()
    assert (kept.train.epochs, kept.train.drop_epoch) == (25, 40)
    told = RecipeOptions(recipe="cppe5", epochs=25, set=("train.drop_epoch=9",)).settled()
    assert (told.train.epochs, told.train.drop_epoch) == (25, 9)


def test_the_command_line_wins_over_what_a_recipe_says_of_one_detector():
    settled = RecipeOptions(recipe="paper", epochs=5, lr=3e-4, set=("train.batch=4",)).settled()
    detr, other = settled.train_for("detr"), settled.train_for("deformable-detr")
    assert (detr.epochs, detr.drop_epoch, detr.learning_rate, detr.batch) == (5, 4, 3e-4, 4)
    assert (other.epochs, other.drop_epoch, other.learning_rate, other.batch) == (5, 4, 3e-4, 4)
    assert (detr.micro_batch, other.micro_batch) == (4, 2)


@pytest.mark.parametrize("preset", FIVE)
def test_every_detector_can_start_from_coco(preset):
    assert published(preset, model_config(preset, 5).backbone).preset == preset


@pytest.mark.parametrize("preset", FIVE)
def test_rates_follow_the_originals_by_the_square_root_of_the_batch(preset):
    original = recipe("paper").train_for(preset)
    ours = recipe("cppe5-improved").train_for(preset)
    wanted = original.learning_rate * math.sqrt(ours.batch / original.batch)
    assert math.isclose(ours.learning_rate, wanted, rel_tol=0.02)
    assert ours.groups == original.groups


def test_the_warm_up_is_an_epoch():
    train = recipe("cppe5-improved").train
    assert train.warmup_steps == CPPE5_IMAGES // train.batch


def test_help_names_every_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert set(RECIPES) <= set(re.findall(r"[\w-]+", capsys.readouterr().out))


@pytest.mark.slow
def test_the_estimate_of_the_page_is_what_its_command_says(tmp_path):
    """Memory may differ a little from one version of torch to the next, arithmetic may not."""
    script = REPOSITORY / "benchmarks" / "cppe5_estimate.py"
    written = tmp_path / "estimate.md"
    subprocess.run([sys.executable, script, "--output", written], check=True, capture_output=True)
    committed = (REPOSITORY / "docs" / "results" / "cppe5-estimate.md").read_text(encoding="utf-8")
    ours, theirs = ([*map(cells, each.splitlines())] for each in (written.read_text(), committed))
    assert [row[:5] for row in ours] == [row[:5] for row in theirs]
    for mine, said in zip(ours[4:-1], theirs[4:-1], strict=True):
        assert [float(each) for each in mine[5:]] == pytest.approx(
            [float(each) for each in said[5:]], rel=0.25
        ), f"{said[0]}: python benchmarks/cppe5_estimate.py --output docs/results/cppe5-estimate.md"


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]
