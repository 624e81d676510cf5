"""Presets exported: ONNX Runtime computes what PyTorch does, at any size and batch.

Writing a file takes half a minute, so one detector of each kind is tried; all of them, except
those that compute the same up to numbers, with ``DETRLAB_EVERY_PRESET=1``.
"""

import functools
import json
import os
import re

import pytest
import torch

from detrlab.detections import Detections
from detrlab.export import deploy
from detrlab.export.agreement import SIDE, agreement
from detrlab.export.certificate import TOLERANCE
from detrlab.export.sessions import open_session
from detrlab.models.prepare import plain
from detrlab.presets import PRESETS, build_network
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")

KINDS = (
    "detr",
    "deformable-detr-two-stage",
    "dino-4scale",
    "rt-detr-r18",
    "rt-detr-v2-r18-dsp",
    "d-fine-n",
    "deimv2-n",
    "deimv2-femto",
)
TRIED = tuple(PRESETS) if os.environ.get("DETRLAB_EVERY_PRESET") else KINDS
CLASSES = ("a", "b", "c", "d", "e")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def random_network(preset):
    """Random values everywhere: many initial values are zero and would hide mistakes."""
    fields = PRESETS[preset].model_fields
    few = {"encoder_layers": 1, "decoder_layers": 2, "denoising": 4, "evaluated_layers": None}
    sizes = {name: value for name, value in few.items() if name in fields}
    config = tiny_config(preset, len(CLASSES), **sizes)
    network = build_network(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, each in network.state_dict().items():
            if not each.is_floating_point():
                continue
            noise = torch.randn(each.shape, generator=draw)
            if name.endswith("running_var"):
                each.copy_(0.5 + torch.rand(each.shape, generator=draw))
            else:
                each += noise if "sampling_offsets.bias" in name else 0.15 * noise
    return network, config


def computation(network):
    """The parts of a network and the functions they hold, without numbers."""
    held = [
        getattr(value, "__qualname__", type(value).__name__)
        for module in network.modules()
        for value in vars(module).values()
        if callable(value)
    ]
    return re.sub(r"[0-9.,]+", "", repr(network)), tuple(held)


@functools.cache
def computed_before():
    """Preset -> the first one of those tried that computes the same."""
    first = {}
    return {name: first.setdefault(computation(random_network(name)[0]), name) for name in TRIED}


def detections(outputs, size):
    labels, boxes, scores = outputs
    ids = tuple(range(len(CLASSES)))
    return [
        Detections(box.float(), score.float(), label, CLASSES, ids, size)
        for label, box, score in zip(labels, boxes, scores, strict=True)
    ]


@pytest.fixture(scope="module", params=TRIED)
def exported(request, tmp_path_factory):
    if computed_before()[request.param] != request.param:
        pytest.skip(f"computes what {computed_before()[request.param]} does")
    network, config = random_network(request.param)
    path = tmp_path_factory.mktemp("exported") / "detector.onnx"
    module = deploy.Deployed(plain(network), config.scoring, MEAN, STD).eval()
    deploy.write_onnx(deploy.trace(module, (160, 128)), path, {"detrlab": json.dumps({})})
    return deploy.Deployed(network, config.scoring, MEAN, STD).eval(), open_session(path), path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_onnx_runtime_equals_pytorch(exported):
    module, session, _ = exported
    for batch, height, width in ((1, 128, 128), (3, 192, 128), (1, 160, 256), (3, 160, 160)):
        draw = torch.Generator().manual_seed(batch + width)
        images = torch.randint(0, 256, (batch, 3, height, width), generator=draw, dtype=torch.uint8)
        scale = SIDE / max(height, width)
        size = (round(height * scale), round(width * scale))
        sizes = torch.tensor([[size[1], size[0]]] * batch)
        feeds = dict(zip(deploy.INPUTS, (images, sizes), strict=True))
        found = session.run(feeds)
        with torch.no_grad():
            first = detections(module(images, sizes), size)
            exact = detections(module.double()(images, sizes), size)
            module.float()
        second = detections([found[name] for name in deploy.OUTPUTS], size)
        moved = [[each] for each in exact]
        seen = agreement(first, second, TOLERANCE, moved.__getitem__)
        assert seen.compared > 0
        assert seen.lost == 0, seen
        assert seen.box <= 0.05, seen
        assert seen.score <= 1e-4, seen
        assert seen.unstable <= seen.compared // 50, seen


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_file_holds_plain_operators_and_no_path_of_this_machine(exported):
    import onnx

    _, session, path = exported
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [(each.domain, each.version) for each in model.opset_import] == [("", deploy.OPSET)]
    assert b"site-packages" not in path.read_bytes()
    assert b"/src/detrlab" not in path.read_bytes()
    assert session.inputs[0].shape[2:] == (None, None)
    # Denoising and the heads of earlier layers are only for training.
    assert not any("denoising" in each.name for each in model.graph.initializer)
