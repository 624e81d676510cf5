"""What must not matter to a detector does not: padding, the order of queries, few cells."""

import pytest
import torch

from detrlab.models.encoders.transformer import resize_padding, valid_ratio
from detrlab.presets import PRESETS, build_network
from detrlab.structures import ImageBatch, Memory
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")

STRIDES = (8, 16, 32, 64)


def strong(network, seed=0):
    """Random values everywhere: many initial values are zero and would hide mistakes."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in network.named_parameters():
            noise = torch.randn(each.shape, generator=draw)
            each += noise if "sampling_offsets.bias" in name else 0.15 * noise
    return network.eval()


def built(preset, **changes):
    config = tiny_config(preset, **changes)
    return strong(build_network(config)), config


def memory_of(network, config, sizes, padded, garbage):
    """A memory of fixed features, with rows and columns of garbage added.

    Args:
        sizes: (height, width) of the unpadded image.
        padded: of the padded one.
        garbage: what the padded cells hold.
    """
    levels = config.levels
    strides = STRIDES[:levels] if levels > 1 else (32,)
    padding = torch.ones(1, *padded, dtype=torch.bool)
    padding[:, : sizes[0], : sizes[1]] = False
    tokens, paddings = [], []
    for level, stride in enumerate(strides):
        draw = torch.Generator().manual_seed(100 + level)
        h, w = sizes[0] // stride, sizes[1] // stride
        features = torch.full((1, config.width, padded[0] // stride, padded[1] // stride), garbage)
        features[:, :, :h, :w] = torch.randn(1, config.width, h, w, generator=draw)
        tokens.append(features)
        paddings.append(resize_padding(padding, features.shape[-2:]))
    position = network.encoder.neck.position(paddings, torch.float32)
    return Memory(
        tokens=torch.cat([each.flatten(2).transpose(1, 2) for each in tokens], 1),
        position=torch.cat(position, 1),
        padding=torch.cat([each.flatten(1) for each in paddings], 1),
        level_shapes=tuple(tuple(each.shape[-2:]) for each in tokens),
        valid_ratios=torch.stack([valid_ratio(each, torch.float32) for each in paddings], 1),
    )


@torch.no_grad()
def transform(network, memory):
    memory = network.encoder(memory)
    queries, proposals = network.queries(memory)
    return network.decoder(queries, memory), proposals, memory


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_does_not_reach_the_transformer(preset):
    network, config = built(preset, num_queries=12)
    sizes = (192, 256)
    plain, _, _ = transform(network, memory_of(network, config, sizes, sizes, 0.0))
    padded, _, _ = transform(network, memory_of(network, config, sizes, (320, 448), 37.0))
    for ours, theirs in zip(plain, padded, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-5)


def test_the_padding_test_can_fail():
    network, config = built("deformable-detr", num_queries=12)
    sizes = (192, 256)
    plain, _, _ = transform(network, memory_of(network, config, sizes, sizes, 0.0))
    memory = memory_of(network, config, sizes, (320, 448), 37.0)
    seen = memory._replace(padding=torch.zeros_like(memory.padding))
    padded, _, _ = transform(network, seen)
    assert (plain[-1].logits - padded[-1].logits).abs().max() > 0.01


@pytest.mark.parametrize("preset", [each for each in PRESETS if "two-stage" not in each])
def test_queries_have_no_order(preset):
    network, config = built(preset)
    memory = memory_of(network, config, (128, 192), (128, 192), 0.0)
    before, _, _ = transform(network, memory)
    order = torch.randperm(config.num_queries, generator=torch.Generator().manual_seed(2))
    tables = [each for each in network.queries.parameters() if len(each) == config.num_queries]
    assert tables
    with torch.no_grad():
        for table in tables:
            table.copy_(table[order].clone())
    after, _, _ = transform(network, memory)
    for ours, theirs in zip(before, after, strict=True):
        torch.testing.assert_close(ours.logits[:, order], theirs.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.boxes[:, order], theirs.boxes, rtol=1e-4, atol=1e-5)


def test_fewer_cells_than_queries():
    network, config = built("deformable-detr-two-stage", num_queries=300)
    layers, proposals, memory = transform(
        network, memory_of(network, config, (64, 64), (64, 64), 0.0)
    )
    cells = sum(h * w for h, w in memory.level_shapes)
    assert cells == 64 + 16 + 4 + 1 < 300
    assert proposals.logits.shape == (1, cells, 5)
    assert layers[-1].logits.shape == (1, cells, 5)
    for layer in (*layers, proposals):
        assert torch.isfinite(layer.logits).all()
        assert torch.isfinite(layer.boxes).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_the_images_of_a_batch_do_not_mix(preset):
    network, _ = built(preset, num_queries=12)
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randn(3, 3, 96, 128, generator=draw)
    padding = torch.zeros(3, 96, 128, dtype=torch.bool)
    padding[2, 64:] = True
    with torch.no_grad():
        together = network(ImageBatch(pixels, padding)).final
        alone = network(ImageBatch(pixels[2:], padding[2:])).final
    torch.testing.assert_close(together.logits[2:], alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together.boxes[2:], alone.boxes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("points", [1, 3])
def test_other_numbers_of_points_and_levels(points):
    for levels in (1, 2, 5):
        network, _ = built("deformable-detr-refine", points=points, levels=levels)
        with torch.no_grad():
            output = network(
                ImageBatch(torch.randn(1, 3, 128, 128), torch.zeros(1, 128, 128, dtype=torch.bool))
            )
        assert output.final.boxes.shape == (1, 24, 4)
        assert torch.isfinite(output.final.boxes).all()
        assert len(network.encoder.neck.projections) == levels
