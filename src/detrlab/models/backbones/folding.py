"""Norms folded into the convolutions before them.

A norm with fixed statistics is a fixed affine map of each channel. Applied to the convolution's
weights instead of its output, it costs nothing: no pass over the activations forward or backward,
and no activation kept for it. A frozen norm is always fixed, a trained one in evaluation mode.
Parameters, buffers, their names and the mathematics stay as they are; results differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pad = Callable[[Tensor], Tensor]

_BUFFERS = ("weight", "bias", "running_mean", "running_var")


class Kernel(NamedTuple):
    """What a convolution multiplies with and adds."""

    weight: Tensor
    bias: Tensor


Made = TypeVar("Made")


class Kept(Generic[Made]):
    """What was made from tensors, made again only when one of them has changed.

    It is kept only where no gradients are recorded. A change through ``Tensor.data`` is not
    noticed, because PyTorch does not count it.
    """

    def __init__(self) -> None:
        self._last: tuple[list[tuple[Tensor, int]], Made] | None = None

    def get(self, sources: Sequence[Tensor], make: Callable[[], Made]) -> Made:
        """What ``make`` gives for the present values of ``sources``."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return make()
        if any(each.is_inference() for each in sources):  # these do not count their changes
            return make()
        last = self._last
        if last is None or not all(map(_same, last[0], sources)):
            # An alias keeps the memory, so that no other tensor can take its address.
            last = [(each.detach(), each._version) for each in sources], make()
            self._last = last
        return last[1]

    def __deepcopy__(self, _memo: Any) -> Kept[Made]:
        return Kept()

    def __getstate__(self) -> dict[str, Any]:
        return {"_last": None}


def _same(before: tuple[Tensor, int], now: Tensor) -> bool:
    alias, version = before
    return (
        alias.data_ptr() == now.data_ptr()
        and version == now._version
        and alias.dtype == now.dtype
        and alias.device == now.device
    )


class FoldedConv2d(nn.Module):
    """A convolution followed by a norm, as one convolution wherever the norm is fixed.

    Args:
        conv: whose parameters are taken over.
        norm: the folded norm that follows. It belongs to its parent, not to this module.
        pad: what to do to the input first.
    """

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm | FoldedBatchNorm2d, pad: Pad) -> None:
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self._norm = (norm,)  # in a tuple, so that it does not become a submodule
        self._pad = pad
        self._kept = Kept[Kernel]()
        self._options: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
        }

    @property
    def norm(self) -> FoldedNorm | FoldedBatchNorm2d:
        """The norm that follows."""
        return self._norm[0]

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        numbers = self.kernel() if self.norm.fixed else (self.weight, self.bias)
        return self.convolve(maps, *numbers)

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with other numbers."""
        # Else the convolution would lay the weights out so itself: forward, and again backward.
        last = maps.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        weight = weight.contiguous(memory_format=layout)
        return F.conv2d(self._pad(maps), weight, bias, **self._options)

    def sources(self) -> list[Tensor]:
        """What the kernel is made from."""
        own = [self.weight] if self.bias is None else [self.weight, self.bias]
        return [*own, *self.norm.numbers()]

    def kernel(self) -> Kernel:
        """The norm's and the convolution's numbers together, laid out channels last."""
        return self._kept.get(self.sources(), self._fold)

    def _fold(self) -> Kernel:
        scale, shift = _affine(self.norm)
        if self.bias is not None:
            shift = shift + self.bias * scale
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return Kernel(weight * scale[:, None, None, None], shift)

    def plain(self, kernel: Kernel | None = None) -> nn.Module:
        """An ordinary convolution after its padding: this one and its norm's running statistics.

        Args:
            kernel: with other numbers.
        """
        weight, bias = kernel or self.kernel()
        channels = weight.shape[1] * self._options["groups"]
        conv = nn.Conv2d(channels, len(weight), (weight.shape[2], weight.shape[3]), **self._options)
        conv.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
        conv.bias = nn.Parameter(bias.detach().clone())
        return conv if self._pad is _unchanged else _Padded(conv, self._pad)

    def extra_repr(self) -> str:
        """Shape and options."""
        return f"{tuple(self.weight.shape)}, {self._options}"


class _Padded(nn.Module):
    """A convolution of an input that is padded first."""

    def __init__(self, conv: nn.Conv2d, pad: Pad) -> None:
        super().__init__()
        self.conv = conv
        self.pad = pad

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.conv(self.pad(maps))


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel."""
    weight, bias, mean, variance = (getattr(norm, name) for name in _BUFFERS)
    scale = weight * (variance + norm.eps).rsqrt()
    return scale, bias - mean * scale


class FoldedNorm(nn.Module):
    """What stays of a frozen norm: its numbers and, where it had one, its activation.

    Args:
        norm: a frozen batch norm of torchvision or timm.
    """

    fixed = True

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.eps = float(getattr(norm, "eps", 1e-5))
        for name in _BUFFERS:
            self.register_buffer(name, norm.get_buffer(name))
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def numbers(self) -> list[Tensor]:
        """What scale and shift are made from."""
        return [self.get_buffer(name) for name in _BUFFERS]

    def forward(self, maps: Tensor) -> Tensor:
        """The norm itself is in the convolution before."""
        return self.act(self.drop(maps))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **keywords: Any
    ) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # as the norm it was made from
        super()._load_from_state_dict(state_dict, prefix, *arguments, **keywords)


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that trains as usual; in evaluation it is in the convolution before.

    Args:
        norm: whose parameters and buffers are taken over.

    Attributes:
        held: it keeps its running statistics in training too, see ``checkpoints.freeze``.
        twin: what normalises in its place, in training by several processes.
    """

    twin: Callable[[Tensor], Tensor] | None = None

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self._parameters, self._buffers = norm._parameters, norm._buffers
        self.held = bool(getattr(norm, "held", False))
        self.train(norm.training)

    @property
    def fixed(self) -> bool:
        """Whether it normalises by its running statistics."""
        return self.held or not self.training

    def numbers(self) -> list[Tensor]:
        """What scale and shift are made from."""
        # Each training step is counted; the statistics themselves change without notice.
        return [getattr(self, name) for name in (*_BUFFERS, "num_batches_tracked")]

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.fixed:
            return maps
        return super().forward(maps) if self.twin is None else self.twin(maps)


def fold(parent: nn.Module, conv: str, norm: str) -> None:
    """Fold a norm into the convolution whose output it reads, in place.

    Args:
        parent: the module that holds both.
        conv: name of the convolution in it.
        norm: name of the norm in it.
    """
    convolution, given = parent.get_submodule(conv), parent.get_submodule(norm)
    pad = _padding_of(convolution)
    assert isinstance(convolution, nn.Conv2d), conv
    assert pad is not None, conv
    if isinstance(given, nn.BatchNorm2d):
        folded: FoldedNorm | FoldedBatchNorm2d = FoldedBatchNorm2d(given)
    else:
        folded = FoldedNorm(given)
    parent.set_submodule(conv, FoldedConv2d(convolution, folded, pad))
    parent.set_submodule(norm, folded)


@torch.no_grad()
def fold_norms(body: nn.Module) -> int:
    """Fold each norm of a backbone that directly follows a convolution, in place.

    Which follow is found by running a small picture; that the folded model computes the same is
    verified with another one, and a model that does not is left as it was.

    Returns:
        How many were folded.
    """
    if not any(_is_norm(module) for module in body.modules()):
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


def _is_norm(module: nn.Module) -> bool:
    if type(module) is nn.BatchNorm2d:
        return module.affine and module.track_running_stats
    return type(module).__name__ in ("FrozenBatchNorm2d", "FrozenBatchNormAct2d")


def _padding_of(conv: nn.Module) -> Pad | None:
    """What the kind of convolution does to its input first, or None for unknown kinds."""
    if type(conv) is nn.Conv2d and conv.padding_mode == "zeros":
        return _unchanged
    if type(conv).__name__ == "Conv2dSame" and isinstance(conv, nn.Conv2d):  # timm's
        kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
        return _Same(list(kernel), list(stride), list(dilation))
    return None


def _unchanged(maps: Tensor) -> Tensor:
    return maps


class _Same:
    """TensorFlow's "SAME" padding; a class, because a closure could not be pickled.

    timm's ``pad_same`` in whole numbers: an exporter cannot follow its rounded quotients.
    """

    def __init__(self, *sides: list[int]) -> None:
        self.sides = sides

    def __call__(self, maps: Tensor) -> Tensor:
        rows, columns = zip(*self.sides, strict=True)
        top, bottom = _margins(maps.shape[-2], *rows)
        left, right = _margins(maps.shape[-1], *columns)
        return F.pad(maps, (left, right, top, bottom))


def _margins(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and after a side."""
    reach = (kernel - 1) * dilation + 1
    lacking = ((side + stride - 1) // stride - 1) * stride + reach - side
    if reach < stride:  # only then it can be negative
        lacking = max(lacking, 0)
    return lacking // 2, lacking - lacking // 2


def _pairs(body: nn.Module) -> list[tuple[str, str]]:
    """Names of (convolution, norm) where the norm reads the convolution's output."""
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
        elif _is_norm(module):
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
    numbers = [getattr(norm, name) for norm in norms for name in _BUFFERS]
    before = [buffer.clone() for buffer in numbers]
    draw = torch.Generator().manual_seed(1)
    for buffer in numbers:  # fresh norms change nothing, and would verify nothing
        noise = torch.rand(buffer.shape, generator=draw, dtype=torch.float64)
        buffer.copy_(0.75 + 0.5 * noise)
    expected = body(_picture(body, seed=2))
    for conv, norm in pairs:
        fold(body, conv, norm)
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
