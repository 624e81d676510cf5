"""Initial values, as the originals' code sets them."""

import math

import pytest
import torch

from detrlab.models.attention import DeformableAttention, _MultiheadAttention
from detrlab.models.backbones.timm import build_backbone
from detrlab.models.heads import BoxHead
from detrlab.presets import PRESETS, build_network
from detrlab.structures import ImageBatch, Target
from tiny_detectors import tiny_config, tiny_resnet_d

pytestmark = pytest.mark.usefixtures("plain_ops")

DENSE = [preset for preset in PRESETS if preset.startswith("detr")]
DEFORMABLE = [preset for preset in PRESETS if preset not in DENSE]
POINTS = [each for each in PRESETS if each.startswith("deformable") and "stage" not in each]
REALTIME = [preset for preset in PRESETS if hasattr(tiny_config(preset), "expansion")]
PROPOSING = [preset for preset in DEFORMABLE if preset not in POINTS]
every_preset = pytest.mark.parametrize("preset", PRESETS)
SMALL = ["detr", "deformable-detr-two-stage", "dino-4scale"]


def built(preset, **changes):
    return build_network(tiny_config(preset, **{"width": 64, "num_heads": 8, **changes})).eval()


def predict(network):
    pixels = torch.randn(2, 3, 128, 160, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 128, 160, dtype=torch.bool)
    padding[1, 96:] = True
    target = Target(torch.zeros(1, dtype=torch.long), torch.full((1, 4), 0.5))
    with torch.no_grad():
        return network(ImageBatch(pixels * ~padding[:, None], padding), [target, target])


def of_kind(network, kind):
    return [module for module in network.modules() if isinstance(module, kind)]


def first_stage(network):
    """The proposals' part, also behind denoising queries."""
    return getattr(network.queries, "source", network.queries)


def assert_xavier(weight):
    """Uniform within the bound, and filling it."""
    bound = math.sqrt(6 / sum(weight.shape))
    assert bound * 0.9 < weight.abs().max() <= bound
    torch.testing.assert_close(weight.std(), torch.tensor(bound / math.sqrt(3)), rtol=0.1, atol=0)


def assert_standard_normal(values):
    assert abs(values.std().item() - 1) < 0.05
    assert abs(values.mean().item()) < 0.05


@pytest.mark.parametrize("preset", [*DEFORMABLE, "detr-sigmoid"])
def test_every_class_starts_at_one_percent(preset):
    network = built(preset)
    decoder = network.decoder
    heads = [each.classes for each in decoder.heads] if hasattr(decoder, "heads") else []
    heads += getattr(decoder, "classes", [])  # of a decoder of distributions
    heads += [first_stage(network).head.classes] if preset in PROPOSING else []
    assert heads
    for head in heads:
        torch.testing.assert_close(head.bias, torch.full_like(head.bias, -4.59512))
    assert 0.007 < predict(network).final.logits.sigmoid().mean().item() < 0.02


@pytest.mark.parametrize("preset", ["detr", "detr-dc5"])
def test_softmax_heads_keep_pytorchs_default(preset):
    bias = built(preset).decoder.heads[0].classes.bias
    assert len(bias) == 5 + 1
    assert 0 < bias.abs().max() <= 1 / math.sqrt(64)


@pytest.mark.parametrize("preset", POINTS)
def test_boxes_start_at_the_papers_size(preset):
    network = built(preset)
    for layer in predict(network).layers:
        sizes = layer.boxes[..., 2:]
        torch.testing.assert_close(sizes, torch.full_like(sizes, 0.1192), rtol=0, atol=1e-4)
    biases = [head.boxes.layers[-1].bias.tolist() for head in network.decoder.heads]
    assert biases[0] == [0, 0, -2, -2]
    assert all(bias == [0, 0, 0, 0] for bias in biases[1:])


@pytest.mark.parametrize("preset", PROPOSING)
def test_proposals_start_as_their_anchors(preset):
    network = built(preset)
    output = predict(network)
    finest = 0.05
    sides = {round(side, 5) for side in output.proposals.boxes[..., 2:].flatten().tolist()}
    assert sides <= {*(finest * 2**level for level in range(4)), 1.0}  # 1.0: no proposal can be
    assert len(sides) > 1 or preset in REALTIME  # they list the chosen proposals only
    # Deltas are zero, so that every layer repeats the proposals it was given.
    torch.testing.assert_close(output.layers[0].boxes, output.final.boxes, rtol=1e-5, atol=1e-6)
    for head in of_kind(network, BoxHead):
        assert not head.layers[-1].bias.any()
        assert not head.layers[-1].weight.any()


@pytest.mark.parametrize("preset", ["deformable-detr-refine", "deformable-detr-two-stage"])
def test_refining_heads_start_equal_but_independent(preset):
    heads = list(built(preset).decoder.heads)
    assert len(heads) == 3
    for head in heads[1:]:
        assert torch.equal(head.classes.weight, heads[0].classes.weight)
        assert torch.equal(head.boxes.layers[0].weight, heads[0].boxes.layers[0].weight)
        assert head.classes.weight is not heads[0].classes.weight


@pytest.mark.parametrize("preset", ["deformable-detr", "deformable-detr-single-scale", *SMALL[1:]])
def test_deformable_attention_and_pyramid(preset):
    network = built(preset)
    levels = len(network.encoder.neck.projections)
    compass = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    directions = torch.tensor(compass, dtype=torch.float32)[:, None, None]
    steps = torch.arange(1.0, 5)[:, None]
    wanted = (directions * steps).expand(8, levels, 4, 2)
    for attention in of_kind(network, DeformableAttention):
        offsets = attention.sampling_offsets.bias.view_as(wanted)
        torch.testing.assert_close(offsets, wanted, rtol=0, atol=1e-5)
        zeros = [attention.sampling_offsets.weight, *attention.attention_weights.parameters()]
        zeros += [attention.value_proj.bias, attention.output_proj.bias]
        assert not any(zero.any() for zero in zeros)
        assert_xavier(attention.value_proj.weight)
        assert_xavier(attention.output_proj.weight)
    assert abs(network.encoder.neck.position.level_embedding.std().item() - 1) < 0.3
    for convolution, norm in network.encoder.neck.projections:
        assert not convolution.bias.any()
        fan = sum(convolution.weight.shape[:2]) * convolution.weight[0, 0].numel()
        assert math.sqrt(6 / fan) * 0.9 < convolution.weight.abs().max() <= math.sqrt(6 / fan)
        assert (norm.eps, norm.num_groups) == (1e-5, 32)


@every_preset
def test_transformer(preset):
    network = built(preset)
    for attention in of_kind(network, _MultiheadAttention):
        assert_xavier(attention.in_proj_weight)  # packed: as one (3D, D) matrix
        assert not attention.in_proj_bias.any()
        assert not attention.out_proj.bias.any()
    for norm in of_kind(network, torch.nn.LayerNorm):
        assert norm.eps == 1e-5
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


@pytest.mark.parametrize("preset", [each for each in PRESETS if each not in REALTIME])
def test_layers_are_drawn_anew(preset):
    network = built(preset)
    for stack in (network.encoder.layers, network.decoder.layers):
        assert_xavier(stack[0].ffn.linear1.weight)
        # Copies of one layer whose matrices were drawn anew: biases are equal, weights not.
        assert stack[0].ffn.linear1.bias.any()
        assert torch.equal(stack[0].ffn.linear1.bias, stack[1].ffn.linear1.bias)
        assert not torch.equal(stack[0].ffn.linear1.weight, stack[1].ffn.linear1.weight)


def linear_start(weight):
    """PyTorch's own initial values of a linear layer or a 1x1 convolution."""
    bound = 1 / math.sqrt(weight[0].numel())
    return bound * 0.9 < weight.abs().max() <= bound


def test_real_time_layers_start_equal():
    for preset in ("rt-detr-r50", "rt-detr-v2-r50"):
        network = built(preset)
        first, *others = network.decoder.layers
        for other in others:
            for one, same in zip(first.parameters(), other.parameters(), strict=True):
                assert torch.equal(one, same)
        first_head, second_head, *_ = network.decoder.heads
        assert not torch.equal(first_head.classes.weight, second_head.classes.weight)
        for attention in of_kind(network, _MultiheadAttention):
            assert linear_start(attention.out_proj.weight)
        (within,) = network.encoder.within[0].layers[:1]
        assert linear_start(within.ffn.linear1.weight)
        assert_xavier(network.decoder.position.network.layers[0].weight)
        labels = network.queries.labels
        assert not labels[-1].any(), "what the original puts into empty places"
        assert labels[:-1].any(1).all()
        projection = network.encoder.outputs[0].conv.weight
        if preset == "rt-detr-r50":
            assert linear_start(first.ffn.linear1.weight)
            assert linear_start(projection)
        else:
            assert_xavier(first.ffn.linear1.weight)
            assert_xavier(projection.flatten(1))


def test_a_basic_resnet_starts_as_timms():
    name = tiny_resnet_d(basic=True)
    network = built("rt-detr-r18", backbone=name).backbone
    plain = build_backbone(
        name, stages=3, dilation=False, norms="trained", trains="all", pretrained=False
    ).eval()
    state = network.state_dict()
    shortcut = [each for each in state if each.startswith("body.layer1.0.downsample")]
    plain.load_state_dict({name: value for name, value in state.items() if name not in shortcut})
    assert len(shortcut) == 6
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for one, other in zip(network(pixels), plain(pixels), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_detrs_projection_keeps_pytorchs_default():
    ((convolution,),) = built("detr").encoder.neck.projections
    bound = 1 / math.sqrt(convolution.in_channels)
    assert 0 < convolution.bias.abs().max() <= bound
    assert convolution.weight.abs().max() <= bound


def test_queries():
    assert_standard_normal(built("detr", num_queries=300).queries.position)
    points = built("deformable-detr", num_queries=300).queries
    assert_standard_normal(points.embedding)
    assert_xavier(points.reference_points.weight)
    assert not points.reference_points.bias.any()
    proposals = built("deformable-detr-two-stage").queries
    assert_xavier(proposals.memory_proj.weight)
    assert_xavier(proposals.embedding_proj.weight)
    dino = built("dino-4scale", num_queries=300, num_classes=90)
    assert_standard_normal(dino.queries.labels)
    assert_xavier(first_stage(dino).content)
    assert_xavier(first_stage(dino).memory_proj.weight)
    assert_xavier(dino.decoder.position.linear1.weight)


def test_the_seed_decides_and_global_state_does_not():
    before = torch.get_rng_state()
    first, plain, other = (
        build_network(tiny_config(preset), seed=seed).state_dict()
        for preset, seed in (("dino-4scale", 3), ("deformable-detr", 3), ("dino-4scale", 4))
    )
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again = build_network(tiny_config("dino-4scale"), seed=3).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["queries.labels"], other["queries.labels"])
    shared = [name for name in plain if name.startswith("backbone.")]
    assert all(torch.equal(plain[name], first[name]) for name in shared)
