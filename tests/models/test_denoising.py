"""Denoising queries: what is inserted, and how often.

How noise moves boxes and what attends to what is compared with DINO's code in test_parity.py;
that detections do not depend on them, in test_every_preset.py.
"""

import pytest
import torch
from torch import nn

from detrlab.config import TrainConfig
from detrlab.errors import UserError
from detrlab.models.queries.denoising import DenoisingQueries, Noise
from detrlab.presets import build_network
from detrlab.structures import (
    FINAL,
    ImageBatch,
    ModelOutput,
    Pairs,
    Predictions,
    Queries,
    References,
    SupervisedSet,
    Target,
)
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")
CLASSES, WIDTH, REAL = 5, 8, 3


class Source(nn.Module):
    """Three queries that are always the same."""

    def forward(self, memory, targets=None):  # noqa: ARG002
        content = torch.ones(2, REAL, WIDTH)
        half = torch.full((2, REAL, 2), 0.5)
        return Queries(content, torch.zeros_like(content), References(half, half)), ()


def targets_of(*sizes):
    draw = torch.Generator().manual_seed(0)
    return [
        Target(
            torch.randint(CLASSES, (size,), generator=draw),
            torch.rand(size, 4, generator=draw) * 0.3 + 0.3,
        )
        for size in sizes
    ]


def quiet(repeats, objects):
    """No noise at all."""
    return Noise(
        torch.ones(repeats, objects),
        torch.zeros(repeats, objects, dtype=torch.long),
        torch.ones(repeats, objects, 4),
        torch.zeros(repeats, objects, 4),
    )


def module(**options):
    return DenoisingQueries(Source(), CLASSES, WIDTH, **options)


@pytest.mark.parametrize(
    ("number", "most", "groups"), [(100, 4, 25), (100, 300, 1), (50, 1, 50), (6, 4, 12), (1, 9, 2)]
)
def test_the_number_of_groups_follows_the_largest_image(number, most, groups):
    assert module(number=number).num_groups(most) == groups


@pytest.mark.parametrize("contrastive", [False, True])
def test_without_noise_the_objects_themselves_are_inserted(contrastive):
    source = module(contrastive=contrastive)
    kinds, targets = 1 + contrastive, targets_of(2, 1)
    queries = source.insert(source(None)[0], targets, quiet(3 * kinds, 3), most=2)
    count = 3 * kinds * 2
    assert queries.content.shape == (2, count + REAL, WIDTH)
    denoising = queries.denoising
    assert (denoising.num_queries, denoising.groups) == (count, 3)
    assert len(denoising.pairs.queries) == 3 * 3
    labels = torch.cat([each.labels for each in targets])[denoising.pairs.objects]
    boxes = torch.cat([each.boxes for each in targets])[denoising.pairs.objects]
    content = queries.content[:, :count].flatten(0, 1)[denoising.pairs.queries]
    torch.testing.assert_close(content, source.labels[labels])
    references = torch.cat([*queries.references], -1)[:, :count].flatten(0, 1)
    torch.testing.assert_close(references[denoising.pairs.queries], boxes)
    if contrastive:  # the second of each pair moved by half the box times the noise
        rejected = references[denoising.pairs.queries + 2]
        reach = boxes[:, 2:] / 2 * source.box_noise
        torch.testing.assert_close(rejected[:, :2], boxes[:, :2] + reach)
    empty = queries.content[1, 1]  # the second image has one object, its second place is empty
    assert not empty.any()
    torch.testing.assert_close(references.view(2, count, 4)[1, 1], torch.full((4,), 0.5))


def test_nothing_is_inserted_without_targets_or_objects():
    source = module()
    assert source(None)[0].denoising is None
    queries, _ = source(None, targets_of(0, 0))
    assert queries.denoising.num_queries == 0
    queries.content.sum().backward()
    assert source.labels.grad is not None  # several processes need a gradient everywhere
    assert not source.labels.grad.any()


def test_a_micro_batch_has_groups_of_its_own():
    """Losses are divided by them, so that each object counts the same."""
    config = tiny_config("dino-4scale", CLASSES, width=64, denoising=50)
    network, criterion = build_network(config), config.criterion(TrainConfig())
    images = ImageBatch(torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool))
    targets = targets_of(1, 3)
    counts = {}
    for name, piece in {"whole": slice(0, 2), "first": slice(0, 1)}.items():
        output = network(ImageBatch(*(part[piece] for part in images)), targets[piece])
        found = next(each for each in output.sets if each.name == "denoising_final")
        assert len(found.pairs.queries) == found.repeats * sum(
            len(each.labels) for each in targets[piece]
        )
        counts[name] = found.repeats
        assert criterion(output, targets[piece]).total.isfinite()
    assert counts == {"whole": 16, "first": 50}


@pytest.mark.parametrize(
    ("number", "objects", "remedy"),
    [(3000, 1, "at most 2000"), (40, 60, "50 or more"), (100, 2500, "without denoising")],
)
def test_more_queries_than_memory_holds(number, objects, remedy):
    with pytest.raises(UserError, match=f"denoising {number} makes .* {objects} objects.*{remedy}"):
        module(number=number)(None, targets_of(objects, 0))


def test_losses_do_not_depend_on_the_number_of_groups():
    """Processes and micro-batches differ in it; what their losses add up to must not."""
    criterion = tiny_config("dino-4scale", CLASSES).criterion(TrainConfig())
    (target,) = targets_of(3)
    once = Predictions(torch.randn(1, 6, CLASSES), torch.rand(1, 6, 4) * 0.5 + 0.2)
    totals = []
    for groups in (1, 4):
        places = torch.arange(3) + 6 * torch.arange(groups)[:, None]
        pairs = Pairs(places.flatten(), torch.arange(3).repeat(groups))
        repeated = Predictions(*(part.repeat(1, groups, 1) for part in once[:2]))
        sets = (
            SupervisedSet(FINAL, once),
            SupervisedSet("denoising_final", repeated, pairs, repeats=groups),
        )
        totals.append(criterion(ModelOutput((once,), sets), [target]).total)
    torch.testing.assert_close(*totals)


@pytest.mark.parametrize("preset", ["cdn-deformable-detr", "dino-4scale"])
def test_more_queries_than_cells_and_images_without_objects(preset):
    config = tiny_config(preset, CLASSES, num_queries=500)
    network = build_network(config)
    images = ImageBatch(torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool))
    targets = targets_of(0, 0)
    output = network(images, targets)
    assert output.final.boxes.shape[1] == 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2
    losses = config.criterion(TrainConfig())(output, targets)
    # Processes and micro-batches with and without objects add up the same losses.
    assert not any(losses.terms["denoising_final"].values())
    losses.total.backward()
    assert all(
        each.grad is not None and each.grad.isfinite().all()
        for each in network.parameters()
        if each.requires_grad
    )
