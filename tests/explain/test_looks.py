"""Attention rows and sampling points against what the attention really computed."""

import math

import pytest
import torch
import torch.nn.functional as F
from scenes_explained import PRESETS, explained, make_image, make_network

from detrlab.errors import UserError
from detrlab.explain.capture import record
from detrlab.explain.looks import cell_at, look
from detrlab.models.attention import DeformableAttention, DenseAttention
from detrlab.ops.deformable import use
from detrlab.presets import build_network
from tiny_detectors import tiny_config

DENSE = [name for name in PRESETS if not name.startswith("deformable")]
DEFORMABLE = [name for name in PRESETS if name.startswith("deformable")]


def answers(network):
    """A recording, and the result of every attention over the memory."""
    given = {}
    handles = [
        module.register_forward_hook(lambda m, _, out: given.__setitem__(m, out))
        for module in network.modules()
        if isinstance(module, DenseAttention | DeformableAttention)
    ]
    recording = record(network, make_image())
    for handle in handles:
        handle.remove()
    return recording, given


def some_queries(call):
    count = call.query.shape[1]
    return sorted({0, 1, count // 2, count - 1})


@pytest.mark.parametrize("preset", DENSE)
def test_a_dense_row_is_torchs_own_and_gives_the_attentions_result(preset):
    network, _ = make_network(preset)
    recording, given = answers(network)
    for call in (*recording.encoder, *recording.decoder):
        attention, tokens = call.attention, call.memory.tokens
        keys = (tokens + call.memory.position).transpose(0, 1)
        _, expected = F.multi_head_attention_forward(
            call.query.transpose(0, 1), keys, tokens.transpose(0, 1),
            tokens.shape[-1], attention.num_heads,
            attention.in_proj_weight, attention.in_proj_bias, None, None, False, 0.0,
            attention.out_proj.weight, attention.out_proj.bias,
            training=False, average_attn_weights=False,
        )  # fmt: skip
        value_weight, value_bias = (
            part.chunk(3)[2] for part in (attention.in_proj_weight, attention.in_proj_bias)
        )
        values = F.linear(tokens[0], value_weight, value_bias)
        heads = values.unflatten(-1, (attention.num_heads, -1))
        for query in some_queries(call):
            row = look(call, query)
            torch.testing.assert_close(row.weights, expected[0, :, query], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(row.weights.sum(-1), torch.ones(len(row.weights)))
            assert torch.equal(row.maps[0].flatten(1), row.weights)
            mixed = torch.einsum("ms,smd->md", row.weights, heads).flatten()
            torch.testing.assert_close(
                attention.out_proj(mixed), given[attention][0, query], rtol=1e-4, atol=1e-5
            )


def bilinear(grid, x, y):
    """(D, h, w) at a point in fractions of the level; zero outside. One number at a time."""
    _, height, width = grid.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros(grid.shape[0], dtype=grid.dtype)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total += grid[:, i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return total


@pytest.mark.parametrize("preset", DEFORMABLE)
def test_sampling_points_give_the_attentions_result(preset):
    network, _ = make_network(preset)
    recording, given = answers(network)
    for call in (recording.encoder[-1], *recording.decoder):
        attention, memory = call.attention, call.memory
        sizes = [height * width for height, width in memory.level_shapes]
        parts = attention.value_proj(memory.tokens[0]).split(sizes)
        grids = [
            part.T.unflatten(0, (attention.num_heads, -1)).unflatten(-1, shape)
            for part, shape in zip(parts, memory.level_shapes, strict=True)
        ]  # (M, D / M, h, w) of each level
        for query in some_queries(call):
            seen = look(call, query)
            torch.testing.assert_close(seen.weights.sum((1, 2)), torch.ones(attention.num_heads))
            mixed = torch.zeros(attention.num_heads, grids[0].shape[1])
            for head, level, point in torch.cartesian_prod(*map(torch.arange, seen.weights.shape)):
                x, y = seen.locations[head, level, point].tolist()
                sample = bilinear(grids[level][head], x, y)
                mixed[head] += seen.weights[head, level, point] * sample
            torch.testing.assert_close(
                attention.output_proj(mixed.flatten()), given[attention][0, query],
                rtol=1e-4, atol=1e-4,
            )  # fmt: skip


def test_points_lie_around_their_reference_at_first():
    """With the originals' initial values head 0 looks right, by whole cells of each level."""
    recording = record(build_network(tiny_config("deformable-detr", 3)), make_image())
    call = recording.decoder[0]
    shapes = torch.tensor([(w, h) for h, w in recording.memory.level_shapes])
    cells = (look(call, 4).locations - call.references.centers[0, 4]) * shapes[None, :, None]
    expected = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]).expand(4, 4, 2)
    torch.testing.assert_close(cells[0], expected, atol=1e-4, rtol=0)


def test_points_do_not_depend_on_the_backend():
    network, _ = make_network("deformable-detr")
    with use("reference"):
        plain = look(record(network, make_image()).decoder[0], 3)
    chosen = look(record(network, make_image()).decoder[0], 3)
    torch.testing.assert_close(plain.locations, chosen.locations, rtol=1e-4, atol=1e-5)


def test_a_point_is_found_in_its_cell():
    memory = explained("deformable-detr").recording.memory
    assert memory.level_shapes[:2] == ((12, 16), (6, 8))
    assert cell_at(memory, (1.0, 1.0)) == 12 * 16 - 1
    assert cell_at(memory, (0.5, 0.25)) == 3 * 16 + 8
    assert cell_at(memory, (0.0, 0.0), level=1) == 12 * 16


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda e: e.look(24), "no query 24.* 24 queries"),
        (lambda e: e.look(0, 3), "no decoder layer 3.* 3"),
        (lambda e: e.look_from((1.2, 0.5)), "1.2,0.5 lies outside"),
        (lambda e: e.look_from((0.5, 0.5), level=4), "no level 4"),
        (lambda e: e.look_from((0.5, 0.5), layer=2), "no encoder layer 2"),
        (lambda e: e.verdicts(), "target="),
    ],
)
def test_impossible_questions_are_answered(ask, message):
    with pytest.raises(UserError, match=message):
        ask(explained("deformable-detr"))
