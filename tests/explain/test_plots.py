"""What is drawn is what was computed."""

import json
from itertools import product

import numpy as np
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image
from scenes_explained import PRESETS, TARGET, explained

from detrlab.errors import UserError
from detrlab.explain import plots
from detrlab.explain.query_use import QueryUse
from detrlab.figures import save_figure

SIZE = torch.tensor([96.0, 64.0])


def with_picture(preset, **options):
    picture = Image.effect_noise((96, 64), 60).convert("RGB")
    return explained(preset, picture=picture, target=TARGET, **options)


def scatters(axes):
    return [each for each in axes.collections if len(each.get_offsets())]


def rectangles(axes):
    return [
        (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height())
        for patch in axes.patches
        if isinstance(patch, Rectangle)
    ]


def in_pixels(box):
    x, y, w, h = box
    return ((x - w / 2) * 96, (y - h / 2) * 64, w * 96, h * 64)


@pytest.mark.parametrize("preset", ["deformable-detr", "deformable-detr-two-stage"])
def test_sampling_points_are_drawn_where_they_were_computed(preset):
    explanation = with_picture(preset)
    figure = plots.draw_decoder(explanation, [3, 9])
    for axes, (query, layer) in zip(figure.axes, product([3, 9], range(3)), strict=False):
        (points,) = scatters(axes)
        look = explanation.look(query, layer)
        drawn = np.column_stack([points.get_offsets(), points.get_array()])
        expected = look.locations.reshape(-1, 2) * SIZE
        computed = np.column_stack([expected, look.weights.reshape(-1)])
        np.testing.assert_allclose(
            drawn[np.lexsort(drawn.T)], computed[np.lexsort(computed.T)], rtol=1e-5
        )
    # The size of a point shows its level.
    (points,) = scatters(plots.draw_heads(explanation, 3, layer=1).axes[2])
    for level, locations in enumerate(explanation.look(3, 1).locations[2]):
        for xy in locations * SIZE:
            nearest = np.abs(points.get_offsets() - xy.numpy()).sum(1).argmin()
            assert points.get_sizes()[nearest] == plots.LEVEL_SIZES[level]


@pytest.mark.parametrize("head", [None, 2])
def test_an_attention_map_shows_the_row(head):
    explanation = with_picture("detr")
    (grid,) = explanation.look(5, 1).maps
    if head is None:
        axes, expected = plots.draw_decoder(explanation, [5]).axes[1], grid.mean(0)
    else:
        axes, expected = plots.draw_heads(explanation, 5, layer=1).axes[head], grid[head]
    drawn = np.asarray(axes.images[-1].get_array())
    # The opacity is the weight's square root: it can be read back.
    back = (drawn[..., 3] / 0.85) ** 2 * float(expected.max())
    np.testing.assert_allclose(back, expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_paths_end_in_the_detectors_boxes(preset):
    explanation = with_picture(preset)
    figure = plots.draw_paths(explanation, [2, 7])
    final = explanation.recording.layers[-1].boxes[0]
    for axes, query in zip(figure.axes, [2, 7], strict=True):
        expected = in_pixels(final[query].tolist())
        assert rectangles(axes)[-1] == pytest.approx(expected, rel=1e-5)
        score = float(explanation.paths.scores[-1, query].max())
        assert axes.texts[0].get_text().endswith(f" {score:.2f}")


def test_the_proposals_are_drawn_before_and_after():
    explanation = with_picture("deformable-detr-two-stage")
    figure = plots.draw_proposals(explanation, count=10)
    seen = explanation.proposals
    for axes, boxes in ((figure.axes[1], seen.anchors), (figure.axes[2], seen.boxes)):
        known = [box for box in boxes[:10].tolist() if not np.isnan(box).any()]
        expected = sorted(in_pixels(box) for box in known)
        assert np.allclose(sorted(rectangles(axes)), expected, rtol=1e-5)


def test_the_bars_are_the_costs():
    explanation = with_picture("deformable-detr")
    figure = plots.draw_objects(explanation, threshold=0.999)
    bars = [patch.get_width() for patch in figure.axes[1].patches]
    best = [e.best for e in explanation.verdicts(0.999) if e.reason != "found"]
    expected = [each[-3:] for each in sorted(best, key=lambda each: each.cost)]
    assert bars == pytest.approx(np.ravel(expected).tolist())


@pytest.mark.parametrize("preset", ["detr", "deformable-detr", "deformable-detr-two-stage"])
def test_everything_is_saved(preset, tmp_path):
    explanation = with_picture(preset, name=preset)
    files = explanation.save(tmp_path / "new" / "folder", dpi=30, queries=[1], points=[(0.2, 0.3)])
    names = {path.stem for path in files}
    assert {"detections", "decoder", "encoder", "paths", "query-1", "objects"} <= names
    assert ("proposals" in names) == ("two-stage" in preset)
    for path in files[:-1]:
        with Image.open(path) as picture:
            picture.verify()
    assert json.loads(files[-1].read_text())["model"] == preset
    assert {path.name for path in files[-1].parent.iterdir()} == {path.name for path in files}


def test_without_a_picture_or_annotations(tmp_path):
    files = explained("deformable-detr-refine").save(
        tmp_path, dpi=30, image_format="svg", queries=[0], points=[(0.0, 1.0)]
    )
    assert "objects" not in {path.stem for path in files}
    assert files[0].read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_format": "gif"}, "'gif'.* png"),
        ({"queries": [99]}, "no query 99"),
        ({"points": [(2.0, 0.5)]}, "2,0.5 lies outside"),
    ],
)
def test_mistakes_write_nothing(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        explained("detr").save(tmp_path / "a", **options)
    assert list(tmp_path.iterdir()) == []


def test_class_names_are_text_not_formulas(tmp_path):
    explanation = with_picture("deformable-detr")
    classes = ("$\\frac$", "<b>&", "a_b^c$")
    explanation = type(explanation)(**{**vars(explanation), "classes": classes})
    figures = plots.draw_all(explanation, queries=[1], points=[(0.5, 0.5)], threshold=0.0)
    for figure in figures.values():
        assert save_figure(figure, tmp_path / "a.png", dpi=30).is_file()


def test_query_use_is_drawn_box_by_box():
    boxes = torch.rand(30, 6, 4, generator=torch.Generator().manual_seed(0))
    figure = plots.draw_query_use(QueryUse(boxes, torch.rand(30, 6)), [4, 1])
    (points,) = scatters(figure.axes[0])
    np.testing.assert_allclose(
        np.sort(points.get_offsets(), axis=0), np.sort(boxes[:, 4, :2], axis=0), rtol=1e-6
    )
