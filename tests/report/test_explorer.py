"""What the page's browser holds, compared with the explanation and the evaluation."""

import json

import numpy as np
import pytest
import torch

from compare_cases import small_recipe, write_data
from detrlab.api import load
from detrlab.checkpoints import native
from detrlab.compare.results import METRICS, RunResult, rows
from detrlab.data import open_data
from detrlab.evaluation.records import GroundTruth
from detrlab.presets import build_network
from detrlab.report.explorer import EXPLAINED, exploration, load_detector
from detrlab.report.gallery import choose, exhibits, view_of
from detrlab.report.story import MAPPED, attention_map

MODELS = ("detr", "deformable-detr-two-stage")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Two detectors with weights and one without, on the same six images."""
    from detrlab.compare.entrants import named

    folder = tmp_path_factory.mktemp("explorer")
    data = open_data(write_data(folder / "data"))
    truth = GroundTruth.from_coco(data.val.coco_ground_truth())
    recipe = small_recipe(folder / "data")
    results = []
    for number, entrant in enumerate([*named(MODELS), None]):
        name = entrant.name if entrant else "other"
        run = folder / "runs" / name
        (run / "weights").mkdir(parents=True)
        if entrant:
            model, _, settings = entrant.configs(recipe, 2)
            network = build_network(model, seed=number)
            with torch.no_grad():
                for head in network.decoder.heads:
                    head.classes.bias.add_(5.0)
            path = run / "weights" / "last.safetensors"
            native.save(path, network, model, data.val.classes, data.val.category_ids, settings)
            detector = load(path)
            pictures = [data.val.picture(i) for i in range(len(data.val))]
            found = detector.predict(pictures, threshold=None)
            records = [
                {**record, "image_id": data.val.image_id(i)}
                for i, each in enumerate(found)
                for record in each.to_coco()
            ]
        (run / "predictions.json").write_text(json.dumps(records))
        metrics = {**dict.fromkeys(METRICS, 0.1), "per_class": dict.fromkeys(data.val.classes, 0.1)}
        where = "" if entrant is None else f"runs/{name}"
        file = f"runs/{name}/predictions.json"
        results.append(RunResult(name, 1 if entrant else None, name, metrics, file, where))
    table = rows(results, [each.entrant for each in results])
    views = [view_of(row, truth, folder) for row in table]
    chosen = choose(truth, 3)
    shown = exhibits(views, truth, data.val, chosen)
    explored = exploration(views, shown, truth, data.val)
    return folder, data, truth, chosen, explored


def test_it_says_what_the_detectors_say(scene):
    folder, data, truth, chosen, explored = scene
    assert [model["explained"] for model in explored["models"]] == [True, True, False]
    for number, index in enumerate(chosen):
        image = explored["images"][number]
        place = [data.val.image_id(i) for i in range(len(data.val))].index(truth.image_ids[index])
        for order, name in enumerate(MODELS):
            detector = load(folder / "runs" / name / "weights" / "last.safetensors")
            explanation = detector.explain(data.val.picture(place))
            told = image["models"][order]["boxes"]
            for box, found in zip(told, explanation.detections(), strict=False):
                assert box["s"] == pytest.approx(found.score, abs=6e-4)
                assert box["l"] == found.label
                x, y, w, h = found.box
                expected = [(x - w / 2) * image["width"], (y - h / 2) * image["height"],
                            w * image["width"], h * image["height"]]  # fmt: skip
                assert box["b"] == pytest.approx(expected, abs=0.06)
            assert all(box["path"][-1]["b"] == box["b"] for box in told[:EXPLAINED])
            assert all("path" not in box for box in told[EXPLAINED:])


def test_points_are_those_of_the_explanation(scene):
    folder, data, truth, chosen, explored = scene
    box = explored["images"][0]["models"][1]["boxes"][0]
    place = [data.val.image_id(i) for i in range(len(data.val))].index(truth.image_ids[chosen[0]])
    detector = load(folder / "runs" / MODELS[1] / "weights" / "last.safetensors")
    look = detector.explain(data.val.picture(place)).look(box["q"])
    points = np.array(box["points"]).reshape(-1, 4)
    heads, levels, count = look.weights.shape
    assert len(points) == heads * levels * count
    assert points[:, 2].sum() == pytest.approx(10_000, abs=len(points))
    expected = (look.locations.reshape(-1, 2) * 1000).round().numpy()
    assert sorted(map(tuple, points[:, :2])) == sorted(map(tuple, expected.astype(int)))
    assert np.bincount(points[:, 3]).tolist() == [heads * count] * levels


def test_another_tool_has_boxes_and_no_story(scene):
    *_, explored = scene
    for image in explored["images"]:
        told = image["models"][2]
        assert told["why"] == []
        assert all(set(box) == {"b", "l", "s"} for box in told["boxes"])
        scores = [box["s"] for box in told["boxes"]]
        assert scores == sorted(scores, reverse=True)


def test_every_object_has_a_reason_and_a_query_to_look_at(scene):
    *_, explored = scene
    for image in explored["images"]:
        for told in image["models"][:2]:
            assert len(told["why"]) == len(image["truth"])
            known = {box["q"] for box in [*told["boxes"], *told["others"]] if "q" in box}
            assert {each["q"] for each in told["why"]} <= known


def test_a_fine_map_is_averaged_down_over_all_of_it():
    weights = torch.rand(41, 39, generator=torch.Generator().manual_seed(0))
    told = attention_map(weights)
    rows_, columns = told["shape"]
    assert rows_ * columns <= MAPPED
    assert max(told["weights"]) == 255
    corner = torch.zeros(41, 39)
    corner[-1, -1] = 1.0
    assert attention_map(corner)["weights"][-1] == 255


def test_damaged_weights_do_not_stop_the_page(tmp_path):
    assert load_detector(tmp_path) is None
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "last.safetensors").write_bytes(b"no weights")
    assert load_detector(tmp_path) is None
