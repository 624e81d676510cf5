"""The part of a detector that is exported: from the pixels of resized pictures to detections."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detrlab.boxes import cxcywh_to_xyxy
from detrlab.errors import refusing
from detrlab.export.packages import needs
from detrlab.export.reading import SIZES, Reading
from detrlab.models.network import Network
from detrlab.scoring import Scoring
from detrlab.structures import ImageBatch

if TYPE_CHECKING:
    from detrlab.api import Detector

SCOPE = "pkg.torch.onnx.name_scopes"
"""Of a node's metadata: the modules that it belongs to, outermost first."""
INPUTS = ("images", SIZES)
OUTPUTS = ("labels", "boxes", "scores")
LIMIT = 300
"""Detections of an image, best first, as the real-time originals export them."""
OPSET = 18
"""The lowest that PyTorch's exporter writes; deformable sampling needs 16."""


class Deployed(nn.Module):
    """Normalisation, network and decoding in one, for images without padding.

    Args:
        network: of the detector.
        scoring: how its logits are read.
        mean: of each channel, for pixels in 0..1.
        std: of each channel.
    """

    def __init__(
        self,
        network: Network,
        scoring: Scoring,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        self.network = network
        self.scoring = scoring
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor, orig_target_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: (B, 3, H, W) uint8 RGB, resized; all of one size.
            orig_target_sizes: (B, 2) int64, (width, height) of the original images.

        Returns:
            labels (B, N) int64, boxes (B, N, 4) xyxy in pixels of the original images, and
            scores (B, N), best first.
        """
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pixels = (images.to(mean.dtype) / 255 - mean) / std
        padding = torch.zeros_like(images[:, 0], dtype=torch.bool)
        final = self.network(ImageBatch(pixels, padding)).final
        scores, labels, queries = self.scoring.decode(final.logits, LIMIT)
        corners = cxcywh_to_xyxy(final.boxes)
        corners = corners.gather(1, queries[..., None].expand(-1, -1, 4))
        return labels, corners * orig_target_sizes.repeat(1, 2)[:, None], scores


def deployed(detector: Detector, network: Network | None = None) -> Deployed:
    """A detector on the CPU and in evaluation mode, from pixels to detections.

    Args:
        detector: whose preprocessing and scoring are kept.
        network: in place of its own.
    """
    config = detector.preprocessing
    network = detector.to("cpu").network if network is None else network
    return Deployed(network, detector.scoring, config.mean, config.std).eval()


def reading_for(detector: Detector) -> Reading:
    """How the exported file of a detector is to be fed."""
    config = detector.preprocessing
    square = config.resize == "square"
    return Reading(
        layout="detections",
        size=(config.image_size, config.image_size if square else config.max_size),
        resize="stretch" if square else "short_side",
        range=255,
        classes=detector.classes,
        category_ids=detector.category_ids,
        threshold=detector.threshold,
    )


def trace(module: Deployed, size: tuple[int, int]) -> torch.export.ExportedProgram:
    """The program of a detector, for any number and size of images.

    Args:
        module: to trace.
        size: (height, width) of typical images.

    Raises:
        UserError: the network does something that cannot be exported.
    """
    height, width = size
    # Two images of two lengths: equal lengths would be taken for one.
    height += 32 * (height == width)
    images = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    sizes = torch.tensor([[width, height]] * 2)
    free = torch.export.Dim.DYNAMIC
    with refusing("the network cannot be exported"), torch.no_grad(), _quiet():
        return torch.export.export(
            module,
            (images, sizes),
            dynamic_shapes=({0: free, 2: free, 3: free}, {0: free}),
            strict=False,
            # Lengths are not checked in the file: the runtime would not understand it.
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def write_onnx(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> torch.export.ExportedProgram:
    """Write one ONNX file of plain operators.

    Returns:
        the program in the operators that were translated, whose values the file names alike.

    Raises:
        UserError: the program cannot be converted, or the packages are missing.
    """
    onnx = needs("onnx")
    needs("onnxscript")
    with refusing("the network cannot be written as ONNX"), _quiet():
        written = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert written is not None
    model = written.model_proto
    onnx.helper.set_model_props(model, dict(metadata))
    for node in model.graph.node:
        # The exporter also notes lines of source files, with this machine's paths.
        scope = [each for each in node.metadata_props if each.key == SCOPE]
        del node.metadata_props[:]
        node.metadata_props.extend(scope)
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    onnx.save(model, path)
    translated = written.exported_program
    assert translated is not None
    return translated


def write_openvino(source: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Convert an ONNX file to OpenVINO's ``.xml`` and ``.bin``.

    Raises:
        UserError: the package is missing, or cannot convert it.
    """
    openvino = needs("openvino")
    with refusing("OpenVINO cannot convert the network"):
        model = openvino.convert_model(source)
    for key, value in metadata.items():
        model.set_rt_info(value, key)
    openvino.save_model(model, path, compress_to_fp16=False)


def write_program(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write a program for ``torch.export.load``."""
    torch.export.save(program, path, extra_files=dict(metadata))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes about its own workings."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
