"""Detectors that only transformers has."""

import pytest
from onnx_files import picture

from detrlab.cli.common import open_predictor
from detrlab.errors import UserError
from detrlab.export import TransformersDetector, transformers_detector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small YOLOS, which detrlab has not."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("yolos")
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=[64, 96], patch_size=16, num_detection_tokens=10,
        id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    transformers.YolosForObjectDetection(config).save_pretrained(folder)
    size = {"height": 64, "width": 96}
    transformers.YolosImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_it_predicts_as_transformers_does(folder):
    import torch
    import transformers

    found = open_predictor(str(folder), "cpu", None)
    assert isinstance(found, TransformersDetector)
    assert found.classes == ("cat", "dog")
    assert found.parameters > 10_000
    pixels = picture(128, 192)
    best = found.predict(pixels, threshold=None)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(**processor(images=[pixels], return_tensors="pt"))
    (expected,) = processor.post_process_object_detection(outputs, 0.0, [(128, 192)])
    order = expected["scores"].argsort(descending=True)
    torch.testing.assert_close(best.scores, expected["scores"][order])
    torch.testing.assert_close(best.boxes, expected["boxes"][order], rtol=1e-4, atol=1e-2)
    found.inference(pixels)()
    with pytest.raises(UserError, match=r"--imgsz 64: .* brings an image size of its own"):
        open_predictor(str(folder), "cpu", 64)


@pytest.mark.slow
def test_what_is_no_detector_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "id2label": {}}')
    with pytest.raises(UserError, match="'bert' as a detector") as raised:
        transformers_detector(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_other_sources_are_left_to_others(tmp_path):
    assert transformers_detector("deimv2-femto") is None
    assert transformers_detector(str(tmp_path)) is None
