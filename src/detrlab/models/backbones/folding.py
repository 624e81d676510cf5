"""Frozen norms folded into the convolutions before them.

A frozen norm is a fixed affine map of each channel. Applied to the convolution's weights instead
of its output, it costs nothing: no pass over the activations forward or backward, and no
activation kept for it. Parameters, buffers, their names and the mathematics stay as they are;
results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pad = Callable[[Tensor], Tensor]

_BUFFERS = ("weight", "bias", "running_mean", "running_var")


class FoldedConv2d(nn.Module):
    """A convolution followed by a frozen norm, as one convolution.

    Args:
        conv: whose parameters are taken over.
        norm: the ``FoldedNorm`` that follows. It belongs to its parent, not to this module.
        pad: what to do to the input first.
    """

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm, pad: Pad) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self._norm = (norm,)  # in a tuple, so that it does not become a submodule
        self._pad = pad
        self._options: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
        }

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        scale, shift = self._norm[0].affine()
        if self.bias is not None:
            shift = shift + self.bias * scale
        weight = self.weight
        if maps.is_contiguous(memory_format=torch.channels_last):
            # Else the convolution would lay it out so itself: forward, and again backward.
            weight = weight.contiguous(memory_format=torch.channels_last)
        weight = weight * scale[:, None, None, None]
        return F.conv2d(self._pad(maps), weight, shift, **self._options)

    def extra_repr(self) -> str:
        """Shape and options."""
        return f"{tuple(self.weight.shape)}, {self._options}"


class FoldedNorm(nn.Module):
    """What stays of a frozen norm: its numbers and, where it had one, its activation.

    Args:
        norm: a frozen batch norm of torchvision or timm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps = float(getattr(norm, "eps", 1e-5))
        for name in _BUFFERS:
            self.register_buffer(name, norm.get_buffer(name))
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of each channel."""
        weight, bias, mean, variance = (self.get_buffer(name) for name in _BUFFERS)
        scale = weight * (variance + self.eps).rsqrt()
        return scale, bias - mean * scale

    def forward(self, maps: Tensor) -> Tensor:
        """The norm itself is in the convolution before."""
        return self.act(self.drop(maps))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **keywords: Any
    ) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # as the norm it was made from
        super()._load_from_state_dict(state_dict, prefix, *arguments, **keywords)


@torch.no_grad()
def fold_frozen_norms(body: nn.Module) -> int:
    """Fold each frozen norm that directly follows a convolution, in place.

    Which follow is found by running a small picture; that the folded model computes the same is
    verified with another one, and a model that does not is left as it was.

    Returns:
        How many were folded.
    """
    if not any(_is_frozen_norm(module) for module in body.modules()):
        return 0
    was_training = body.training
    body.eval()
    try:
        pairs = _pairs(body)
        return _fold_verified(body, pairs) if pairs else 0
    except RuntimeError:  # a model that does not take pictures of this size
        return 0
    finally:
        body.train(was_training)


def _is_frozen_norm(module: nn.Module) -> bool:
    return type(module).__name__ in ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")


def _padding_of(conv: nn.Module) -> Pad | None:
    """What the kind of convolution does to its input first, or None for unknown kinds."""
    from timm.layers import Conv2dSame
    from timm.layers.padding import pad_same

    if type(conv) is nn.Conv2d and conv.padding_mode == "zeros":
        return _unchanged
    if type(conv) is Conv2dSame:
        kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
        return _Same(pad_same, list(kernel), list(stride), list(dilation))
    return None


def _unchanged(maps: Tensor) -> Tensor:
    return maps


class _Same:
    """TensorFlow's "SAME" padding; a class, because a closure could not be pickled."""

    def __init__(self, pad: Callable[..., Tensor], *sides: list[int]) -> None:
        self.pad = pad
        self.sides = sides

    def __call__(self, maps: Tensor) -> Tensor:
        return self.pad(maps, *self.sides)


def _pairs(body: nn.Module) -> list[tuple[str, str]]:
    """Names of (convolution, frozen norm) where the norm reads the convolution's output."""
    made_by: dict[int, str] = {}
    kept: list[Tensor] = []  # alive until the end, so that no two outputs share an id
    pairs = []
    names = {module: name for name, module in body.named_modules()}

    def after_conv(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.append(output)
        made_by[id(output)] = names[module]

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        source = made_by.get(id(inputs[0]))
        if source is not None:
            pairs.append((source, names[module]))

    hooks = []
    for module in body.modules():
        if isinstance(module, nn.Conv2d) and _padding_of(module) is not None:
            hooks.append(module.register_forward_hook(after_conv))
        elif _is_frozen_norm(module):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        body(_picture(body, seed=0))
    finally:
        for hook in hooks:
            hook.remove()
    # A module that runs twice could feed two norms, or read from two convolutions.
    convs, norms = [conv for conv, _ in pairs], [norm for _, norm in pairs]
    return [
        (conv, norm) for conv, norm in pairs if convs.count(conv) == 1 and norms.count(norm) == 1
    ]


def _picture(body: nn.Module, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    like = next(body.parameters())
    return torch.randn(1, 3, 64, 64, generator=draw).to(like)


def _fold_verified(body: nn.Module, pairs: list[tuple[str, str]]) -> int:
    originals = {name: body.get_submodule(name) for pair in pairs for name in pair}
    norms = [originals[norm] for _, norm in pairs]
    numbers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in numbers]
    draw = torch.Generator().manual_seed(1)
    for buffer in numbers:  # fresh norms change nothing, and would verify nothing
        noise = torch.rand(buffer.shape, generator=draw, dtype=torch.float64)
        buffer.copy_(0.75 + 0.5 * noise)
    expected = body(_picture(body, seed=2))
    for conv, norm in pairs:
        folded = FoldedNorm(originals[norm])
        original, pad = originals[conv], _padding_of(originals[conv])
        assert isinstance(original, nn.Conv2d), conv
        assert pad is not None, conv
        body.set_submodule(conv, FoldedConv2d(original, folded, pad))
        body.set_submodule(norm, folded)
    actual = body(_picture(body, seed=2))
    for buffer, old in zip(numbers, before, strict=True):
        buffer.copy_(old)
    if all(_close(a, b) for a, b in zip(actual, expected, strict=True)):
        return len(pairs)
    for name, module in originals.items():
        body.set_submodule(name, module)
    return 0


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-4 * b.abs().max())
