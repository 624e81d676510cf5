"""Boxes from layer to layer, and the proposals that two-stage queries come from."""

import pytest
import torch
from scenes_explained import PRESETS, explained, make_images, make_network

from detrlab.boxes import inverse_sigmoid
from detrlab.explain.capture import record
from detrlab.explain.references import paths, proposals


@pytest.mark.parametrize("preset", PRESETS)
def test_the_last_layers_boxes_are_the_detectors_output(preset):
    network, scoring = make_network(preset)
    images = make_images()
    with torch.no_grad():
        final = network(images).final
    path = paths(record(network, images), scoring, 1)
    assert torch.equal(path.boxes[-1], final.boxes[1])
    probabilities = (
        final.logits[1].softmax(-1)[:, :-1]
        if "deformable" not in preset
        else (final.logits[1].sigmoid())
    )
    torch.testing.assert_close(path.scores[-1], probabilities)


@pytest.mark.parametrize("preset", PRESETS)
def test_references_are_what_the_preset_says(preset):
    path = explained(preset).paths
    if preset.startswith("detr"):
        assert path.references == (None, None, None)
        return
    first = path.references[0]
    assert (first.sizes is not None) == ("two-stage" in preset)
    for layer in (1, 2):
        later = path.references[layer]
        if "refine" in preset or "two-stage" in preset:
            assert torch.equal(torch.cat(later, dim=-1), path.boxes[layer - 1])
        else:
            assert later.sizes is None
            assert torch.equal(later.centers, first.centers)


def test_boxes_are_the_reference_moved_by_the_head():
    """With refinement, a box is its reference plus the head's answer, in logit space."""
    network, scoring = make_network("deformable-detr-refine")
    caught = {}
    handles = [
        head.register_forward_hook(lambda m, _, out: caught.__setitem__(m, out))
        for head in network.decoder.heads
    ]
    path = paths(record(network, make_images()), scoring, 1)
    for handle in handles:
        handle.remove()
    deltas = caught[network.decoder.heads[2]][1][1]
    moved = (deltas + inverse_sigmoid(path.boxes[1])).sigmoid()
    torch.testing.assert_close(path.boxes[2], moved)


def test_only_two_stage_has_proposals():
    for preset in PRESETS:
        assert (explained(preset).proposals is not None) == (preset == "deformable-detr-two-stage")


@pytest.mark.parametrize("image", [0, 1])
def test_the_proposals_are_the_decoders_first_references(image):
    network, _ = make_network("deformable-detr-two-stage")
    recording = record(network, make_images())
    seen = proposals(recording, image)
    centers, sizes = recording.queries.references
    torch.testing.assert_close(seen.boxes, torch.cat([centers, sizes], -1)[image])
    assert seen.objectness.tolist() == sorted(seen.of_all_cells.tolist(), reverse=True)[:24]
    assert torch.equal(seen.of_all_cells[seen.cells], seen.objectness)


def test_anchors_start_where_their_cell_lies():
    """By hand for image 1: 96 x 64 of 128 x 96 pixels, strides 8 to 64."""
    network, _ = make_network("deformable-detr-two-stage")
    recording = record(network, make_images())
    seen = proposals(recording, 1)
    shapes = recording.memory.level_shapes
    starts = [0, 12 * 16, 12 * 16 + 6 * 8, 12 * 16 + 6 * 8 + 3 * 4]
    assert shapes[:3] == ((12, 16), (6, 8), (3, 4))
    checked = 0
    for cell, level, anchor in zip(seen.cells, seen.levels, seen.anchors, strict=True):
        if anchor.isnan().any():
            continue
        row, column = divmod(int(cell) - starts[level], shapes[level][1])
        valid_rows, valid_columns = ((8, 12), (4, 6), (2, 3), (2, 2))[level]
        expected = [(column + 0.5) / valid_columns, (row + 0.5) / valid_rows]
        expected += [0.05 * 2 ** int(level)] * 2
        torch.testing.assert_close(anchor, torch.tensor(expected))
        checked += 1
    assert checked >= 10
