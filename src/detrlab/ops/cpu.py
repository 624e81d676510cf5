"""Deformable attention on a CPU by Numba kernels, as PyTorch operators of their own.

``torch.ops.detrlab.deformable`` and its backward are custom operators, so autograd, autocast and
``torch.compile`` know them. A kernel is compiled when a dtype, head width or number of points is
first used (this takes seconds; the code is cached on disk), and compared with the plain form before
its results are used.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from detrlab.ops import reference, testing, threads
from detrlab.ops.compiling import Compiled, compile_and_test, compile_on_disk
from detrlab.structures import LevelShapes, References

Function = TypeVar("Function", bound=Callable[..., Any])

_WIDEST = 64
"""Channels that fit the registers; wider heads are computed in several pieces."""

_SMALLEST_SHARE = 1 << 18
"""Products of channels and points that a thread must have to be worth starting."""


def attend(
    values: Tensor,
    level_shapes: LevelShapes,
    valid_ratios: Tensor,
    references: References,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """``reference.attend`` in one operator, without weights and locations in memory."""
    dtype = reference.computing_dtype(values)
    centers, sizes = references.centers, references.sizes
    learned_box = sizes is not None and (sizes.requires_grad or centers.requires_grad)
    if learned_box or valid_ratios.requires_grad:
        # The fused form has no gradient for these; no detector here needs one.
        return reference.attend_by(
            sample, values, level_shapes, valid_ratios, references, offsets, scores
        )
    output = torch.ops.detrlab.deformable(
        _head_by_head(values.to(dtype), offsets.shape[1]),
        _flat(level_shapes),
        valid_ratios.to(dtype),
        centers.to(dtype),
        None if sizes is None else sizes.to(dtype),
        offsets.to(dtype),
        scores.to(dtype),
    )
    return output.to(values.dtype)


def sample(values: Tensor, level_shapes: LevelShapes, locations: Tensor, weights: Tensor) -> Tensor:
    """``reference.sample`` in one operator."""
    dtype = reference.computing_dtype(values)
    output = torch.ops.detrlab.deformable(
        _head_by_head(values.to(dtype), locations.shape[1]),
        _flat(level_shapes),
        None,
        None,
        None,
        locations.to(dtype),
        weights.to(dtype).flatten(-2),
    )
    return output.to(values.dtype)


def _flat(level_shapes: LevelShapes) -> list[int]:
    return [side for shape in level_shapes for side in shape]


def _head_by_head(values: Tensor, queries: int) -> Tensor:
    """The same (B, S, M, D) values, stored head after head if many queries will read them.

    Interleaved heads put all cells of one head into the same eighth of the cache's sets. With as
    many queries as cells the copy costs less than it saves, forward and backward; with a decoder's
    few hundred queries it costs more.
    """
    if 4 * queries < values.shape[1]:
        return values
    return values.transpose(1, 2).contiguous().transpose(1, 2)


# --- the operators ------------------------------------------------------------------------


def _operator(name: str) -> Callable[[Function], Function]:
    """Register an operator, as ``custom_op``: that would import the whole compiler when called."""

    def register(function: Function) -> Function:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(name, "cpu", function)
        return function

    return register


@_operator("detrlab::deformable")
def _deformable(
    values: Tensor,
    shapes: Sequence[int],
    ratios: Tensor | None,
    centers: Tensor | None,
    sizes: Tensor | None,
    offsets: Tensor,
    scores: Tensor,
) -> Tensor:
    """Values (B, S, M, D), heights and widths in turn, ... -> (B, Q, M * D).

    With ``ratios`` (B, L, 2) and ``centers`` (B, Q, 2): offsets (B, Q, M, L, P, 2) and logits
    (B, Q, M, L * P). Without: locations and weights.
    """
    work = _Work.of(values, shapes, ratios, centers, sizes, offsets, scores)
    output = values.new_empty(work.batch, work.queries, work.heads * work.width)
    kernels = _kernels_or_raise(work)
    _run_forward(kernels, work, output)
    return output


@torch.library.register_fake("detrlab::deformable")
def _(
    values: Tensor,
    shapes: Sequence[int],  # noqa: ARG001
    ratios: Tensor | None,  # noqa: ARG001
    centers: Tensor | None,  # noqa: ARG001
    sizes: Tensor | None,  # noqa: ARG001
    offsets: Tensor,
    scores: Tensor,  # noqa: ARG001
) -> Tensor:
    return values.new_empty(values.shape[0], offsets.shape[1], values.shape[2] * values.shape[3])


@_operator("detrlab::deformable_backward")
def _deformable_backward(
    output_grad: Tensor,
    values: Tensor,
    shapes: Sequence[int],
    ratios: Tensor | None,
    centers: Tensor | None,
    sizes: Tensor | None,
    offsets: Tensor,
    scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of values, offsets and scores."""
    work = _Work.of(values, shapes, ratios, centers, sizes, offsets, scores)
    return _run_backward(_kernels_or_raise(work), work, output_grad.contiguous())


@torch.library.register_fake("detrlab::deformable_backward")
def _(
    output_grad: Tensor,  # noqa: ARG001
    values: Tensor,
    shapes: Sequence[int],  # noqa: ARG001
    ratios: Tensor | None,  # noqa: ARG001
    centers: Tensor | None,  # noqa: ARG001
    sizes: Tensor | None,  # noqa: ARG001
    offsets: Tensor,
    scores: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(values),
        offsets.new_empty(offsets.shape),
        scores.new_empty(scores.shape),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    values, ctx.shapes, ratios, centers, sizes, offsets, scores = inputs
    ctx.save_for_backward(values, ratios, centers, sizes, offsets, scores)


def _differentiate(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
    values, ratios, centers, sizes, offsets, scores = ctx.saved_tensors
    values_grad, offsets_grad, scores_grad = torch.ops.detrlab.deformable_backward(
        output_grad, values, ctx.shapes, ratios, centers, sizes, offsets, scores
    )
    centers_grad = None
    if ctx.needs_input_grad[3]:
        # A point moves by an offset of one cell when its center moves by one cell.
        assert sizes is None, "gradients of boxes take the form with locations"
        sides = torch.tensor(ctx.shapes, dtype=ratios.dtype).view(-1, 2).flip(-1)
        moved = offsets_grad.sum((2, 4))  # (B, Q, L, 2)
        centers_grad = (moved * (ratios * sides)[:, None]).sum(2)
    return values_grad, None, None, centers_grad, None, offsets_grad, scores_grad


torch.library.register_autograd("detrlab::deformable", _differentiate, setup_context=_remember)
torch.library.register_autocast("detrlab::deformable", "cpu", torch.float32)


# --- running the kernels ------------------------------------------------------------------


class _Kernels(NamedTuple):
    """Compiled callbacks; they must live as long as their addresses are used."""

    forward: Any
    backward: Any


class _Work(NamedTuple):
    """The tensors of one call, in the layout that the kernels read, and their sizes."""

    values: Tensor
    shapes: np.ndarray
    ratios: Tensor
    centers: Tensor
    sizes: Tensor
    offsets: Tensor
    scores: Tensor
    mode: str
    batch: int
    tokens: int
    heads: int
    width: int
    queries: int
    levels: int
    points: int

    @classmethod
    def of(
        cls,
        values: Tensor,
        shapes: Sequence[int],
        ratios: Tensor | None,
        centers: Tensor | None,
        sizes: Tensor | None,
        offsets: Tensor,
        scores: Tensor,
    ) -> _Work:
        """Check the sizes, and copy what is not laid out as needed."""
        batch, tokens, heads, width = values.shape
        queries, levels, points = offsets.shape[1], offsets.shape[3], offsets.shape[4]
        rows = np.empty((levels, 3), np.int64)
        rows[:, :2] = np.asarray(shapes, np.int64).reshape(-1, 2)
        cells = rows[:, 0] * rows[:, 1]
        rows[:, 2] = np.cumsum(cells) - cells
        expected = (batch, queries, heads, levels, points, 2)
        if int(cells.sum()) != tokens or tuple(offsets.shape) != expected:
            raise ValueError(
                f"values of {tokens} cells and offsets of shape {tuple(offsets.shape)} do not fit "
                f"levels of {rows[:, :2].tolist()}, {heads} heads"
            )
        if scores.shape != (batch, queries, heads, levels * points):
            raise ValueError(f"scores {tuple(scores.shape)} do not fit offsets {expected}")
        if not _is_rows(values):
            values = values.contiguous()
        return cls(
            values=values,
            shapes=rows,
            ratios=values.new_zeros(1) if ratios is None else ratios.contiguous(),
            centers=values.new_zeros(2) if centers is None else centers.contiguous(),
            sizes=values.new_ones(2) if sizes is None else sizes.contiguous(),
            offsets=offsets.contiguous(),
            scores=scores.contiguous(),
            mode="SAMPLE" if centers is None else "AROUND_POINTS" if sizes is None else "IN_BOXES",
            batch=batch,
            tokens=tokens,
            heads=heads,
            width=width,
            queries=queries,
            levels=levels,
            points=points,
        )

    @property
    def kind(self) -> tuple[torch.dtype, int, int]:
        """What a kernel is compiled for: dtype, head width, L * P."""
        return self.values.dtype, self.width, self.levels * self.points

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to sample."""
        return not (self.batch and self.queries and self.tokens and self.points)

    def threads(self) -> int:
        """The number of threads for this much work, up to torch's number."""
        products = self.batch * self.queries * self.heads * self.width * self.kind[2]
        return max(1, min(torch.get_num_threads(), products // _SMALLEST_SHARE))

    def block(self) -> np.ndarray:
        """The fields that both kernels read."""
        from detrlab.ops import kernels as k

        image, cell, head, _ = self.values.stride()
        fields = {
            k.BATCH: self.batch,
            k.QUERIES: self.queries,
            k.HEADS: self.heads,
            k.WIDTH: self.width,
            k.LEVELS: self.levels,
            k.POINTS: self.points,
            k.MODE: getattr(k, self.mode),
            k.IMAGE_STRIDE: image,
            k.HEAD_STRIDE: head,
            k.CELL_STRIDE: cell,
            k.SHAPES: self.shapes.ctypes.data,
            k.VALUES: self.values.data_ptr(),
            k.RATIOS: self.ratios.data_ptr(),
            k.CENTERS: self.centers.data_ptr(),
            k.SIZES: self.sizes.data_ptr(),
            k.OFFSETS: self.offsets.data_ptr(),
            k.SCORES: self.scores.data_ptr(),
        }
        block = np.zeros(k.FIELDS, np.int64)
        block[list(fields)] = list(fields.values())
        return block


def _is_rows(values: Tensor) -> bool:
    """Whether each head's channels lie together, and cells within reach of an int32."""
    return values.stride(3) == 1 and values.shape[1] * values.stride(1) < 2**31


def _run_forward(kernels: _Kernels, work: _Work, output: Tensor) -> None:
    from detrlab.ops import kernels as k

    if work.is_empty:
        output.zero_()
        return
    count = work.threads()
    # A few tasks for each thread, so that a slow core delays little.
    chunks = math.ceil(4 * count / (work.batch * work.heads)) if count > 1 else 1
    chunk = math.ceil(work.queries / chunks)
    block = work.block()
    block[k.CHUNK] = chunk
    block[k.TASKS] = work.batch * work.heads * math.ceil(work.queries / chunk)
    block[k.OUTPUT] = output.data_ptr()
    threads.run(kernels.forward.address, block.ctypes.data, count)


def _run_backward(
    kernels: _Kernels, work: _Work, output_grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from detrlab.ops import kernels as k

    values_grad = torch.zeros_like(work.values)
    offsets_grad = torch.empty_like(work.offsets)
    scores_grad = torch.empty_like(work.scores)
    if work.is_empty:
        return values_grad, offsets_grad.zero_(), scores_grad.zero_()
    count = work.threads()
    maps = work.batch * work.heads
    # One task for each map needs no locks; with too few maps, one for each level.
    split = maps < 2 * count and work.levels > 1
    block = work.block()
    block[k.SPLIT] = split
    block[k.TASKS] = maps * (work.levels if split else 1)
    block[k.OUTPUT] = output_grad.data_ptr()
    block[k.VALUES_GRAD] = values_grad.data_ptr()
    block[k.OFFSETS_GRAD] = offsets_grad.data_ptr()
    block[k.SCORES_GRAD] = scores_grad.data_ptr()
    threads.run(kernels.backward.address, block.ctypes.data, count)
    if split and work.mode != "SAMPLE":
        weights = work.scores.softmax(-1)
        mean = (weights * scores_grad).sum(-1, keepdim=True)
        scores_grad = weights * (scores_grad - mean)
    return values_grad, offsets_grad, scores_grad


# --- compiling and testing them -----------------------------------------------------------


def problem(dtype: torch.dtype = torch.float32, width: int = 32, count: int = 16) -> str | None:
    """Why the kernels cannot be used; None if they can. Compiles and tests them if needed.

    Args:
        dtype: of the values.
        width: channels of a head.
        count: L * P, points of a head.
    """
    if dtype not in (torch.float32, torch.float64):
        return f"no CPU kernel for {dtype}"
    if width < 1 or count < 1:
        return "no channels or no points"
    return _compiled(dtype, width, count).problem


def _kernels_or_raise(work: _Work) -> _Kernels:
    kernels, found = _compiled(*work.kind)
    if kernels is None:
        raise RuntimeError(f"the CPU kernels cannot be used: {found}")
    return kernels


@functools.cache
def _compiled(dtype: torch.dtype, width: int, count: int) -> Compiled[_Kernels]:
    """The tested kernels for one kind of work, or why they cannot be used."""
    return compile_and_test(
        lambda: _build(dtype, width, count),
        lambda kernels: _self_test(kernels, dtype, width, count),
    )


def _build(dtype: torch.dtype, width: int, count: int) -> _Kernels:
    from detrlab.ops import kernels

    number = np.float64 if dtype == torch.float64 else np.float32
    lanes = next(lanes for lanes in range(min(width, _WIDEST), 0, -1) if width % lanes == 0)
    return _Kernels(
        compile_on_disk(kernels.compile_forward, number, lanes, count),
        compile_on_disk(kernels.compile_backward, number, lanes, count),
    )


def _self_test(kernels: _Kernels, dtype: torch.dtype, width: int, count: int) -> str | None:
    """How the kernels' results on a small case differ from the plain form's; None if they agree."""
    # Two levels if the points can be divided between them.
    shapes, points = (((4, 8), (2, 2)), count // 2) if count % 2 == 0 else (((4, 8),), count)
    case = testing.small_case(shapes, width=width, points=points, dtype=dtype)
    work = _Work.of(
        case.values,
        _flat(shapes),
        case.valid_ratios,
        *case.references,
        case.offsets,
        case.scores,
    )
    output = torch.empty_like(case.output_grad)
    _run_forward(kernels, work, output)
    actual = (output, *_run_backward(kernels, work, case.output_grad))
    return testing.difference(actual, testing.results(reference.attend, case))
