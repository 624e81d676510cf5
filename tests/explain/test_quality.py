"""Score against IoU: the points are the queries, and the words follow from them."""

import json

import numpy as np
import pytest
import torch
from scenes_explained import TARGET, explained
from scipy.stats import spearmanr

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.explain.quality import CHOSEN, FINAL, Quality, draw_quality, qualities, words


@pytest.mark.parametrize("preset", ["detr", "deformable-detr-two-stage", "rt-detr-r18", "d-fine-n"])
def test_every_query_is_a_point(preset):
    explanation = explained(preset, target=TARGET)
    found = qualities(explanation)
    # Two-stage Deformable DETR chooses by one logit for all classes.
    assert list(found) == [CHOSEN, FINAL] if "fine" in preset or "rt" in preset else [FINAL]
    answer = explanation.recording.layers[-1]
    corners = cxcywh_to_xyxy(answer.boxes[0])[:, None]
    ious = box_iou(corners, cxcywh_to_xyxy(TARGET.boxes))
    scores = explanation.scoring.probabilities(answer.logits[0])
    final = found[FINAL]
    torch.testing.assert_close(final.ious, ious.amax(1))
    torch.testing.assert_close(final.scores, scores[range(24), TARGET.labels[ious.argmax(1)]])
    pairs = explanation.criterion.matcher([answer], [TARGET]).sets[0][0]
    assert final.matched.nonzero()[:, 0].tolist() == sorted(pairs.queries.tolist())
    figure = draw_quality(explanation)
    for axes, quality in zip(figure.axes, found.values(), strict=True):
        points = np.concatenate([each.get_offsets() for each in axes.collections])
        expected = np.stack([quality.ious, quality.scores], axis=1)
        np.testing.assert_allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)])
        wanted = [line.get_xydata() for line in axes.lines]
        assert len(wanted) == (preset in ("rt-detr-r18", "d-fine-n"))  # VFL: the IoU itself
        assert all(np.allclose(line[:, 0], line[:, 1]) for line in wanted)


def test_the_target_of_mal_is_a_power_of_the_iou():
    (line,) = draw_quality(explained("deim-d-fine-n", target=TARGET)).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), line.get_xdata() ** 1.5)


def test_the_words_follow_the_rank_correlation(tmp_path):
    draw = torch.Generator().manual_seed(0)
    ious = torch.rand(50, generator=draw)
    near, none = ious >= 0.1, torch.zeros(50, dtype=torch.bool)
    for noise, expected in ((0.0, "rank boxes well"), (1.5, "roughly"), (9.0, "do not rank")):
        scores = ious**2 + noise * torch.rand(50, generator=draw)
        quality = Quality(scores, ious, none)
        wanted = spearmanr(scores[near], ious[near]).statistic
        assert quality.correlation == pytest.approx(wanted)
        assert expected in words(FINAL, quality)
        assert f"{wanted:.2f}, {near.sum()} queries" in words(FINAL, quality)
    far = Quality(ious, 0.05 * ious, none)
    assert far.correlation is None
    assert "too few" in words(FINAL, far)
    explanation = explained("deimv2-femto", target=TARGET)
    files = explanation.save(tmp_path, dpi=30)
    assert tmp_path / "queries-iou.png" in files
    numbers = json.loads(files[-1].read_text())["rank_correlations"]
    assert numbers[FINAL] == pytest.approx(qualities(explanation)[FINAL].correlation, abs=1e-4)


def test_without_objects_there_is_nothing_to_compare():
    assert qualities(explained("rt-detr-r18")) == {}
