import dataclasses
import json
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scenes import NUMBERS, fill, perfect, pycocotools_metrics, scene

from detrlab.data.shapes import shapes
from detrlab.errors import UserError
from detrlab.evaluation.coco import Evaluator, accumulate, evaluate, evaluate_layers, gather
from detrlab.evaluation.records import Detected, GroundTruth, protocol_rows
from detrlab.scoring import SigmoidScoring
from detrlab.structures import ImageBatch, ModelOutput, Predictions


def assert_equal(metrics, expected):
    mine = metrics.to_dict()
    assert list(mine) == [*NUMBERS, "per_class"]
    for name in NUMBERS:
        assert mine[name] == pytest.approx(expected[name], abs=1e-9), name
    assert mine["per_class"] == pytest.approx(expected["per_class"], abs=1e-9)


SCENES = {
    "ordinary": {},
    "ties": {"decimals": 1},
    "crowds": {"crowd_share": 0.6},
    "no crowds": {"crowd_share": 0.0},
    "one class": {"num_classes": 1},
    "more classes than objects": {"num_classes": 40, "num_images": 4},
    "sloppy": {"jitter": 0.3, "found": 0.5},
    "beyond 100 detections": {"num_images": 3, "num_classes": 1, "false_alarms": 150},
    "beyond 100, ties": {"num_images": 3, "num_classes": 2, "false_alarms": 250, "decimals": 1},
    "misses everything": {"found": 0.0},
    "one image": {"num_images": 1},
    "overlaps exactly on the thresholds": {"on_grid": True, "jitter": 0.15},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SCENES)
def test_metrics_equal_pycocotools(name, seed):
    truth, results = scene(seed, **SCENES[name])
    if not results:
        pytest.skip("pycocotools cannot read an empty list of results")
    metrics = fill(Evaluator(truth), results).metrics()
    assert_equal(metrics, pycocotools_metrics(truth, results))


@pytest.mark.parametrize("name", SCENES)
def test_metrics_by_groups_of_classes_are_the_same_to_the_last_bit(name, monkeypatch):
    """What keeps 30 million detections in little memory changes nothing."""
    truth, results = scene(3, **SCENES[name])
    evaluator = fill(Evaluator(truth), results)
    whole = accumulate(evaluator.truth, evaluator.detected())
    monkeypatch.setattr("detrlab.evaluation.coco.AT_A_TIME", 1)
    parts = accumulate(evaluator.truth, evaluator.detected())
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert evaluator.metrics() == whole.metrics(evaluator.truth.classes)


def test_detections_of_a_network_are_kept_in_half_the_bytes():
    truth, _ = scene(4)
    draw = np.random.default_rng(0)
    corners = draw.uniform(0, 500, (90, 4)).astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    scores, labels = draw.uniform(size=90).astype(np.float32), draw.integers(4, size=90)
    single, double = Evaluator(truth), Evaluator(truth)
    for i, image_id in enumerate(single.truth.image_ids):
        values = torch.tensor(corners) if i % 2 else corners
        single.add(image_id, values, scores, labels)
        double.add(image_id, corners.astype(np.float64), scores.astype(np.float64), labels)
    for _ in range(2):  # the second time from views of the joined columns
        for name in ("image", "label", "boxes", "score"):
            ours, expected = (getattr(each.detected(), name) for each in (single, double))
            np.testing.assert_array_equal(ours, expected)
            assert ours.dtype == expected.dtype
    kept = sum(column.nbytes for part in single._parts.values() for column in part)
    assert kept == 24 * len(single.detected())
    mixed = Evaluator(truth)
    mixed.extend(double.detected().select(double.detected().image < 5))
    for image_id in mixed.truth.image_ids[5:]:
        mixed.add(image_id, corners, scores, labels)
    assert mixed.metrics() == single.metrics() == double.metrics()


def test_a_table_is_judged_as_its_coco_document():
    table = shapes(train=1, val=12)[1]
    for each in (
        table,
        replace(table, image_ids=np.array([*range(6), *map(str, range(6))], dtype=object)),
        replace(table, image_ids=table.image_ids[::-1].copy(), areas=table.areas * np.nan),
    ):
        ours, expected = (
            GroundTruth.from_table(each),
            GroundTruth.from_coco(each.coco_ground_truth()),
        )
        for field in dataclasses.fields(GroundTruth):
            one, other = getattr(ours, field.name), getattr(expected, field.name)
            if isinstance(other, np.ndarray):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
            else:
                assert one == other
    with pytest.raises(UserError, match="appears twice"):
        GroundTruth.from_table(replace(table, image_ids=table.image_ids * 0))


def test_the_file_of_predictions_is_plain_json(tmp_path):
    truth, _ = scene(8, num_images=2, string_ids=True)
    truth["images"][0]["id"] = 'é "quoted"'
    truth["annotations"] = []
    evaluator = Evaluator(truth)
    evaluator.add('é "quoted"', [[1, 2, 3.5, 1e-9]], [1e-7], [2])
    evaluator.save_predictions(tmp_path / "p.json")
    record = {"image_id": 'é "quoted"', "category_id": 7, "bbox": [1.0, 2.0, 2.5, 1e-9 - 2]}
    text = json.dumps({**record, "score": 1e-7})
    assert (tmp_path / "p.json").read_text() == f"[\n{text}\n]\n"


def test_sizes_and_classes_without_objects_are_unjudged():
    truth, results = scene(0)
    small = [{**each, "area": 100.0} for each in truth["annotations"]]
    crowds = [{**each, "iscrowd": int(each["category_id"] == 3)} for each in small]
    for annotations in (small, crowds):
        truth["annotations"] = annotations
        metrics = fill(Evaluator(truth), results).metrics()
        assert metrics.ap_large is None
        assert metrics.ar_medium is None
        assert (metrics.per_class["class 0"] is None) == (annotations is crowds)
        assert_equal(metrics, pycocotools_metrics(truth, results))
    truth["annotations"] = []
    metrics = fill(Evaluator(truth), results).metrics()
    assert {metrics.to_dict()[name] for name in NUMBERS} == {None}


def test_a_class_without_objects_is_none_and_left_out_of_the_mean():
    truth, results = scene(1)
    truth["annotations"] = [a for a in truth["annotations"] if a["category_id"] != 5]
    metrics = fill(Evaluator(truth), results).metrics()
    judged = [value for value in metrics.per_class.values() if value is not None]
    assert metrics.per_class["class 1"] is None
    assert metrics.ap == pytest.approx(np.mean(judged))
    json.dumps(metrics.to_dict(), allow_nan=False)


def test_the_order_of_the_images_changes_nothing():
    truth, results = scene(3, decimals=1)
    metrics = fill(Evaluator(truth), results).metrics()
    truth["images"].reverse()
    backwards = Evaluator(truth)
    for image in truth["images"]:
        one = fill(Evaluator({**truth, "annotations": [], "images": [image]}), results)
        part = one.detected()
        index = backwards.truth.image_index[image["id"]]
        backwards.extend(dataclasses.replace(part, image=np.full(len(part), index)))
    assert backwards.metrics() == metrics


def test_text_ids_and_untidy_headers_are_welcome():
    truth, results = scene(4, string_ids=True)
    numbered = {image["id"]: i for i, image in enumerate(sorted(truth["images"], key=str))}
    metrics = fill(Evaluator({**truth, "info": {"year": "2022"}, "licenses": 3}), results).metrics()
    for rows, key in ((truth["images"], "id"), (truth["annotations"], "image_id")):
        for row in rows:
            row[key] = numbered[row[key]]
    for row in results:
        row["image_id"] = numbered[row["image_id"]]
    assert_equal(metrics, pycocotools_metrics(truth, results))


def test_annotation_id_zero_counts_like_any_other():
    """pycocotools takes a match with annotation 0 for none at all."""
    truth, _ = scene(5, num_images=4, crowd_share=0.0)
    for i, annotation in enumerate(truth["annotations"]):
        annotation["id"] = i
    assert fill(Evaluator(truth), perfect(truth)).metrics().ap == pytest.approx(1.0)
    assert pycocotools_metrics(truth, perfect(truth))["ap"] < 0.999


def test_saved_predictions_give_the_same_metrics_to_the_last_bit(tmp_path):
    truth, results = scene(6)
    evaluator = fill(Evaluator(truth), results)
    evaluator.save_predictions(tmp_path / "predictions.json")
    again = json.loads((tmp_path / "predictions.json").read_text())
    assert sorted(map(str, again[0])) == ["bbox", "category_id", "image_id", "score"]
    expected = pycocotools_metrics(truth, again)
    assert evaluator.metrics().ap == pytest.approx(expected["ap"], abs=1e-12)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    nothing = Evaluator(truth)
    nothing.save_predictions(tmp_path / "predictions.json")
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    assert nothing.metrics().ap == nothing.metrics().ar100 == 0.0


def test_at_most_a_hundred_detections_a_class_are_kept():
    truth, results = scene(7, num_images=2, num_classes=2, false_alarms=600)
    evaluator = fill(Evaluator(truth), results)
    kept = evaluator.detected()
    _, counts = np.unique(np.stack([kept.image, kept.label]), axis=1, return_counts=True)
    assert counts.max() == 100
    assert len(results) > len(kept)


def test_equal_scores_keep_the_earlier_and_their_order():
    detected = Detected(
        image=np.zeros(5, np.int64),
        label=np.array([1, 0, 1, 1, 0]),
        boxes=np.arange(20.0).reshape(5, 4),
        score=np.array([0.5, 0.2, 0.5, 0.9, 0.2]),
    )
    assert sorted(protocol_rows(detected, limit=1)) == [1, 3]


def test_mistakes_are_named():
    truth, results = scene(0)
    evaluator = fill(Evaluator(truth), results)
    gather(evaluator)  # a single process: nothing changes
    empty = np.zeros((0, 4)), np.zeros(0), np.zeros(0)
    with pytest.raises(UserError, match="image 9999 is not in"):
        evaluator.add(9999, *empty)
    with pytest.raises(UserError, match="evaluated twice"):
        evaluator.add(evaluator.truth.image_ids[0], *empty)
    with pytest.raises(UserError, match="1 of 1 detections are not finite"):
        Evaluator(truth).add(7, np.full((1, 4), np.nan), np.ones(1), np.zeros(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 12345}, "image_id 12345"),
        ({"category_id": 0}, "category_id 0"),
        ({"bbox": [0, 0, float("nan"), 1]}, "four finite numbers"),
        ({"bbox": [0, 0, 1]}, "four finite numbers"),
        ({"bbox": None}, "four finite numbers"),
    ],
)
def test_broken_annotations_are_named(change, message):
    truth, _ = scene(0)
    truth["annotations"][3].update(change)
    with pytest.raises(UserError, match=message) as caught:
        GroundTruth.from_coco(truth)
    assert "annotation 4" in str(caught.value)


def test_doubled_and_missing_parts_are_named():
    truth, _ = scene(0)
    with pytest.raises(UserError, match="image id 0 appears twice"):
        GroundTruth.from_coco({**truth, "images": [*truth["images"], {"id": 0}]})
    with pytest.raises(UserError, match="no list 'categories'"):
        GroundTruth.from_coco({"images": [], "annotations": []})


class ToyBatch(NamedTuple):
    images: ImageBatch
    image_ids: tuple
    original_sizes: tuple


class Oracle(torch.nn.Module):
    """Knows the answer for every image from its first pixel."""

    def __init__(self, answers):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.answers = answers

    def forward(self, images):
        assert not self.training
        rows = [self.answers[int(pixels[0, 0, 0])] for pixels in images.pixels]
        logits, boxes = (torch.stack(parts) for parts in zip(*rows, strict=True))
        prediction = Predictions(logits * self.scale, boxes)
        return ModelOutput((prediction, prediction), None)


def batch_of(number, image_id):
    pixels = torch.full((1, 3, 4, 4), float(number))
    images = ImageBatch(pixels, torch.zeros(1, 4, 4, dtype=torch.bool))
    return ToyBatch(images, (image_id,), ((480, 640),))


def test_a_network_that_knows_the_answer_reaches_one():
    truth, _ = scene(9, crowd_share=0.0, num_classes=3)
    ground_truth = GroundTruth.from_coco(truth)
    answers, batches = {}, []
    for i, image_id in enumerate(ground_truth.image_ids):
        logits, boxes = torch.full((20, 3), -9.0), torch.rand(20, 4) * 0.1 + 0.4
        rows = np.flatnonzero(ground_truth.image == i)
        for query, row in enumerate(rows):
            x, y, w, h = ground_truth.boxes[row]
            cxcywh = torch.tensor([x + w / 2, y + h / 2, w, h])
            boxes[query] = cxcywh / torch.tensor([640, 480, 640, 480])
            logits[query, ground_truth.label[row]] = 5.0
        answers[i] = (logits, boxes)
        batches.append(batch_of(i, image_id))
    network = Oracle(answers).train()
    evaluator = Evaluator(ground_truth)
    evaluate(network, SigmoidScoring(), batches, evaluator)
    assert evaluator.num_images == 12
    assert evaluator.metrics().ap == pytest.approx(1.0)
    assert network.training


def test_every_decoder_layer_is_judged_by_itself():
    truth, _ = scene(3)
    answers = [{i: (torch.randn(5, 4), torch.rand(5, 4)) for i in range(12)} for _ in range(2)]
    layers = torch.nn.ModuleList(map(Oracle, answers))

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, images):
            assert not torch.is_grad_enabled()
            return ModelOutput(tuple(layer(images).final for layer in self.layers), None)

    ids = Evaluator(truth).truth.image_ids
    batches = [batch_of(i, image_id) for i, image_id in enumerate(ids)]
    both = evaluate_layers(Two(), SigmoidScoring(), batches, truth)
    assert torch.is_grad_enabled()
    for layer, evaluator in zip(layers, both, strict=True):
        alone = Evaluator(truth)
        evaluate(layer, SigmoidScoring(), batches, alone)
        assert evaluator.metrics() == alone.metrics()


def share_of_rank(rank, store, out):
    """What one of two processes does: half of the images, then everything."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    truth, results = scene(1)
    evaluator = Evaluator(truth)
    whole = fill(Evaluator(truth), results).detected()
    evaluator.extend(whole.select(whole.image % 2 == rank))
    gather(evaluator)
    (out / f"{rank}.json").write_text(json.dumps(evaluator.metrics().to_dict()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_that_gather_see_what_one_sees(tmp_path):
    torch.multiprocessing.spawn(share_of_rank, (tmp_path / "store", tmp_path), nprocs=2)
    truth, results = scene(1)
    expected = fill(Evaluator(truth), results).metrics().to_dict()
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected
