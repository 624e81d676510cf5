"""Boxes from layer to layer, and the proposals that two-stage queries come from."""

import pytest
import torch
from scenes_explained import PRESETS, explained, make_image, make_network

from detrlab.boxes import inverse_sigmoid
from detrlab.explain.capture import record
from detrlab.explain.looks import paths


@pytest.mark.parametrize("preset", PRESETS)
def test_paths_end_in_the_output_and_start_where_the_preset_says(preset):
    explanation = explained(preset)
    path, final = explanation.paths, explanation.recording.layers[-1]
    assert torch.equal(path.boxes[-1], final.boxes[0])
    dense = preset.startswith("detr")
    scores = final.logits[0].softmax(-1)[:, :-1] if dense else final.logits[0].sigmoid()
    torch.testing.assert_close(path.scores[-1], scores)
    assert (explanation.proposals is not None) == (preset == "deformable-detr-two-stage")
    if dense:
        assert path.references == (None, None, None)
        return
    first, *later = path.references
    assert (first.sizes is not None) == ("two-stage" in preset)
    for layer, references in enumerate(later):
        if "refine" in preset or "two-stage" in preset:
            assert torch.equal(torch.cat(references, dim=-1), path.boxes[layer])
        else:
            assert references.sizes is None
            assert torch.equal(references.centers, first.centers)


def test_boxes_are_the_reference_moved_by_the_head():
    """With refinement, a box is its reference plus the head's output, in logit space."""
    network, criterion = make_network("deformable-detr-refine")
    heard = []
    handle = network.decoder.heads[2].register_forward_hook(lambda *call: heard.append(call[2]))
    path = paths(record(network, make_image()), criterion.scoring)
    handle.remove()
    moved = (heard[0][1][0] + inverse_sigmoid(path.boxes[1])).sigmoid()
    torch.testing.assert_close(path.boxes[2], moved)


def test_the_proposals_are_the_decoders_first_references():
    explanation = explained("deformable-detr-two-stage")
    seen = explanation.proposals
    centers, sizes = explanation.recording.queries.references
    torch.testing.assert_close(seen.boxes, torch.cat([centers, sizes], -1)[0])
    assert seen.objectness.tolist() == sorted(seen.of_all_cells.tolist(), reverse=True)[:24]
    assert torch.equal(seen.of_all_cells[seen.cells], seen.objectness)


def test_anchors_start_where_their_cell_lies():
    """By hand for 128 x 96 pixels, strides 8 to 64."""
    explanation = explained("deformable-detr-two-stage")
    seen, shapes = explanation.proposals, explanation.recording.memory.level_shapes
    assert shapes == ((12, 16), (6, 8), (3, 4), (2, 2))
    starts = [0, 12 * 16, 12 * 16 + 6 * 8, 12 * 16 + 6 * 8 + 3 * 4]
    checked = 0
    for cell, level, anchor in zip(seen.cells, seen.levels, seen.anchors, strict=True):
        if anchor.isnan().any():
            continue
        rows, columns = shapes[level]
        row, column = divmod(int(cell) - starts[level], columns)
        expected = [(column + 0.5) / columns, (row + 0.5) / rows, *[0.05 * 2 ** int(level)] * 2]
        torch.testing.assert_close(anchor, torch.tensor(expected))
        checked += 1
    assert checked >= 10
