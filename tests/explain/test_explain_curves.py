"""AP of each layer and matching stability, recorded from a run's own evaluation."""

import pytest
import torch

from detrlab.config import DataConfig, TrainConfig
from detrlab.data import batches
from detrlab.data.shapes import shapes
from detrlab.errors import UserError
from detrlab.evaluation.coco import Evaluator, as_ground_truth, evaluate, evaluate_layers
from detrlab.explain.curves import CurveRecorder, Curves, instability, query_names
from detrlab.presets import build_network
from tiny_detectors import tiny_config

DATA = DataConfig(image_size=64, max_size=64)


@pytest.fixture(scope="module")
def table():
    return shapes(train=1, val=10)[1]


def network_of(preset="deformable-detr-two-stage", seed=0):
    config = tiny_config(preset, num_classes=6)
    return build_network(config, seed=seed).eval(), config.criterion(TrainConfig())


def parts_of(table):
    return list(batches(table, DATA, batch=4, seed=0, epoch=0, train=False, workers=0))


def train_epoch(recorder, network, table, epoch):
    """What a run does after an epoch."""
    evaluator = Evaluator(as_ground_truth(table))
    scoring = recorder.criterion.scoring
    evaluate(network, scoring, parts_of(table), evaluator, on_batch=recorder.on_batch)
    recorder.on_epoch({"epoch": epoch})
    return Curves.load(recorder.path)


@pytest.mark.parametrize("images", [10, 5])
def test_the_ap_of_each_layer_is_the_evaluations(tmp_path, table, images):
    network, criterion = network_of()
    curves = train_epoch(CurveRecorder(tmp_path, table, criterion, images), network, table, 1)
    judged = table.select(range(0, 10, 10 // images))
    layers = evaluate_layers(network, criterion.scoring, parts_of(judged), judged)
    assert curves.epochs[0].layer_ap == pytest.approx([each.metrics().ap for each in layers])
    assert set(curves.matchings) == {str(judged.image_id(i)) for i in range(images)}


def test_matchings_are_the_matchers(tmp_path, table):
    network, criterion = network_of("detr")
    seen = train_epoch(CurveRecorder(tmp_path, table, criterion), network, table, 1).matchings
    for batch in parts_of(table):
        with torch.no_grad():
            output = network(batch.images)
        for layer, predictions in enumerate(output.layers):
            pairs = criterion.matcher([predictions], batch.targets).sets[0]
            for image_id, (queries, objects) in zip(batch.image_ids, pairs, strict=True):
                row = torch.tensor(seen[str(image_id)][layer])
                assert torch.equal(row[objects], queries)


def test_a_two_stage_query_is_known_by_its_cell(table):
    network, _ = network_of()
    batch = parts_of(table)[0]
    with torch.no_grad():
        output = network(batch.images, batch.targets)
    names = query_names(output)
    assert all(len(set(row)) == len(row) for row in names.tolist())
    objectness = output.proposals.logits[..., 0]
    assert torch.equal(objectness.gather(1, names), objectness.topk(names.shape[1], dim=1).values)


def test_instability_counts_changed_queries():
    before = {"1": [[3, 4, 5], [3, 4, 5]], "2": [[7], [7]], "gone": [[1], [1]]}
    after = {"1": [[3, 9, 5], [8, 9, 5]], "2": [[7], [6]], "new": [[1], [1]]}
    assert instability(before, after) == (1 / 4, 3 / 4)
    assert instability({}, after) == ()


def test_a_run_is_recorded_over_a_resume(tmp_path, table):
    one, criterion = network_of("deformable-detr-refine", seed=0)
    other, _ = network_of("deformable-detr-refine", seed=1)
    train_epoch(CurveRecorder(tmp_path, table, criterion), one, table, 1)
    resumed = CurveRecorder(tmp_path, table, criterion)
    train_epoch(resumed, other, table, 2)
    resumed.on_epoch({"epoch": 3})  # nothing was evaluated: nothing is written
    curves = train_epoch(CurveRecorder(tmp_path, table, criterion), other, table, 2)  # repeated
    assert [each.epoch for each in curves.epochs] == [1, 2]
    assert curves.epochs[0].unstable == ()
    # The same weights again: no object has changed its query.
    assert curves.epochs[1].unstable == (0, 0, 0)


def test_a_damaged_file_says_so_and_stops_no_training(tmp_path, table):
    path = tmp_path / "curves.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"curves.json.*delete"):
        Curves.load(path)
    network, criterion = network_of("detr")
    curves = train_epoch(CurveRecorder(tmp_path, table, criterion, images=2), network, table, 3)
    assert [each.epoch for each in curves.epochs] == [3]
