"""The forward pass of every detector of the DETR line."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from detrlab.structures import ImageBatch, ModelOutput, Target, supervise


class Network(nn.Module):
    """Pixels to predictions; independent of files, class names and configuration.

    The parts are built by a preset (``detrlab.presets``) or by you, and handed in. Detectors
    differ in their parts only.

    Args:
        backbone: pixels (B, 3, H, W) -> feature maps, finest first.
        encoder: feature maps, padding (B, H, W) -> ``Memory``.
        queries: ``Memory``, targets or None -> (``Queries``, further supervised sets).
        decoder: ``Queries``, ``Memory`` -> one ``Predictions`` per layer.
    """

    def __init__(
        self, backbone: nn.Module, encoder: nn.Module, queries: nn.Module, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder

    def forward(self, images: ImageBatch, targets: Sequence[Target] | None = None) -> ModelOutput:
        """Detect objects in a padded batch.

        Args:
            images: B images.
            targets: what they show, for training: variants with denoising queries make them
                from the targets, and a first stage predicts all proposals only for its loss.
                The predictions of the decoder layers do not depend on it otherwise.
        """
        features = self.backbone(images.pixels)
        memory = self.encoder(features, images.padding)
        queries, others = self.queries(memory, targets)
        return supervise(self.decoder(queries, memory), queries, others)
