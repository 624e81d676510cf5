"""The published ONNX files of DEIMv2, judged: the same AP as pycocotools gives."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from detrlab.compare import Trained, compare
from detrlab.data import open_whole
from detrlab.errors import UserError
from detrlab.evaluation.predictor import judge
from detrlab.export import load
from detrlab.recipes import recipe

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def weights(shared_data):
    folder = shared_data.parent / "weights"
    if not (folder / "deimv2_femto_coco.onnx").is_file():
        pytest.skip("the published files do not lie beside the checkout (../shared/weights)")
    return folder


@pytest.fixture(scope="module")
def people(shared_data, weights, tmp_path_factory):
    """Photographs whose truth are the persons and ties that Femto is sure of, moved a little.

    They have no labels of COCO's classes; moved, so that AP is neither 0 nor 1.
    """
    folder = tmp_path_factory.mktemp("people") / "data"
    (folder / "train").mkdir(parents=True)
    (folder / "valid").mkdir()
    femto = load(weights / "deimv2_femto_coco.onnx")
    draw = np.random.default_rng(0)
    for part, paths in (("train", (0, 2)), ("valid", (2, 14))):
        images, annotations = [], []
        chosen = sorted((shared_data / "facemask" / "val2017").glob("*.jpg"))[slice(*paths)]
        for number, path in enumerate(chosen, 1):
            picture = Image.open(path).convert("RGB")
            picture.save(folder / part / f"{number}.png")
            width, height = picture.size
            name = f"{number}.png"
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            found = femto.predict(picture, threshold=0.4, keep_image=False)
            for record, kind in zip(found.to_coco(), found.names, strict=True):
                if kind in ("person", "tie"):
                    x, y, w, h = record["bbox"]
                    x, y = x + draw.normal(0, w / 20), y + draw.normal(0, h / 20)
                    annotations.append(
                        {
                            "id": len(annotations) + 1, "image_id": number,
                            "category_id": ("person", "tie").index(kind) + 1,
                            "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                        }
                    )  # fmt: skip
        categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "tie"}]
        values = {"images": images, "annotations": annotations, "categories": categories}
        (folder / part / "_annotations.coco.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize("size", ["femto", "atto"])
def test_ap_equals_pycocotools(weights, people, tmp_path, size):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    table = open_whole(str(people / "valid")).val
    evaluator, _ = judge(load(weights / f"deimv2_{size}_coco.onnx"), table)
    evaluator.save_predictions(tmp_path / "predictions.json")
    (tmp_path / "truth.json").write_text(json.dumps(table.coco_ground_truth()))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        judged = COCOeval(truth, truth.loadRes(str(tmp_path / "predictions.json")), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    found = evaluator.metrics()
    assert 0.1 < found.ap < 0.95
    for name, value in zip(("ap", "ap50", "ap75"), judged.stats, strict=False):
        assert getattr(found, name) == pytest.approx(value, abs=1e-9)


def test_they_stand_in_a_comparison_beside_ours(weights, people, tmp_path):
    import detrlab

    trained = [
        Trained("ours", "deimv2-femto", detrlab.load("deimv2-femto")),
        *(
            Trained(size, f"deimv2_{size}_coco.onnx", load(weights / f"deimv2_{size}_coco.onnx"))
            for size in ("femto", "atto")
        ),
    ]
    found = compare(
        data=str(people), recipe=recipe("tiny"), output=tmp_path / "out", trained=trained
    )
    ours, femto, atto = found.rows
    assert [row.name for row in found.rows] == ["ours", "femto", "atto"]
    # The same weights: ours are the published ones.
    assert femto.metrics["ap"] == pytest.approx(ours.metrics["ap"], abs=2e-3)
    assert atto.metrics["ap"] < femto.metrics["ap"]
    pairs = {(each.first, each.second) for each in found.verdicts.found.of("ap")}
    assert pairs == {("ours", "femto"), ("ours", "atto")}
    assert found.verdicts.words()["atto"].startswith("[")
    assert femto.cost.parameters > atto.cost.parameters > 1e5
    assert femto.cost.latency["p50"] > 0
    assert "stretched to 320 x 320" in atto.runs[0].environment["read as"]
    with pytest.raises(UserError, match="'ours' takes part twice"):
        compare(
            data=str(people), recipe=recipe("tiny"), output=tmp_path / "x", trained=trained[:1] * 2
        )
