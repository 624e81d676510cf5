import numpy as np
import pytest
from torch import nn

from compare_cases import SMALL
from detrlab.benchmark import cost
from detrlab.config import DataConfig
from detrlab.data.shapes import shapes
from detrlab.models.attention import DeformableAttention, DenseAttention, SelfAttention
from detrlab.presets import FIVE, build_network, model_config


def counted_by_hand(network, size):
    """Multiply-adds from the shapes that go through each module."""

    def convolution(module, _, output):
        return output.numel() * module.in_channels // module.groups * np.prod(module.kernel_size)

    def linear(module, _, output):
        return output.numel() * module.in_features

    def self_attention(_, arguments, output):
        assert arguments[0].shape == output.shape
        batch, queries, width = output.shape
        return batch * (3 * queries * width * width + 2 * queries * queries * width)

    def dense(_, arguments, output):
        batch, queries, width = output.shape
        tokens = arguments[2].tokens.shape[1]
        return batch * width * ((queries + 2 * tokens) * width + 2 * queries * tokens)

    def deformable(module, _, output):
        # Each sampled point: a mean of four corners, weighed, on the channels of its head.
        samples = output.shape[:2].numel() * module.num_heads * module.levels * module.points
        return samples * (output.shape[2] // module.num_heads) * 5

    by_type = {
        nn.Conv2d: convolution, nn.Linear: linear, SelfAttention: self_attention,
        DenseAttention: dense, DeformableAttention: deformable,
    }  # fmt: skip
    counts = []
    hooks = [
        module.register_forward_hook(lambda *call, count=count: counts.append(count(*call)))
        for module in network.modules()
        for kind, count in by_type.items()
        if isinstance(module, kind)
    ]
    network.eval()
    network(cost.blank(network, size))
    for hook in hooks:
        hook.remove()
    return sum(counts) / 1e9


@pytest.mark.parametrize("preset", FIVE)
def test_multiply_adds_equal_a_count_by_hand(preset):
    if preset == "detr-dc5":
        pytest.skip("test_resnet cannot be dilated")
    network = build_network(model_config(preset, 3, **SMALL))
    assert cost.gflops(network, (96, 64)) == pytest.approx(counted_by_hand(network, (96, 64)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("detr", 86),
        ("detr-dc5", 187),
        ("deformable-detr", 173),
        ("deformable-detr-single-scale", 78),
        ("deformable-detr-single-scale-dc5", 128),
    ],
)
def test_multiply_adds_are_near_the_published_ones(preset, published):
    """Published for the mean over images of COCO, which are a little larger than 800 x 1066."""
    found = cost.gflops(build_network(model_config(preset, 91)), (800, 1066))
    assert 0.92 * published < found <= published


def test_parameters_are_counted_once():
    network = build_network(model_config("deformable-detr", 3, **SMALL))
    every, trainable = cost.count_parameters(network)
    assert every == sum({id(p): p.numel() for p in network.parameters()}.values())
    network.backbone.requires_grad_(False)
    frozen = sum(parameter.numel() for parameter in network.backbone.parameters())
    assert cost.count_parameters(network) == (every, trainable - frozen)


def test_measuring_leaves_the_network_as_it_was():
    network = build_network(model_config("detr", 3, **SMALL)).train()
    cost.gflops(network, (64, 64))
    times = cost.latency(network, (64, 64), rounds=2)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    assert 0 < times["p50"] <= times["p90"]


def test_the_typical_image_is_the_median_one():
    table, _ = shapes(train=9, val=1)
    size = cost.typical_size(table, DataConfig(image_size=64, max_size=64))
    assert max(size) <= 64
