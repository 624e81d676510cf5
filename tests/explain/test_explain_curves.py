"""AP of each layer, matching stability, AP by size."""

import pytest
import torch
from scenes_explained import make_images, make_network

from detrlab.checkpoints import native
from detrlab.config import DataConfig
from detrlab.data import batches
from detrlab.data.shapes import shapes
from detrlab.errors import UserError
from detrlab.evaluation.coco import evaluate_layers
from detrlab.explain.curves import (
    Curves,
    EpochCurves,
    Watch,
    draw_layer_ap,
    draw_sizes,
    draw_stability,
    instability,
    observe,
    query_names,
)
from detrlab.presets import build_network
from REMOVED import Weights, match  # TODO
from tiny_detectors import tiny_config

DATA = DataConfig(image_size=64, max_size=64)


@pytest.fixture(scope="module")
def table():
    return shapes(train=1, val=10)[1]


def network_of(preset="deformable-detr-two-stage", seed=0):
    config = tiny_config(preset, num_classes=6)
    return build_network(config, seed=seed).eval(), config.scoring, config


def parts_of(table):
    return list(batches(table, DATA, batch=4, seed=0, epoch=0, train=False, workers=0))


def test_the_ap_of_each_layer_is_the_evaluations(table):
    network, scoring, _ = network_of()
    parts = parts_of(table)
    layer_ap, matchings = observe(network, scoring, parts, table)
    expected = [each.metrics().ap for each in evaluate_layers(network, scoring, parts, table)]
    assert list(layer_ap) == expected
    assert len(matchings) == 10


def test_matchings_are_the_matchers(table):
    network, scoring, _ = network_of("detr")
    parts = parts_of(table)
    _, matchings = observe(network, scoring, parts, table)
    batch = parts[0]
    with torch.no_grad():
        output = network(batch.images)
    for layer, predictions in enumerate(output.layers):
        pairs = match(predictions, batch.targets, scoring, Weights(scoring.class_weight))
        for index, image_id in enumerate(batch.image_ids):
            seen = matchings[str(image_id)][layer]
            for query, thing in zip(*pairs[index], strict=True):
                assert seen[int(thing)] == int(query)


def test_a_two_stage_query_is_known_by_its_cell():
    network, _ = make_network("deformable-detr-two-stage")
    with torch.no_grad():
        output = network(make_images())
    names = query_names(output)
    assert all(len(set(row)) == len(row) for row in names.tolist())
    objectness = output.proposals.logits[..., 0]
    assert torch.equal(objectness.gather(1, names), objectness.topk(24, dim=1).values)


def test_instability_counts_changed_queries():
    before = {"1": [[3, 4, 5], [3, 4, 5]], "2": [[7], [7]], "gone": [[1], [1]]}
    after = {"1": [[3, 9, 5], [8, 9, 5]], "2": [[7], [6]], "new": [[1], [1]]}
    assert instability(before, after) == (1 / 4, 3 / 4)
    assert instability({}, after) == ()


def write_weights(folder, seed, table):
    network, _, config = network_of("deformable-detr-refine", seed)
    path = folder / "weights" / "last.safetensors"
    path.parent.mkdir(exist_ok=True)
    native.save(path, network, config, table.classes, table.category_ids, DATA)


def test_a_run_is_watched_over_a_resume(tmp_path, table):
    watch = Watch(tmp_path, table, images=5)
    assert len(watch.table) == 5
    write_weights(tmp_path, 0, table)
    watch({"epoch": 1})
    write_weights(tmp_path, 1, table)
    Watch(tmp_path, table, images=5)({"epoch": 2})
    Watch(tmp_path, table, images=5)({"epoch": 2})  # the epoch was repeated
    curves = Curves.load(tmp_path / "curves.json")
    assert [each.epoch for each in curves.epochs] == [1, 2]
    assert curves.epochs[0].unstable == ()
    assert len(curves.epochs[1].layer_ap) == len(curves.epochs[1].unstable) == 3
    # The same weights again: nothing has changed its query.
    assert curves.epochs[1].unstable == (0, 0, 0)


def test_a_damaged_file_says_so_and_stops_no_training(tmp_path, table):
    (tmp_path / "curves.json").write_text("{")
    with pytest.raises(UserError, match="delete it to begin anew"):
        Curves.load(tmp_path / "curves.json")
    write_weights(tmp_path, 0, table)
    Watch(tmp_path, table, images=2)({"epoch": 3})
    assert [each.epoch for each in Curves.load(tmp_path / "curves.json").epochs] == [3]


def test_the_pictures_hold_the_numbers():
    runs = {
        "one": Curves((EpochCurves(1, (0.1, 0.2)), EpochCurves(2, (0.2, 0.3), (0.5, 0.25)))),
        "two": Curves((EpochCurves(1, (None, 0.1)),)),
        "none": Curves(),
    }
    (axes,) = draw_layer_ap(runs).axes
    assert axes.lines[0].get_ydata() == pytest.approx([20, 30])
    assert axes.lines[1].get_ydata()[1] == pytest.approx(10)
    assert draw_stability(runs).axes[0].lines[0].get_ydata() == pytest.approx([25])
    rows = [{"epoch": "1", "ap_small": "", "ap_medium": "0.5", "ap_large": 0.25}]
    figure = draw_sizes({"one": rows})
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx([50])
    assert figure.axes[2].lines[0].get_ydata() == pytest.approx([25])
