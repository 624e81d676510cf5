"""The forward pass of every detector in the family."""

from __future__ import annotations

from torch import nn

from detrlab.models.queries import QuerySource
from detrlab.models.transformer import Decoder
from detrlab.structures import ImageBatch, ModelOutput, Predictions


class Network(nn.Module):
    """Pixels to predictions; knows nothing of files, classes or pictures.

    The parts are built by ``models.build`` and handed in; what distinguishes the detectors is
    which parts they are.

    Args:
        backbone: pixels (B, 3, H, W) -> feature maps, finest first.
        neck: feature maps, padding -> ``Memory``.
        encoder: ``Memory`` -> ``Memory``.
        queries: ``Memory`` -> (``Queries``, proposals or None).
        decoder: ``Queries``, ``Memory`` -> one ``Predictions`` per layer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        encoder: nn.Module,
        queries: QuerySource,
        decoder: Decoder,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder

    def forward(self, images: ImageBatch) -> ModelOutput:
        """Detect objects in a padded batch."""
        features = self.backbone(images.pixels)
        memory = self.encoder(self.neck(features, images.padding))
        queries, proposals = self.queries(memory)
        return ModelOutput(self.decoder(queries, memory), proposals)

    def detect(self, images: ImageBatch) -> Predictions:
        """``forward(images).final`` without the predictions that nobody asked for."""
        features = self.backbone(images.pixels)
        memory = self.encoder(self.neck(features, images.padding))
        return self.decoder.final(self.queries.choose(memory), memory)
