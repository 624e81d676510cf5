"""What a detector costs: parameters, multiply-adds, milliseconds."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from detrlab.benchmark.timing import in_turn
from detrlab.data.transforms import evaluation_size
from detrlab.models.attention import DeformableAttention
from detrlab.ops import deformable
from detrlab.structures import ImageBatch

if TYPE_CHECKING:
    from detrlab.config import DataConfig
    from detrlab.data.table import Table

_ADDS_PER_SAMPLE = 5
"""Multiply-adds of one channel at one sampled point: four corners, and its attention weight."""


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters; buffers such as frozen norms do not count."""
    sizes = [(each.numel(), each.requires_grad) for each in network.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


def typical_size(table: Table, config: DataConfig) -> tuple[int, int]:
    """(height, width) at evaluation of the image whose area is the median of the table."""
    sizes = [evaluation_size(height, width, config) for height, width in table.sizes.tolist()]
    return sorted(sizes, key=math.prod)[len(sizes) // 2]


@torch.no_grad()
def gflops(network: nn.Module, size: tuple[int, int]) -> float:
    """Thousand million multiply-adds for one image of this (height, width).

    Convolutions, matrix products, attention and deformable sampling are counted, as in the
    published numbers; norms, activations and softmax are not.
    """
    sampled = 0

    def count_samples(module: nn.Module, arguments: tuple[Any, ...], _: Any) -> None:
        nonlocal sampled
        assert isinstance(module, DeformableAttention)
        query: Tensor = arguments[0]
        sampled += query.numel() * sum(module.counts)

    hooks = [
        module.register_forward_hook(count_samples)
        for module in network.modules()
        if isinstance(module, DeformableAttention)
    ]
    was_training = network.training
    network.eval()
    products = multiply_adds(lambda: network(blank(network, size)))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return (products + _ADDS_PER_SAMPLE * sampled) / 1e9


def multiply_adds(call: Callable[[], Any]) -> float:
    """Multiply-adds of all convolutions and matrix products in a call, backward ones included.

    Deformable sampling is left out: it is between 0.05 and 1 percent.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # This form of attention consists of the products that the counter knows.
    with _Products() as products, sdpa_kernel(SDPBackend.MATH):
        call()
    return products.multiply_adds


class _Products(TorchDispatchMode):
    """Counts the multiply-adds of convolutions and matrix products.

    torch's own ``FlopCounterMode`` follows modules through autograd, and fails where one of them
    returns a parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.multiply_adds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            # The formulas count a multiplication and its addition as two.
            self.multiply_adds += formula(*args, **(kwargs or {}), out_val=result) / 2
        return result


@torch.no_grad()
def latency(network: nn.Module, size: tuple[int, int], rounds: int = 10) -> dict[str, float]:
    """Milliseconds from pixels to predictions for one image, as percentiles ``p50``, ``p90``."""
    was_training = network.training
    network.eval()
    image = blank(network, size)
    times = in_turn({"": lambda: network(image)}, rounds)[""]
    network.train(was_training)
    return {f"p{percent}": 1e3 * times.percentile(percent) for percent in (50, 90)}


def machine() -> str:
    """The processor and, if there is one, the graphics card, in one line."""
    words = [f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        words.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return ", ".join(words)


def provenance() -> dict[str, Any]:
    """The machine, its load average over a minute (None where unknown) and the software."""
    return {
        "machine": machine(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "backend": deformable.backend(),
    }


def blank(network: nn.Module, size: tuple[int, int]) -> ImageBatch:
    """One unpadded image of this (height, width), on the network's device."""
    device = next(network.parameters()).device
    return ImageBatch(
        torch.zeros(1, 3, *size, device=device),
        torch.zeros(1, *size, dtype=torch.bool, device=device),
    )
