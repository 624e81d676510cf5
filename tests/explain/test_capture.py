"""Catching what passes between the parts changes nothing, and what is caught is what happened."""

import pytest
import torch
from scenes_explained import PRESETS, make_images, make_network

from detrlab.explain.capture import record


def hooks_of(network):
    return [
        hook
        for module in network.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        for hook in hooks.values()
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_same_bits_come_out_with_and_without(preset):
    network, _ = make_network(preset)
    images = make_images()
    with torch.no_grad():
        before = network(images)
    recording = record(network, images)
    with torch.no_grad():
        after = network(images)
    for a, b, c in zip(before.layers, recording.output.layers, after.layers, strict=True):
        for x, y, z in zip(a, b, c, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(x, z)
    if before.proposals is not None:
        assert torch.equal(before.proposals.logits, recording.output.proposals.logits)


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_left_behind(preset):
    network, _ = make_network(preset)
    network.train()
    network.backbone.eval()
    modes = [module.training for module in network.modules()]
    recording = record(network, make_images())
    assert hooks_of(network) == []
    assert [module.training for module in network.modules()] == modes
    assert not recording.output.final.boxes.requires_grad


def test_nothing_is_left_behind_by_a_failure():
    network, _ = make_network("detr")
    network.train()
    images = make_images()
    with pytest.raises(RuntimeError):
        record(network, images._replace(pixels=images.pixels[:, :2]))
    assert hooks_of(network) == []
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_layer_is_caught_in_order(preset):
    network, _ = make_network(preset)
    recording = record(network, make_images())
    assert [call.attention for call in recording.encoder] == [
        layer.attention for layer in network.encoder.layers
    ]
    assert [call.attention for call in recording.decoder] == [
        layer.cross_attention for layer in network.decoder.layers
    ]
    assert [call.attention for call in recording.among_queries] == [
        layer.self_attention for layer in network.decoder.layers
    ]
    assert len(recording.output.layers) == len(recording.decoder)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_attention_matrix_is_kept(preset):
    """What is kept grows with S, never with S * S or Q * S."""
    network, _ = make_network(preset)
    recording = record(network, make_images())
    tokens, width = recording.memory.tokens.shape[1:]
    kept = [
        part
        for call in (*recording.encoder, *recording.decoder)
        for part in (call.query, call.memory.tokens, call.memory.position)
    ]
    kept += [part for call in recording.among_queries for part in (call.content, call.position)]
    assert all(part.dim() == 3 and part.shape[2] == width for part in kept)
    assert max(part.shape[1] for part in kept) <= max(tokens, 24)
