"""Batch norms over all processes: what a trained norm sees must not depend on their number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from detrlab.models.backbones.folding import FoldedBatchNorm2d


class SummedBatchNorm2d(nn.BatchNorm2d):
    """``nn.SyncBatchNorm``, which runs on GPUs only, for other devices."""

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), normalised over the maps of all processes."""
        sums = maps.sum((0, 2, 3))
        pixels = sums.new_full((1,), maps.numel() // len(sums))
        *totals, count = all_reduce(torch.cat([sums, pixels])).split([len(sums), 1])
        mean = totals[0] / count
        centered = maps - mean[:, None, None]
        variance = all_reduce(centered.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        scale = (variance + self.eps).rsqrt() * self.weight
        return centered * scale[:, None, None] + self.bias[:, None, None]

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics as ``nn.BatchNorm2d`` does."""
        assert self.momentum is not None
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(now.to(running.dtype), self.momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)


class JoinedNorms:
    """The norms of a network that train, each with a twin over all processes.

    Args:
        network: on ``device``; a twin has the parameters and buffers of its norm.
        device: of the network.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        kind = nn.SyncBatchNorm if device.type == "cuda" else SummedBatchNorm2d
        self._twins: list[tuple[FoldedBatchNorm2d, nn.Module]] = []
        for norm in network.modules():
            if isinstance(norm, FoldedBatchNorm2d):
                twin = kind(norm.num_features, norm.eps, norm.momentum)
                twin._parameters, twin._buffers = norm._parameters, norm._buffers
                self._twins.append((norm, twin))

    @contextmanager
    def joined(self) -> Iterator[None]:
        """A block that every process enters, and in which the twins take the norms' place."""
        for norm, twin in self._twins:
            norm.twin = twin.forward
        try:
            yield
        finally:
            for norm, _ in self._twins:
                norm.twin = None
