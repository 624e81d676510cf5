import copy

import pytest
import torch
from torch import nn

from detrlab.models.backbones.folding import FoldedConv2d, fold_norms
from detrlab.models.prepare import plain, prepare
from detrlab.presets import build_network
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config


def frozen_body(name, seed=0):
    """A backbone whose frozen norms do something."""
    import timm
    from timm.utils.model import freeze_batch_norm_2d

    torch.manual_seed(seed)
    body = freeze_batch_norm_2d(timm.create_model(name, features_only=True)).double()
    for buffer in body.buffers():
        buffer.uniform_(0.5, 1.5)
    return body


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "mobilenetv3_small_050"])
def test_folding_changes_nothing_but_time(name):
    body = frozen_body(name).train()
    folded = copy.deepcopy(body)
    count = fold_norms(folded)
    norms = sum(type(each).__name__.startswith("FrozenBatchNorm") for each in body.modules())
    assert count == norms > 0
    assert list(folded.state_dict()) == list(body.state_dict())
    assert folded.training

    pixels = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    results = []
    for each in (body, folded):
        maps = each(pixels)
        sum(one.square().mean() for one in maps).backward()
        results.append((maps, {name: p.grad for name, p in each.named_parameters()}))
    (maps, grads), (folded_maps, folded_grads) = results
    for a, b in zip(folded_maps, maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert folded_grads.keys() == grads.keys()
    for key, grad in grads.items():
        torch.testing.assert_close(folded_grads[key], grad, rtol=1e-7, atol=1e-9)


def test_folded_norms_follow_what_is_loaded():
    body, other = frozen_body("resnet18", seed=0), frozen_body("resnet18", seed=1)
    fold_norms(body)
    twin = copy.deepcopy(body)  # its convolutions must read its own norms
    state = other.state_dict()
    state["bn1.num_batches_tracked"] = torch.tensor(3)  # as in torchvision's files
    twin.load_state_dict(state)
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for a, b in zip(twin(pixels), other(pixels), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not torch.equal(body(pixels)[0], twin(pixels)[0])


def test_norms_that_do_not_follow_a_convolution_stay():
    class Shared(nn.Module):
        """The convolution's output is read twice: past the norm, too."""

        def __init__(self):
            super().__init__()
            from torchvision.ops.misc import FrozenBatchNorm2d

            self.conv = nn.Conv2d(3, 4, 1)
            self.norm = FrozenBatchNorm2d(4)

        def forward(self, pixels):
            maps = self.conv(pixels)
            return [maps + self.norm(maps)]

    body = Shared()
    before = body(torch.ones(1, 3, 8, 8))[0]
    assert fold_norms(body) == 0
    assert type(body.conv) is nn.Conv2d
    assert torch.equal(body(torch.ones(1, 3, 8, 8))[0], before)


def test_gradients_have_the_layout_of_their_parameters():
    # Fused optimisers walk parameter, gradient and state side by side through memory.
    network = prepare(prepare(build_network(tiny_config("detr")).train()))
    assert len(network.backbone._forward_pre_hooks) == 1
    assert any(isinstance(each, FoldedConv2d) for each in network.modules())
    images = ImageBatch(torch.randn(1, 3, 96, 128), torch.zeros(1, 96, 128, dtype=torch.bool))
    network(images).final.logits.sum().backward()
    trained = [each for each in network.backbone.parameters() if each.grad is not None]
    assert trained
    # Not strides: those of sides of length 1 mean nothing, and do differ.
    assert all(each.is_contiguous() and each.grad.is_contiguous() for each in trained)


def with_statistics(preset, seed=0):
    """A small network in double precision whose trained norms and affine maps do something."""
    torch.manual_seed(seed)
    network = build_network(tiny_config(preset)).double()
    for each in network.modules():
        if isinstance(each, nn.BatchNorm2d):
            for values in (each.running_var, each.weight.data):
                values.uniform_(0.7, 1.3)
            for values in (each.running_mean, each.bias.data):
                values.uniform_(-0.3, 0.3)
        if type(each).__name__ == "LearnableAffineBlock":
            each.scale.data.uniform_(-1.5, 1.5)  # a negative one turns the bound around
            each.bias.data.uniform_(-0.5, 0.5)
    return network


def images(seed, batch=2):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(batch, 3, 128, 160, generator=draw, dtype=torch.float64)
    return ImageBatch(pixels, torch.zeros(batch, 128, 160, dtype=torch.bool))


def memory_of(network, seed):
    with torch.no_grad():
        batch = images(seed)
        return network.encoder(network.backbone(batch.pixels), batch.padding).tokens


TRAINED = ["rt-detr-r18", "d-fine-n", "deimv2-femto", "deimv2-n"]


@pytest.mark.parametrize("preset", TRAINED)
def test_trained_norms_are_folded_in_evaluation_only(preset):
    network = with_statistics(preset)
    fast = prepare(copy.deepcopy(network))
    assert list(fast.state_dict()) == list(network.state_dict())
    assert not any(type(each) is nn.BatchNorm2d for each in fast.encoder.modules())
    assert not any(type(each) is nn.BatchNorm2d for each in fast.backbone.modules())

    def agree(seed):
        expected = memory_of(network.eval(), seed)
        torch.testing.assert_close(memory_of(fast.eval(), seed), expected, rtol=1e-9, atol=1e-10)
        return expected

    before = agree(1)
    # One training step: statistics, weights and gradients are those of the network as it was.
    for each in (network, fast):
        each.train()
        batch = images(2)
        tokens = each.encoder(each.backbone(batch.pixels), batch.padding).tokens
        each.zero_grad()
        tokens.square().mean().backward()
        torch.optim.SGD(each.parameters(), lr=0.01).step()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-7, atol=1e-8, msg=name)
    assert (agree(1) - before).abs().max() > 1e-6, "the step changed nothing: nothing was verified"
    other = with_statistics(preset, seed=5).state_dict()
    network.load_state_dict(other)
    fast.load_state_dict(other)
    agree(1)


@pytest.mark.parametrize("preset", TRAINED)
def test_the_plain_form_computes_the_same(preset):
    network = with_statistics(preset).eval()
    simple = plain(network)
    kinds = {type(each).__module__ for each in simple.backbone.modules()}
    assert "detrlab.models.backbones.folding" not in kinds
    assert sum(map(torch.numel, simple.parameters())) < sum(map(torch.numel, network.parameters()))
    torch.testing.assert_close(memory_of(simple, 1), memory_of(network, 1), rtol=1e-9, atol=1e-10)
    assert any(type(each) is nn.BatchNorm2d for each in network.modules()), "it was changed"


def test_kept_numbers_follow_every_way_to_change_them():
    network = with_statistics("deimv2-femto").eval()
    fast = prepare(copy.deepcopy(network)).eval()
    first = memory_of(fast, 1)
    assert torch.equal(memory_of(fast, 1), first)
    twin = copy.deepcopy(fast)
    for each in (network, fast):
        with torch.no_grad():
            for value in each.parameters():
                value.mul_(1.01)
    torch.testing.assert_close(memory_of(fast, 1), memory_of(network, 1), rtol=1e-9, atol=1e-10)
    assert torch.equal(memory_of(twin, 1), first), "a copy has numbers of its own"
    with torch.no_grad():
        torch._foreach_lerp_(list(fast.parameters()), list(twin.parameters()), 1.0)
    torch.testing.assert_close(memory_of(fast, 1), first, rtol=1e-6, atol=1e-7)
    # Only the norms trained: the gradient goes through the folded form too.
    fast.eval()
    batch = images(3)
    tokens = fast.encoder(fast.backbone(batch.pixels), batch.padding).tokens
    tokens.sum().backward()
    assert all(value.grad is not None for value in fast.encoder.parameters())
    single = fast.float()
    batch = images(1)
    with torch.no_grad():
        found = single.encoder(single.backbone(batch.pixels.float()), batch.padding).tokens
    torch.testing.assert_close(found.double(), first, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
@torch.no_grad()
def test_a_plain_copy_computes_the_same_also_of_padded_convolutions(name):
    network = build_network(tiny_config("detr", backbone=name)).eval().double()
    pixels = torch.randn(1, 3, 96, 105, dtype=torch.float64)
    maps = zip(plain(network).backbone(pixels), network.backbone(pixels), strict=True)
    for found, expected in maps:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_is_timms(kernel, stride):
    from timm.layers.padding import pad_same

    from detrlab.models.backbones.folding import _Same

    sides = [kernel, kernel + 1], [stride, stride], [1, 2]
    for height, width in ((7, 8), (9, 16), (1, 5)):
        maps = torch.randn(1, 2, height, width)
        assert torch.equal(_Same(*sides)(maps), pad_same(maps, *sides))
