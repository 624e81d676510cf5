"""``docs/adding-a-variant.md`` is followed to the letter, on a copy of the package."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from detrlab.errors import UserError
from detrlab.presets import model_config

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "adding-a-variant.md").read_text(encoding="utf-8")
NEW = "deformable-detr-anchors"
# What the page quotes -> where a contributor puts it.
FILES = {
    "tests/adding_a_variant/anchors.py": "src/detrlab/models/anchors.py",
    "tests/adding_a_variant/check_anchors.py": "tests/models/test_anchors.py",
}


def edits():
    """File -> the pairs (old lines, new lines) of the page's diff of it."""
    found = {}
    for block in re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        head, body = block.split("\n", 1)
        hunks = [hunk.splitlines(keepends=True) for hunk in body.split("@@\n")]
        found[head.removeprefix("--- ")] = [
            tuple("".join(line[1:] for line in hunk if line[0] in kept) for kept in (" -", " +"))
            for hunk in hunks
        ]
    return found


EDITS = edits()


def copy_of_the_house(folder, without=()):
    """The repository's code and tests with everything the page adds, but for some of it."""
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for part in ("src", "tests"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=leave)
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    for quoted, target in FILES.items():
        shutil.copy(REPOSITORY / quoted, folder / target)
    for name, hunks in EDITS.items():
        if name in without:
            continue
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in hunks:
            assert text.count(old) == 1, f"{name} has no such lines, or several:\n{old}"
            text = text.replace(old, new)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    return copy_of_the_house(tmp_path_factory.mktemp("house"))


def run(house, *arguments, **changes):
    """A Python process that works on the copy; returns what it wrote to both streams."""
    environment = {**os.environ, "PYTHONPATH": str(house / "src"), **changes}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=house, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def test_the_page_quotes_the_files_that_run():
    for quoted, target in FILES.items():
        text = (REPOSITORY / quoted).read_text(encoding="utf-8")
        assert f"<!-- file {quoted} -->\n```python\n{text}```\n<!-- end -->" in PAGE
        assert f"`{target}`" in PAGE
    assert PAGE.count("```python") == len(FILES)
    assert list(EDITS) == [
        "src/detrlab/config.py",
        "src/detrlab/models/build.py",
        "src/detrlab/models/init.py",
        "src/detrlab/presets.py",
    ]
    with pytest.raises(UserError, match="unknown model"):
        model_config(NEW, 3)  # or else the copy would prove nothing


FORGET = """
import sys
from detrlab.presets import model_config
import torch
from detrlab.presets import build_network
try:
    with torch.device("meta"):
        build_network(model_config(sys.argv[1], 3))
except Exception as error:
    print(type(error).__name__, error)
else:
    print("built")
"""


REFUSED = """
from detrlab.presets import model_config
try:
    model_config("detr", 3, queries="anchors")
except Exception as error:
    print(error)
"""


@pytest.mark.slow
def test_what_is_forgotten_is_named(tmp_path, house):
    said = dict(re.findall(r"^\| the (\w[\w ]*) \| `(.+?)`", PAGE, re.MULTILINE))
    forgotten = {
        "setting": "src/detrlab/config.py",
        "branch": "src/detrlab/models/build.py",
        "initial values": "src/detrlab/models/init.py",
        "row": "src/detrlab/presets.py",
    }
    assert said.keys() == forgotten.keys()
    for what, file in forgotten.items():
        copy = copy_of_the_house(tmp_path / what.replace(" ", "-"), without=[file])
        assert said[what] in run(copy, "-c", FORGET, NEW)
    assert run(house, "-c", FORGET, NEW).strip() == "built"
    assert "dense attention has no reference to look from" in run(house, "-c", REFUSED)


@pytest.mark.slow
def test_the_tests_of_all_presets_run_on_it(house):
    run(
        house,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "--junit-xml=tests.xml"),
        *("-k", f"{NEW} or models.anchors or test_anchors or every_preset or beside_their_rungs"),
        "tests/test_architecture.py",
        "tests/models",
        "tests/training/test_learning.py",
        "tests/checkpoints/test_native.py",
        "tests/checkpoints/test_reading.py",
        "tests/compare/test_entrants.py",
    )
    cases = ElementTree.parse(house / "tests.xml").getroot().iter("testcase")
    passed = {each.get("name") for each in cases if each.find("skipped") is None}
    assert {
        "test_boxes_start_as_the_anchors",
        "test_every_query_follows_its_own_anchor",
        "test_imports_point_one_way[models.anchors]",
        "test_packages_from_outside_stay_outside[models.anchors]",
        "test_the_ladder_has_its_variants_beside_their_rungs",
        "test_every_preset_recognises_itself",
        f"test_padding_does_not_reach_the_transformer[{NEW}]",
        f"test_queries_have_no_order[{NEW}]",
        f"test_the_images_of_a_batch_do_not_mix[{NEW}]",
        f"test_transformer[{NEW}]",
        f"test_what_was_saved_comes_back[{NEW}]",
        *(
            f"test_what_trains_gets_a_gradient_and_what_is_frozen_none[{trains}-{NEW}]"
            for trains in ("late", "all")
        ),
    } <= passed, passed


TRAINED = """
import json, sys
import torch
from PIL import Image
import detrlab
from detrlab.checkpoints import native
from detrlab.presets import build_network

path, picture = sys.argv[1:]
checkpoint = native.load(path)
start = build_network(checkpoint.config, seed=42).queries.boxes.detach()
Image.new("RGB", (200, 160), (90, 120, 60)).save(picture)
found = detrlab.load(path).predict(picture, threshold=0.0)
moved = (checkpoint.state["queries.boxes"] - start).abs()
print(json.dumps({
    "preset": checkpoint.config.preset,
    "moved": (moved > 1e-3).float().mean().item(),
    "found": len(found),
}))
"""


@pytest.mark.slow
def test_it_trains_and_comes_back(house):
    """The page's own command, the file it leaves, and what reads that file."""
    (command,) = re.findall(r"^detrlab (train .*)$", PAGE, re.MULTILINE)
    said = run(house, "-m", "detrlab", *command.split())
    before, after = map(float, re.search(r"took the loss from ([\d.]+) to ([\d.]+)", said).groups())
    assert after < before
    folder = house / "runs" / "anchors"
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert metrics["ap50"] > 0.01

    weights = str(folder / "weights" / "last.safetensors")
    told = run(house, "-c", TRAINED, weights, "picture.png").splitlines()[-1]
    trained = json.loads(told)
    assert trained["preset"] == NEW
    assert trained["moved"] > 0.9, "anchors learn"
    assert trained["found"] > 0

    verb = ("-m", "detrlab")
    run(house, *verb, "eval", "--data", "shapes", "--model", weights, "--output", "judged")
    again = json.loads((house / "judged" / "metrics.json").read_text())
    assert [again[name] for name in ("ap", "ap50", "ar100")] == [
        metrics[name] for name in ("ap", "ap50", "ar100")
    ]
    assert NEW in run(house, *verb, "models")
    run(house, *verb, "explain", "picture.png", "--model", weights, "--output", "explained")
    assert list((house / "explained").iterdir())
    with pytest.raises(AssertionError, match="original"):
        run(house, *verb, "convert", weights, "--to", "official")
