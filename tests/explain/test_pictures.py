"""What is drawn is what was computed."""

import json

import numpy as np
import pytest
import torch
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from PIL import Image
from scenes_explained import PRESETS, TARGET, explained

from detrlab.errors import UserError
from detrlab.explain import pictures
from detrlab.explain.queries import QueryUse


def with_picture(preset, **options):
    picture = Image.effect_noise((96, 64), 60).convert("RGB")
    return explained(preset, picture=picture, target=TARGET, size=(64, 96), **options)


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
def test_sampling_points_stand_where_they_were_computed(preset):
    explanation = with_picture(preset)
    figure = pictures.draw_decoder(explanation, [3, 9])
    for row, query in enumerate([3, 9]):
        for layer in range(3):
            axes = figure.axes[3 * row + layer]
            (points,) = scatters(axes)
            look = explanation.look(query, layer)
            expected = look.locations[0].reshape(-1, 2) * torch.tensor([96.0, 64.0])
            weights = look.weights[0].reshape(-1)
            drawn = np.column_stack([points.get_offsets(), points.get_array()])
            computed = np.column_stack([expected, weights])
            np.testing.assert_allclose(
                drawn[np.lexsort(drawn.T)], computed[np.lexsort(computed.T)], rtol=1e-5
            )
            assert isinstance(points.norm, PowerNorm)


def test_the_size_of_a_point_says_its_level():
    explanation = with_picture("deformable-detr")
    figure = pictures.draw_heads(explanation, 3, layer=1)
    (points,) = scatters(figure.axes[2])
    look = explanation.look(3, 1)
    for level in range(4):
        for xy in look.locations[0, 2, level] * torch.tensor([96.0, 64.0]):
            nearest = np.abs(points.get_offsets() - xy.numpy()).sum(1).argmin()
            assert points.get_sizes()[nearest] == pictures.LEVEL_SIZES[level]


@pytest.mark.parametrize("head", [None, 2])
def test_an_attention_map_shows_the_row(head):
    explanation = with_picture("detr")
    if head is None:
        axes, look = pictures.draw_decoder(explanation, [5]).axes[1], explanation.look(5, 1)
        expected = look.maps[0].mean(0)
    else:
        axes, look = pictures.draw_heads(explanation, 5, layer=1).axes[head], explanation.look(5, 1)
        expected = look.maps[0][head]
    drawn = axes.images[-1].get_array()
    assert drawn.shape[:2] == tuple(expected.shape)
    # The opacity is the weight's square root: it can be read back.
    back = (np.asarray(drawn)[..., 3] / 0.85) ** 2 * float(expected.max())
    np.testing.assert_allclose(back, expected.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_paths_end_in_the_detectors_boxes(preset):
    explanation = with_picture(preset)
    figure = pictures.draw_paths(explanation, [2, 7])
    final = explanation.recording.output.final.boxes[1]
    for column, query in enumerate([2, 7]):
        drawn = rectangles(figure.axes[column])
        assert drawn[-1] == pytest.approx(in_pixels(final[query].tolist()), rel=1e-5)
        curve = figure.axes[2 + column].lines[0].get_ydata()
        label = int(explanation.paths.scores[-1, query].argmax())
        assert curve == pytest.approx(explanation.paths.scores[:, query, label].tolist())


def test_the_proposals_are_drawn_before_and_after():
    explanation = with_picture("deformable-detr-two-stage")
    figure = pictures.draw_proposals(explanation, count=10)
    seen = explanation.proposals
    for axes, boxes in ((figure.axes[1], seen.anchors), (figure.axes[2], seen.boxes)):
        known = [box for box in boxes[:10].tolist() if not np.isnan(box).any()]
        expected = sorted(in_pixels(box) for box in known)
        assert np.allclose(sorted(rectangles(axes)), expected, rtol=1e-5)


def test_the_bars_are_the_costs():
    explanation = with_picture("deformable-detr")
    figure = pictures.draw_objects(explanation, threshold=0.999)
    bars = [patch.get_width() for patch in figure.axes[1].patches if patch.get_height() > 0.2]
    missed = [each for each in explanation.verdicts(0.999) if each.reason != "found"]
    missed.sort(key=lambda each: each.final.best.cost)
    expected = [
        term
        for each in missed
        for term in (
            each.final.best.cost_classes,
            each.final.best.cost_boxes,
            each.final.best.cost_giou,
        )
    ]
    assert bars == pytest.approx(expected)


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
    values = json.loads(files[-1].read_text())
    assert values["model"] == preset
    assert {path.name for path in files[-1].parent.iterdir()} == {path.name for path in files}


def test_without_a_picture_or_annotations(tmp_path):
    files = explained("deformable-detr-refine").save(
        tmp_path, dpi=30, image_format="svg", queries=[0], points=[(0.0, 1.0)]
    )
    assert "objects" not in {path.stem for path in files}
    assert files[0].read_text().startswith("<?xml")


def test_mistakes_write_nothing(tmp_path):
    explanation = explained("detr")
    with pytest.raises(UserError, match="unknown picture format 'gif'"):
        explanation.save(tmp_path / "a", image_format="gif")
    with pytest.raises(UserError, match="no query 99"):
        explanation.save(tmp_path / "b", queries=[99])
    with pytest.raises(UserError, match="lies outside the image"):
        explanation.save(tmp_path / "c", points=[(2.0, 0.5)])
    assert list(tmp_path.iterdir()) == []


def test_class_names_are_text_not_formulas(tmp_path):
    explanation = with_picture("deformable-detr")
    explanation = type(explanation)(
        **{**vars(explanation), "classes": ("$\\frac$", "<b>&", "a_b^c$")}
    )
    figure = pictures.draw_detections(explanation, threshold=0.0)
    assert pictures.write(figure, tmp_path / "detections.png", dpi=30).is_file()
    texts = {text.get_text().split(" 0.")[0] for text in figure.axes[0].texts}
    assert texts <= set(explanation.classes)


def test_query_use_is_drawn_box_by_box():
    generator = torch.Generator().manual_seed(0)
    use = QueryUse(torch.rand(30, 6, 4, generator=generator), torch.rand(30, 6), torch.zeros(30, 6))
    figure = pictures.draw_query_use(use, [4, 1])
    (points,) = scatters(figure.axes[0])
    np.testing.assert_allclose(
        np.sort(points.get_offsets(), axis=0), np.sort(use.boxes[:, 4, :2], axis=0), rtol=1e-6
    )
