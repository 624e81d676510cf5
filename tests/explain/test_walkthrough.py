"""The guided tour says what is true: shapes, links, and a notebook that runs."""

import importlib.util
import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch

from detrlab.config import Recipe
from detrlab.data.transforms import resized_size
from detrlab.explain.capture import record
from detrlab.presets import FIVE, build_network, model_config
from detrlab.structures import ImageBatch

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
DRAWN = tuple(preset for preset in FIVE if preset != "detr-dc5")
PAGES = ("walkthrough.md", "walkthrough.zh-CN.md", "variants.md")


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES)
def test_linked_names_are_defined_where_the_links_lead(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, path in re.findall(r"\[`([\w.]+)`\]\(([\w./-]+\.py)\)", text):
        if name.endswith(".py"):
            continue
        code = (DOCS / path).read_text(encoding="utf-8")
        last = name.split(".")[-1]
        assert re.search(rf"(?:def|class) {last}\b|^{last}\b", code, re.MULTILINE), (
            f"{path}: {name}"
        )


@pytest.fixture(scope="module")
def shapes():
    """Rows of the tables of sections 2 and 3, and S, by the recipe that the page names."""
    recipe = Recipe.load(DOCS / "results/facemask-laptop/recipe.yaml")
    sizes = recipe.data
    height, width = resized_size(217, 400, sizes.image_size, sizes.max_size)
    pixels = torch.zeros(1, 3, height, width)
    images = ImageBatch(pixels, torch.zeros(1, height, width, dtype=torch.bool))
    maps, levels, tokens = [], [], []
    for preset in FIVE[:3]:
        config = model_config(preset, 3, **recipe.model)
        network = build_network(config).eval()
        with torch.no_grad():
            features = network.backbone(pixels)
        names = ["C3", "C4", "C5"][-len(features) :]
        shapes = [" × ".join(map(str, each.shape[1:])) for each in features]
        maps.append(", ".join(f"{n}: {s}" for n, s in zip(names, shapes, strict=True)))
        memory = record(network, images).memory
        levels.append(", ".join(f"{h} × {w}" for h, w in memory.level_shapes))
        tokens.append(memory.tokens.shape[1])
    return f"**{height} × {width}**", maps, levels, tokens


@pytest.mark.parametrize("page", PAGES[:2])
def test_the_shapes_are_right(page, shapes):
    text = (DOCS / page).read_text(encoding="utf-8")
    size, maps, levels, tokens = shapes
    assert size in text
    assert f"| {' | '.join(maps)} |" in text
    assert f"| {' | '.join(levels)} |" in text
    assert f"| {' | '.join(map(str, tokens))} |" in text
    detr, dc5, deformable = tokens
    assert f"{detr}² = {detr**2:,} | {dc5}² = {dc5**2:,}" in text
    assert f"{deformable} · 16 = {deformable * 16:,} | {deformable}² = {deformable**2:,}" in text
    assert all(f"{number:,}" in text for number in (850**2, 3350**2, 17821 * 16, 17821**2))


@pytest.mark.slow
def test_the_pictures_are_drawn_by_one_command(tmp_path, monkeypatch, capsys):
    from compare_cases import write_data
    from detrlab.checkpoints import native
    from detrlab.config import DataConfig
    from tiny_detectors import tiny_config

    data = write_data(tmp_path / "data", train=1, val=2)
    for preset in DRAWN:
        config = tiny_config(preset, num_classes=2)
        path = tmp_path / "runs" / preset / "weights" / "last.safetensors"
        path.parent.mkdir(parents=True)
        sizes = DataConfig(image_size=64, max_size=64)
        native.save(path, build_network(config), config, ("box", "disc"), (3, 5), sizes)
    make_pictures = script("make_pictures")
    photo = data / "val" / "101.png"
    command = ["make_pictures.py", str(tmp_path / "runs"), "--photo", str(photo), "--data"]
    monkeypatch.setattr(
        sys, "argv", [*command, str(data), "--statistics", "--output", str(tmp_path / "drawn")]
    )
    assert make_pictures.main() == 0
    drawn = {path.stem for path in (tmp_path / "drawn").iterdir()}
    # Whatever the pages show can be drawn again.
    kept = {path.stem for path in (DOCS / "pictures").iterdir() if path.stem.startswith(FIVE)}
    assert drawn == make_pictures.shown() == kept
    told = json.loads(capsys.readouterr().out)
    assert list(told) == list(DRAWN)
    assert all(len(each["layer_ap"]) == 3 for each in told.values())
    monkeypatch.setattr(sys, "argv", [*command[:3], "nowhere.png", "--data", str(data)])
    assert make_pictures.main() == 2
    assert "nowhere.png" in capsys.readouterr().err


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """On checkpoints that lie where the demo leaves them; nothing is displayed here."""
    from detrlab.checkpoints import native
    from detrlab.config import DataConfig
    from tiny_detectors import tiny_config

    for preset in ("detr", "deformable-detr-two-stage"):
        config = tiny_config(preset, num_classes=6)
        path = tmp_path / "runs" / f"{preset}-seed1-abc" / "weights" / "last.safetensors"
        path.parent.mkdir(parents=True)
        classes = ("disc", "ring", "square", "triangle", "cross", "star")
        data = DataConfig(image_size=64, max_size=64)
        native.save(path, build_network(config), config, classes, tuple(range(1, 7)), data)
    shown = []
    display = types.SimpleNamespace(display=shown.append, Image=bytes)
    monkeypatch.setitem(
        sys.modules, "IPython", types.SimpleNamespace(display=display, version_info=(9, 0))
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("DETRLAB_DEMO", str(tmp_path))
    notebook = json.loads((REPOSITORY / "examples" / "walkthrough.ipynb").read_text("utf-8"))
    names = {}
    for cell in notebook["cells"]:
        assert not cell.get("outputs")
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert len(shown) == 6
    assert all(picture.startswith(b"\x89PNG") for picture in shown)
    assert list(names["explained"]) == ["detr", "deformable-detr-two-stage"]
