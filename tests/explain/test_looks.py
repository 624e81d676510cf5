"""Attention rows and sampling points against what the attention really computed."""

import math

import pytest
import torch
import torch.nn.functional as F
from scenes_explained import PRESETS, explained, make_images, make_network

from detrlab.errors import UserError
from detrlab.explain.attention import as_maps, attention_row, cell_at, level_of
from detrlab.explain.capture import record
from detrlab.explain.sampling import samples
from detrlab.models.attention import DeformableAttention, DenseAttention
from detrlab.ops.deformable import use

DENSE = [name for name in PRESETS if not name.startswith("deformable")]
DEFORMABLE = [name for name in PRESETS if name.startswith("deformable")]


def answers(network, images):
    """What every attention over the memory really gave, caught beside the recording."""
    given = {}
    handles = [
        module.register_forward_hook(lambda m, _, out: given.__setitem__(m, out))
        for module in network.modules()
        if isinstance(module, DenseAttention | DeformableAttention)
    ]
    recording = record(network, images)
    for handle in handles:
        handle.remove()
    return recording, given


def some_queries(call):
    """A few queries; in the encoder also the first and the last cell of the unpadded part."""
    count = call.query.shape[1]
    return sorted({0, 1, count // 2, count - 1})


@pytest.mark.parametrize("preset", DENSE)
@pytest.mark.parametrize("image", [0, 1])
def test_a_dense_row_gives_what_the_attention_gave(preset, image):
    network, _ = make_network(preset)
    recording, given = answers(network, make_images())
    for call in (*recording.encoder, *recording.decoder):
        attention, memory = call.attention, call.memory
        width = memory.tokens.shape[-1]
        values = F.linear(
            memory.tokens[image],
            attention.in_proj_weight[2 * width :],
            attention.in_proj_bias[2 * width :],
        )
        for query in some_queries(call):
            row = attention_row(call, image, query)
            heads = values.unflatten(-1, (attention.num_heads, -1))
            mixed = torch.stack(
                [weights @ heads[:, head] for head, weights in enumerate(row)]
            ).flatten()
            torch.testing.assert_close(
                attention.out_proj(mixed), given[attention][image, query], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("preset", DENSE)
def test_a_dense_row_is_torchs_own(preset):
    network, _ = make_network(preset)
    recording = record(network, make_images())
    for call in (*recording.encoder, *recording.decoder):
        attention, memory = call.attention, call.memory
        _, expected = F.multi_head_attention_forward(
            call.query.transpose(0, 1),
            (memory.tokens + memory.position).transpose(0, 1),
            memory.tokens.transpose(0, 1),
            memory.tokens.shape[-1],
            attention.num_heads,
            attention.in_proj_weight,
            attention.in_proj_bias,
            None,
            None,
            False,
            0.0,
            attention.out_proj.weight,
            attention.out_proj.bias,
            training=False,
            key_padding_mask=memory.padding,
            average_attn_weights=False,
        )
        for query in some_queries(call):
            row = attention_row(call, 1, query)
            torch.testing.assert_close(row, expected[1, :, query], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(row.sum(-1), torch.ones(len(row)))
            assert (row[:, memory.padding[1]] == 0).all()


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
@pytest.mark.parametrize("image", [0, 1])
def test_sampling_points_give_what_the_attention_gave(preset, image):
    network, _ = make_network(preset)
    recording, given = answers(network, make_images())
    for call in (recording.encoder[-1], *recording.decoder):
        attention, memory = call.attention, call.memory
        values = attention.value_proj(memory.tokens[image])
        values[memory.padding[image]] = 0.0
        sizes = [height * width for height, width in memory.level_shapes]
        grids = [
            part.T.unflatten(0, (attention.num_heads, -1)).unflatten(-1, shape)
            for part, shape in zip(values.split(sizes), memory.level_shapes, strict=True)
        ]  # (M, D / M, h, w) of each level
        queries = some_queries(call)
        seen = samples(call, image, queries)
        for row, query in enumerate(queries):
            mixed = torch.zeros(attention.num_heads, values.shape[-1] // attention.num_heads)
            for head in range(attention.num_heads):
                for level in range(attention.levels):
                    ratio = memory.valid_ratios[image, level]
                    for point in range(attention.points):
                        x, y = (seen.locations[row, head, level, point] * ratio).tolist()
                        mixed[head] += seen.weights[row, head, level, point] * bilinear(
                            grids[level][head], x, y
                        )
            torch.testing.assert_close(
                attention.output_proj(mixed.flatten()),
                given[attention][image, query],
                rtol=1e-4,
                atol=1e-4,
            )


@pytest.mark.parametrize("preset", DEFORMABLE)
def test_the_weights_of_a_head_sum_to_one(preset):
    explanation = explained(preset)
    for layer in range(3):
        seen = explanation.look(5, layer)
        heads = explanation.recording.decoder[layer].attention.num_heads
        torch.testing.assert_close(seen.weights.sum((2, 3)), torch.ones(1, heads))


def test_points_lie_around_their_reference_at_first():
    """With the originals' initial values head 0 looks right, by whole cells of each level."""
    from detrlab.presets import build_network
    from tiny_detectors import tiny_config

    network = build_network(tiny_config("deformable-detr", 3))
    recording = record(network, make_images())
    seen = samples(recording.decoder[0], 1, [4])
    shapes = torch.tensor([(w, h) for h, w in recording.memory.level_shapes])
    cells = (seen.locations[0] - seen.references.centers[0]) * recording.memory.valid_ratios[1][
        None, :, None
    ]
    cells = cells * shapes[None, :, None]
    torch.testing.assert_close(
        cells[0],
        torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]).expand(4, 4, 2),
        atol=1e-4,
        rtol=0,
    )


def test_the_points_do_not_depend_on_the_backend():
    network, _ = make_network("deformable-detr")
    with use("reference"):
        plain = samples(record(network, make_images()).decoder[0], 1, [3])
    chosen = samples(record(network, make_images()).decoder[0], 1, [3])
    torch.testing.assert_close(plain.locations, chosen.locations, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_object_queries_share_out_their_attention(preset):
    explanation = explained(preset)
    row = explanation.look_at_queries(3, layer=1)
    assert row.shape == (4, explanation.num_queries)
    torch.testing.assert_close(row.sum(-1), torch.ones(4))
    call = explanation.recording.among_queries[1]
    content, position = call.content.transpose(0, 1), call.position.transpose(0, 1)
    _, expected = F.multi_head_attention_forward(
        content + position,
        content + position,
        content,
        content.shape[-1],
        4,
        call.attention.in_proj_weight,
        call.attention.in_proj_bias,
        None,
        None,
        False,
        0.0,
        call.attention.out_proj.weight,
        call.attention.out_proj.bias,
        training=False,
        average_attn_weights=False,
    )
    torch.testing.assert_close(row, expected[1, :, 3], rtol=1e-4, atol=1e-6)


def test_a_point_is_looked_up_in_the_unpadded_part():
    network, _ = make_network("deformable-detr")
    memory = record(network, make_images()).memory
    assert memory.level_shapes[0] == (12, 16)
    # Image 1 fills 8 x 12 cells of the finest level; its far corner is the cell (7, 11).
    assert cell_at(memory, 1, (1.0, 1.0)) == 7 * 16 + 11
    assert cell_at(memory, 0, (1.0, 1.0)) == 12 * 16 - 1
    assert cell_at(memory, 1, (0.0, 0.0), level=1) == 12 * 16
    assert level_of(memory, 12 * 16 - 1) == 0
    assert level_of(memory, 12 * 16) == 1


def test_maps_are_the_row_without_the_padding():
    explanation = explained("detr")
    row = explanation.look(2)
    memory = explanation.recording.memory
    (whole,) = as_maps(row.weights, memory, 1)
    height, width = memory.level_shapes[0]
    assert torch.equal(row.maps[0], whole)
    assert torch.equal(
        whole, row.weights.view(4, height, width)[:, : whole.shape[1], : whole.shape[2]]
    )
    torch.testing.assert_close(whole.sum((1, 2)), torch.ones(4))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda e: e.look(24), "there is no query 24: this detector has 24 queries"),
        (lambda e: e.look(0, 3), "no decoder layer 3: this detector has 3"),
        (lambda e: e.look_from((1.2, 0.5)), "lies outside the image"),
        (lambda e: e.look_from((0.5, 0.5), level=4), "there is no level 4"),
        (lambda e: e.look_from((0.5, 0.5), layer=2), "no encoder layer 2"),
        (lambda e: e.verdicts(), "no annotated objects"),
    ],
)
def test_impossible_questions_are_answered(ask, message):
    with pytest.raises(UserError, match=message):
        ask(explained("deformable-detr"))
