"""Recording changes nothing, and what is recorded is what happened."""

import pytest
import torch
from scenes_explained import PRESETS, make_image, make_network

from detrlab.explain.capture import record
from detrlab.structures import ImageBatch


def state_of(network):
    hooks = [
        hook
        for module in network.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]
    return hooks, [module.training for module in network.modules()]


@pytest.mark.parametrize("preset", PRESETS)
def test_recording_leaves_outputs_modes_and_hooks_as_they_were(preset):
    network, _ = make_network(preset)
    image = make_image()
    with torch.no_grad():
        before = network(image)
    network.train()
    network.backbone.eval()
    state = state_of(network)
    recording = record(network, image)
    assert state_of(network) == state
    for layer, recorded in zip(before.layers, recording.layers, strict=True):
        assert torch.equal(layer.logits, recorded.logits)
        assert torch.equal(layer.boxes, recorded.boxes)
        assert not recorded.boxes.requires_grad
    assert (recording.first_stage is not None) == (preset == "deformable-detr-two-stage")
    assert [call.attention for call in recording.encoder] == [
        layer.attention for layer in network.encoder.layers
    ]
    assert [call.attention for call in recording.decoder] == [
        layer.cross_attention for layer in network.decoder.layers
    ]
    # What is kept grows with S, never with S * S or Q * S.
    tokens, width = recording.memory.tokens.shape[1:]
    for call in (*recording.encoder, *recording.decoder):
        for part in (call.query, call.memory.tokens, call.memory.position):
            assert part.shape[2] == width
            assert part.shape[1] in (tokens, 24)


def test_a_failed_forward_leaves_modes_and_hooks_as_they_were():
    network, _ = make_network("detr")
    network.train()
    state = state_of(network)
    with pytest.raises(RuntimeError):
        record(network, ImageBatch(torch.zeros(1, 2, 96, 128), make_image().padding))
    assert state_of(network) == state
