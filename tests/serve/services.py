"""Small services for the tests: detectors that answer at once, and one that waits."""

import io
import threading

import torch
from PIL import Image
from scenes_explained import make_network

from detrlab.api import Detector
from detrlab.config import DataConfig
from detrlab.detections import Detections
from tiny_detectors import tiny_config

HOSTILE = "</script><img src=x onerror=window.hacked=1> & \"q\" 'a'"
CLASSES = ("cat", "dog", HOSTILE)
ADDRESS = "http://127.0.0.1"


def tiny_detector(preset="deformable-detr-two-stage"):
    """A detector with random weights that claims something everywhere."""
    network, _ = make_network(preset)
    with torch.no_grad():
        for name, parameter in network.decoder.named_parameters():
            if name.endswith("classes.bias"):
                parameter.add_(4.0)
    settings = DataConfig(image_size=96, max_size=128)
    config = tiny_config(preset, num_classes=len(CLASSES))
    return Detector(network, config, CLASSES, preprocessing=settings)


def picture_bytes(kind="PNG", size=(128, 96), **options):
    noise = torch.randint(0, 255, (*size[::-1], 3), generator=torch.Generator().manual_seed(3))
    stream = io.BytesIO()
    Image.fromarray(noise.byte().numpy()).save(stream, kind, **options)
    return stream.getvalue()


class WaitingDetector:
    """Answers when it is allowed to, without a network: an exported detector looks like this."""

    classes = ("thing",)
    category_ids = (7,)
    threshold = None

    def __init__(self):
        self.allowed = threading.Event()
        self.started = threading.Event()

    def predict_each(self, pictures, **_):
        (pixels,) = pictures
        self.started.set()
        assert self.allowed.wait(20)
        empty = torch.zeros(0)
        size = tuple(pixels.shape[1:])
        yield Detections(
            torch.zeros(0, 4), empty, empty.long(), self.classes, self.category_ids, size
        )
