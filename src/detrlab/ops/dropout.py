"""Dropout that costs no more than reading and writing, fused with what stands beside it.

PyTorch draws its random numbers on a CPU one after another: in a training step they cost as much
as a quarter of all matrix products. The CPU kernels here hash the element's index instead, and
remember nothing for the backward pass but a key. The key comes from torch's generator, so
``torch.manual_seed`` decides the result as always (though it is another one than PyTorch's own).

Where the kernels do not serve (another device, half precision, compiling, exporting, no Numba)
PyTorch's functions do.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from detrlab.ops import choice, threads
from detrlab.ops.compiling import Compiled, compile_and_test, compile_on_disk

_KINDS = ("drop", "relu", "add", "relu_backward")
_SMALLEST_SHARE = 1 << 16
"""Elements below which a second thread is not worth waking."""


def dropout(values: Tensor, p: float) -> Tensor:
    """Each element zeroed with probability ``p``, the others divided by ``1 - p``."""
    if p == 0:
        return values
    if _serves(values):
        return _Dropout.apply(values, p)
    return F.dropout(values, p)


def relu_dropout(values: Tensor, p: float) -> Tensor:
    """``dropout(relu(values), p)``."""
    if p and _serves(values):
        return _ReluDropout.apply(values, p)
    return dropout(F.relu(values), p)


def add_dropout(residual: Tensor, branch: Tensor, p: float) -> Tensor:
    """``residual + dropout(branch, p)``; both of one shape."""
    if p and _serves(branch) and residual.shape == branch.shape and residual.dtype == branch.dtype:
        return _AddDropout.apply(residual, branch, p)
    return residual + dropout(branch, p)


def _serves(values: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or values.device.type != "cpu":
        return False
    if choice.wish() not in ("auto", "cpu") or type(values) not in (Tensor, torch.nn.Parameter):
        return False
    return values.dtype in (torch.float32, torch.float64) and problem(values.dtype) is None


class _Mask(NamedTuple):
    """What decides which elements are kept, and what the others become larger by."""

    first_key: int
    second_key: int
    limit: int
    scale: float

    @classmethod
    def draw(cls, p: float) -> _Mask:
        """A new mask from torch's generator."""
        key = int(torch.empty((), dtype=torch.int64).random_().item())
        limit = min(round((1 - p) * 2**32), 2**32 - 1)
        return cls(key & 0xFFFFFFFF, key >> 32, limit, 1 / (1 - p))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        ctx.mask = _Mask.draw(p)
        return _run("drop", ctx.mask, values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _run("drop", ctx.mask, grad), None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        mask = _Mask.draw(p)
        output = _run("relu", mask, values)
        ctx.mask = mask
        ctx.save_for_backward(output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _run("relu_backward", ctx.mask, grad, *ctx.saved_tensors), None


class _AddDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, branch: Tensor, p: float) -> Tensor:
        ctx.mask = _Mask.draw(p)
        return _run("add", ctx.mask, branch, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, _run("drop", ctx.mask, grad), None


def _run(kind: str, mask: _Mask, values: Tensor, other: Tensor | None = None) -> Tensor:
    kernels = _compiled(values.dtype).kernels
    assert kernels is not None, "call only where problem() is None"
    return _run_kernel(kernels, kind, mask, values, other)


def _run_kernel(
    kernels: dict[str, Any], kind: str, mask: _Mask, values: Tensor, other: Tensor | None
) -> Tensor:
    values = values.contiguous()
    other = values if other is None else other.contiguous()
    output = torch.empty_like(values)
    scale = torch.tensor([mask.scale], dtype=values.dtype)
    field, block = kernels["fields"], np.zeros(16, np.int64)
    for name, number in (
        (field.SIZE, values.numel()),
        (field.FIRST_KEY, mask.first_key),
        (field.SECOND_KEY, mask.second_key),
        (field.LIMIT, mask.limit),
        (field.SCALE, scale.data_ptr()),
        (field.INPUT, values.data_ptr()),
        (field.OTHER, other.data_ptr()),
        (field.OUTPUT, output.data_ptr()),
    ):
        block[name] = number
    count = max(1, min(torch.get_num_threads(), values.numel() // _SMALLEST_SHARE))
    threads.run(kernels[kind].address, block.ctypes.data, count)
    return output


def problem(dtype: torch.dtype = torch.float32) -> str | None:
    """Why the kernels cannot serve, or None if they can; compiles and tests them if need be."""
    return _compiled(dtype).problem


@functools.cache
def _compiled(dtype: torch.dtype) -> Compiled[dict[str, Any]]:
    return compile_and_test(
        functools.partial(_build, dtype), functools.partial(_self_test, dtype=dtype)
    )


def _build(dtype: torch.dtype) -> dict[str, Any]:
    from detrlab.ops import dropout_kernels

    number = np.float64 if dtype == torch.float64 else np.float32
    kernels = {
        kind: compile_on_disk(dropout_kernels.compile_kernel, number, kind) for kind in _KINDS
    }
    return {**kernels, "fields": dropout_kernels.Field}


def _self_test(kernels: dict[str, Any], dtype: torch.dtype) -> str | None:
    """None, or what the kernels do wrong with a few thousand numbers."""
    size = 10_007
    values = torch.linspace(-1, 1, size, dtype=dtype, device="cpu")
    mask = _Mask(0x12345678, 0x2ABCDEF0, round(0.75 * 2**32), 1 / 0.75)
    ones = torch.ones_like(values)
    kept = _run_kernel(kernels, "drop", mask, ones, None)
    share = (kept > 0).double().mean().item()
    if not 0.72 < share < 0.78:
        return f"dropout kept {share:.1%} instead of 75.0%"
    dropped = _run_kernel(kernels, "relu", mask, values, None)
    wanted = {
        "relu": (dropped, values.relu() * kept),
        "add": (_run_kernel(kernels, "add", mask, values, ones), ones + values * kept),
        "relu_backward": (
            _run_kernel(kernels, "relu_backward", mask, ones, dropped),
            kept * (values > 0),
        ),
    }
    for name, (actual, expected) in wanted.items():
        if not torch.allclose(actual, expected, rtol=1e-5, atol=1e-6):
            return f"the dropout kernel {name!r} is wrong"
    return None
