"""Whatever finds objects in pictures is judged, with classes matched by name."""

import json

import numpy as np
import pytest
import torch

from detrlab.data import open_whole
from detrlab.detections import Detections
from detrlab.errors import UserError
from detrlab.evaluation.predictor import common_classes, judge


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Two pictures with a pedestrian and a dog each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("people")
    images, annotations = [], []
    draw = np.random.default_rng(0)
    for number in (1, 2):
        name = f"{number}.png"
        Image.fromarray(draw.integers(0, 255, (100, 200, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": number, "file_name": name, "height": 100, "width": 200})
        for kind, box in ((7, [10, 10, 40, 80]), (9, [100, 50, 60, 30])):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": kind, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": 7, "name": "Pedestrian"}, {"id": 9, "name": "dog"}]
    values = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "_annotations.coco.json").write_text(json.dumps(values))
    return open_whole(str(folder)).val


class Known:
    """Finds the dog everywhere, the person in the first picture, and a car."""

    classes = ("car", "person", "dog")

    def predict_each(self, images, *, threshold, limit, keep_image):
        assert threshold is None, "evaluation must see all detections"
        assert not keep_image
        for number, pixels in enumerate(images):
            boxes = torch.tensor([[0.0, 0, 5, 5], [100, 50, 160, 80], [10, 10, 50, 90]])
            labels = torch.tensor([0, 2, 1])
            scores = torch.tensor([0.99, 0.9, 0.8])
            count = min(3 - number, limit)
            size = (pixels.shape[1], pixels.shape[2])
            parts = (each[:count] for each in (boxes, scores, labels))
            yield Detections(*parts, self.classes, (0, 1, 2), size)


def test_classes_are_matched_by_name(people):
    evaluator, notes = judge(Known(), people, {"person": "Pedestrian"})
    found = evaluator.metrics()
    assert found.per_class["dog"] == pytest.approx(1.0)
    assert found.per_class["Pedestrian"] == pytest.approx(0.5, abs=0.01)
    assert notes[0] == "person is judged as Pedestrian"
    assert "1 classes of the model are not in the data" in notes[-1]
    assert len(evaluator.detected()) == 3, "the car is left out"


def test_a_class_that_the_model_lacks_has_no_ap(people):
    evaluator, notes = judge(Known(), people)
    assert evaluator.metrics().per_class["Pedestrian"] == 0
    assert "the model does not know Pedestrian: their AP is 0" in notes


def test_case_does_not_matter():
    assert common_classes(["PERSON", "Dog"], ["dog", "person"], {})[0] == [1, 0]


@pytest.mark.parametrize(
    ("theirs", "rename", "message"),
    [
        (["cat"], {}, r"no class is common to both.*--rename cat=dog"),
        (["cat"], {"cow": "dog"}, r"rename cow=dog: the model has no class 'cow'"),
        (["cat"], {"cat": "horse"}, r"rename cat=horse: the data has no class 'horse'"),
    ],
)
def test_classes_that_do_not_fit(theirs, rename, message):
    with pytest.raises(UserError, match=message):
        common_classes(theirs, ["dog"], rename)
