"""The COCO detector in the package: what it is, that it finds things, and the published ONNX."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import detrlab
from detrlab.checkpoints import coco, official
from detrlab.checkpoints.rules import translate_strictly
from detrlab.checkpoints.weights import ASSETS, IN_THE_BOX, load_detector
from detrlab.cli import train
from detrlab.presets import build_network, model_config
from detrlab.structures import ImageBatch

SHARED = Path(__file__).resolve().parents[2] / "shared"
PHOTOS = SHARED / "data" / "facemask" / "val2017"
published = pytest.mark.skipif(
    not (SHARED / "weights").is_dir() or not PHOTOS.is_dir(),
    reason="the published files do not lie beside the checkout",
)


def test_it_knows_cocos_classes_and_sees_squares():
    detector = detrlab.load(IN_THE_BOX)
    assert detector.classes == tuple(coco.BY_ID.values())
    assert detector.category_ids == tuple(coco.BY_ID)
    assert detector.preprocessing.resize == "square"
    assert detector.preprocessing.image_size == 416
    found = detector.predict(Image.new("RGB", (300, 200), "grey"))
    assert found.boxes.shape[1] == 4
    assert (ASSETS / f"{IN_THE_BOX}-coco.safetensors").stat().st_size < 4.2e6
    assert "DEIMv2" in Path("NOTICE").read_text(encoding="utf-8")


def test_it_finds_people_on_the_example():
    found = detrlab.load(IN_THE_BOX).predict("examples/street.jpg", threshold=0.5)
    assert found.names.count("person") >= 3


def test_a_misspelt_name_is_told():
    with pytest.raises(detrlab.UserError, match=f"did you mean '{IN_THE_BOX}'"):
        detrlab.load("deimv2-fento")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (IN_THE_BOX, "photos")),
        ({"model": IN_THE_BOX}, (IN_THE_BOX, "photos")),
        ({"model": "detr"}, ("detr", "laptop")),
        ({"recipe": "tiny"}, ("deformable-detr-two-stage", "tiny")),
        ({"recipe": "photos"}, (IN_THE_BOX, "photos")),
    ],
)
def test_training_starts_from_it_by_default(given, expected):
    assert train.Options(**given).what() == expected


@published
def test_its_weights_are_the_published_ones():
    checkpoint = load_detector(IN_THE_BOX).checkpoint
    theirs = load_file(SHARED / "weights" / "deimv2_femto_calibrated.safetensors")
    state = translate_strictly(theirs, official.layout(checkpoint.config), checkpoint.state)
    assert set(state) == set(checkpoint.state)
    assert all(torch.equal(state[name].float(), checkpoint.state[name].float()) for name in state)


@published
@pytest.mark.slow
@pytest.mark.parametrize(("size", "side", "scores"), [("femto", 416, 5e-4), ("atto", 320, 7e-4)])
@pytest.mark.parametrize("reader", ["pillow", "ours"])
def test_detections_equal_the_published_onnx(size, side, scores, reader):
    onnxruntime = pytest.importorskip("onnxruntime")
    config = model_config(f"deimv2-{size}", 80)
    network = build_network(config).eval()
    state = network.state_dict()
    theirs = load_file(SHARED / "weights" / f"deimv2_{size}.safetensors")
    network.load_state_dict(state | translate_strictly(theirs, official.layout(config), state))
    detector = detrlab.Detector(
        network, config, tuple(coco.BY_ID.values()), preprocessing=config.preprocessing()
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(SHARED / "weights" / f"deimv2_{size}_coco.onnx"), options
    )
    compared = 0
    for path in sorted(PHOTOS.glob("*.jpg"))[::17]:
        image = Image.open(path).convert("RGB")
        small = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float32)
        pixels = small.transpose(2, 0, 1)[None] / 255
        labels, boxes, values = run_published(session, pixels, image.size)
        if reader == "ours":
            batch = detector.prepare(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        else:
            padding = torch.zeros(1, side, side, dtype=torch.bool)
            batch = ImageBatch(torch.from_numpy(pixels), padding)
        found = detections(network, config, batch, image.size)
        for label, box, value in zip(labels, boxes, values, strict=True):
            if value > 0.05:
                same = found[0] == label
                gaps = (found[1][same] - box).abs().amax(1), (found[2][same] - value).abs()
                best = (gaps[0] + 100 * gaps[1]).argmin()
                assert gaps[0][best] < 1.0
                assert gaps[1][best] < (scores if reader == "pillow" else READER_SCORES)
                compared += 1
    assert compared > 100


READER_SCORES = 1e-3
"""Our resize is within a grey level of Pillow's."""


def run_published(session, pixels, size):
    names = [each.name for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]
    found = session.run(None, dict(zip(names, (pixels, np.array([size])), strict=True)))
    by_name = {name: torch.from_numpy(value[0]) for name, value in zip(outputs, found, strict=True)}
    return by_name["labels"], by_name["boxes"], by_name["scores"]


@torch.inference_mode()
def detections(network, config, batch, size):
    from detrlab.evaluation.postprocess import decode

    decoded = decode(network(batch).final, config.scoring, [size[::-1]], 300)
    return decoded.labels[0], decoded.boxes[0], decoded.scores[0]
