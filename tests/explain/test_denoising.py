"""What is drawn of denoising queries is what the network was given and answered."""

import pytest
import torch
from scenes_explained import CLASSES, TARGET, explained

from detrlab.boxes import box_iou, cxcywh_to_xyxy
from detrlab.explain.denoising import draw_denoising


@pytest.mark.parametrize(("preset", "kinds"), [("dn-deformable-detr", 1), ("dino-4scale", 2)])
def test_given_and_restored_objects(tmp_path, preset, kinds):
    explanation = explained(preset, target=TARGET)
    restored = explanation.restored
    assert restored.labels.shape == (kinds, 2)
    assert restored.answers.shape == restored.boxes.shape == (kinds, 2, 4)
    assert restored.logits.shape == (kinds, 2, len(CLASSES))
    overlap = box_iou(cxcywh_to_xyxy(restored.boxes[0]), cxcywh_to_xyxy(TARGET.boxes))
    assert (overlap > 0.3).all()
    assert (overlap < 1).all()
    again = explained(preset, target=TARGET).restored
    assert all(torch.equal(a, b) for a, b in zip(restored, again, strict=True))
    figure = draw_denoising(explanation)
    words = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert CLASSES[restored.labels[0, 0]] in words
    score, label = explanation.scoring.probabilities(restored.logits[0, 1]).max(-1)
    assert f"{CLASSES[label]} {score:.2f}" in words
    assert tmp_path / "denoising.png" in explanation.save(tmp_path)


@pytest.mark.parametrize("preset", ["detr", "dab-deformable-detr"])
def test_other_detectors_restore_nothing(preset):
    assert explained(preset, target=TARGET).restored is None


def test_the_same_bits_with_and_without_objects():
    ours, plain = (explained("dino-4scale", target=each).recording for each in (TARGET, None))
    assert torch.equal(ours.layers[-1].logits, plain.layers[-1].logits)
