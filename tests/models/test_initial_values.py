"""Initial values, as the originals' code sets them."""

import math

import pytest
import torch

from detrlab.models.attention import DeformableAttention, _MultiheadAttention
from detrlab.presets import ORIGINALS, PRESETS, build_network
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")

DEFORMABLE = [preset for preset in ORIGINALS if preset.startswith("deformable")]
DENSE = [preset for preset in PRESETS if preset.startswith("detr")]


def built(preset, **changes):
    config = tiny_config(preset, **{"width": 64, "num_heads": 8, **changes})
    return build_network(config).eval(), config


def batch():
    pixels = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 128, 160, dtype=torch.bool)
    padding[1, 96:] = True
    padding[1, :, 128:] = True
    return ImageBatch(pixels * ~padding[:, None], padding)


def of_kind(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def assert_xavier(weight):
    """Uniform within the bound, and filling it."""
    bound = math.sqrt(6 / sum(weight.shape))
    assert bound * 0.9 < weight.abs().max() <= bound
    torch.testing.assert_close(weight.std(), torch.tensor(bound / math.sqrt(3)), rtol=0.1, atol=0)


@pytest.mark.parametrize("preset", [*DEFORMABLE, "detr-sigmoid"])
def test_every_class_starts_at_one_percent(preset):
    network, _ = built(preset)
    heads = [*network.decoder.heads, *([network.queries.head] if "two-stage" in preset else [])]
    for head in heads:
        torch.testing.assert_close(head.classes.bias, torch.full_like(head.classes.bias, -4.59512))
    with torch.no_grad():
        probability = network(batch()).final.logits.sigmoid().mean().item()
    assert 0.007 < probability < 0.016


@pytest.mark.parametrize("preset", ["detr", "detr-dc5"])
def test_softmax_heads_keep_pytorchs_default(preset):
    network, config = built(preset)
    bias = network.decoder.heads[0].classes.bias
    assert len(bias) == config.num_classes + 1
    assert 0 < bias.abs().max() <= 1 / math.sqrt(config.width)


@pytest.mark.parametrize("preset", [each for each in DEFORMABLE if "two-stage" not in each])
def test_boxes_start_at_the_papers_size(preset):
    network, _ = built(preset)
    with torch.no_grad():
        output = network(batch())
    for layer in output.layers:
        sizes = layer.boxes[..., 2:]
        torch.testing.assert_close(sizes, torch.full_like(sizes, 0.1192), rtol=0, atol=1e-4)
    biases = [head.boxes.layers[-1].bias.tolist() for head in network.decoder.heads]
    assert biases[0] == [0, 0, -2, -2]
    assert all(bias == [0, 0, 0, 0] for bias in biases[1:])


def test_proposals_start_as_their_anchors():
    network, _ = built("deformable-detr-two-stage")
    with torch.no_grad():
        output = network(batch())
    sizes = set()
    boxes = output.proposals.boxes
    for side in boxes[..., 2:].flatten().tolist():
        sizes.add(round(side, 5))
    assert sizes <= {0.05, 0.1, 0.2, 0.4, 1.0}  # 1.0: where no proposal can be
    assert {0.05, 0.1, 0.2} <= sizes
    # Deltas are zero, so that every layer repeats the proposals it was given.
    torch.testing.assert_close(output.layers[0].boxes, output.final.boxes, rtol=1e-5, atol=1e-6)
    heads = [*network.decoder.heads, network.queries.head]
    assert all(not head.boxes.layers[-1].bias.any() for head in heads)
    assert all(not head.boxes.layers[-1].weight.any() for head in heads)


@pytest.mark.parametrize("preset", ["deformable-detr-refine", "deformable-detr-two-stage"])
def test_refining_heads_start_equal_but_independent(preset):
    network, config = built(preset)
    heads = list(network.decoder.heads)
    assert len(heads) == config.decoder_layers
    for head in heads[1:]:
        assert torch.equal(head.classes.weight, heads[0].classes.weight)
        assert torch.equal(head.boxes.layers[0].weight, heads[0].boxes.layers[0].weight)
        assert head.classes.weight is not heads[0].classes.weight


@pytest.mark.parametrize("preset", DEFORMABLE)
def test_deformable_attention(preset):
    network, config = built(preset)
    for attention in of_kind(network, DeformableAttention):
        offsets = attention.sampling_offsets.bias.view(8, config.levels, config.points, 2)
        compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
        for head, direction in enumerate(compass):
            for point in range(config.points):
                wanted = torch.tensor(direction, dtype=torch.float32) * (point + 1)
                got = offsets[head, :, point]
                torch.testing.assert_close(got, wanted.expand_as(got), rtol=0, atol=1e-5)
        for zero in (
            attention.sampling_offsets.weight,
            attention.attention_weights.weight,
            attention.attention_weights.bias,
            attention.value_proj.bias,
            attention.output_proj.bias,
        ):
            assert not zero.any()
        assert_xavier(attention.value_proj.weight)
        assert_xavier(attention.output_proj.weight)


@pytest.mark.parametrize("preset", PRESETS)
def test_transformer(preset):
    network, _ = built(preset)
    for attention in of_kind(network, _MultiheadAttention):
        assert_xavier(attention.in_proj_weight)  # packed: as one (3D, D) matrix
        assert not attention.in_proj_bias.any()
        assert not attention.out_proj.bias.any()
    for stack in (network.encoder.layers, network.decoder.layers):
        assert_xavier(stack[0].ffn.linear1.weight)
        # Copies of one layer whose matrices were drawn anew: biases are equal, weights not.
        assert stack[0].ffn.linear1.bias.any()
        assert torch.equal(stack[0].ffn.linear1.bias, stack[1].ffn.linear1.bias)
        assert not torch.equal(stack[0].ffn.linear1.weight, stack[1].ffn.linear1.weight)


@pytest.mark.parametrize("preset", DEFORMABLE)
def test_pyramid(preset):
    network, config = built(preset)
    assert abs(network.encoder.neck.position.level_embedding.std().item() - 1) < 0.3
    for convolution, norm in network.encoder.neck.projections:
        assert not convolution.bias.any()
        fan = sum(convolution.weight.shape[:2]) * convolution.weight[0, 0].numel()
        bound = math.sqrt(6 / fan)
        assert bound * 0.9 < convolution.weight.abs().max() <= bound
        assert norm.eps == 1e-5
        assert norm.num_groups == 32
    assert len(network.encoder.neck.projections) == config.levels


@pytest.mark.parametrize("preset", DENSE)
def test_projection_keeps_pytorchs_default(preset):
    network, _ = built(preset)
    ((convolution,),) = network.encoder.neck.projections
    bound = 1 / math.sqrt(convolution.in_channels)
    assert 0 < convolution.bias.abs().max() <= bound
    assert convolution.weight.abs().max() <= bound


def test_queries():
    many = {"num_queries": 300}
    position = built("detr", **many)[0].queries.position
    points = built("deformable-detr", **many)[0].queries
    proposals = built("deformable-detr-two-stage")[0].queries
    for embedding in (position, points.embedding):
        assert abs(embedding.std().item() - 1) < 0.02
        assert abs(embedding.mean().item()) < 0.02
    assert_xavier(points.reference_points.weight)
    assert not points.reference_points.bias.any()
    assert_xavier(proposals.memory_proj.weight)
    assert_xavier(proposals.embedding_proj.weight)


def test_norms():
    for preset in PRESETS:
        for norm in of_kind(built(preset)[0], torch.nn.LayerNorm):
            assert norm.eps == 1e-5
            assert (norm.weight == 1).all()
            assert (norm.bias == 0).all()


def test_the_seed_decides_and_global_state_does_not():
    config = tiny_config("deformable-detr-two-stage")
    before = torch.get_rng_state()
    first = build_network(config, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = build_network(config, seed=3).state_dict()
    other = build_network(config, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["queries.memory_proj.weight"], other["queries.memory_proj.weight"])
    plain = build_network(tiny_config("deformable-detr"), seed=3).state_dict()
    shared = [name for name in plain if name.startswith("backbone.")]
    assert all(torch.equal(plain[name], first[name]) for name in shared)
