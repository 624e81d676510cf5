import copy

import pytest
import torch
from torch import nn

from detrlab.models.backbones.folding import FoldedConv2d, fold_frozen_norms
from detrlab.models.prepare import prepare
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
    count = fold_frozen_norms(folded)
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
    fold_frozen_norms(body)
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
    assert fold_frozen_norms(body) == 0
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
