"""Which library multiplies fastest here: linear layers by MKL and oneDNN, convolutions by layout.

    python benchmarks/products.py --output docs/results/performance-products.json

Processor time of forward and backward passes, in turn. oneDNN's linear layers are 1 x 1
convolutions (both passes), and its fused operator (forward).
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from detrlab import files
from detrlab.benchmark.cost import provenance
from detrlab.benchmark.timing import in_turn
from detrlab.models.backbones.timm import build_backbone

SHAPES = ((256, 256), (256, 1024), (1024, 256), (256, 2048), (2048, 256), (128, 128), (128, 512))
TOKENS = (300, 1600, 8500)


def convolved(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer as a 1 x 1 convolution, channels last."""
    maps = tokens.view(1, len(tokens), 1, -1).permute(0, 3, 1, 2)
    return F.conv2d(maps, weight[:, :, None, None], bias).permute(0, 2, 3, 1).flatten(0, 2)


def fused(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """oneDNN's linear layer; it has no backward pass."""
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")


def both_passes(call: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Any]:
    gradient = torch.ones_like(call(*inputs))
    return lambda: torch.autograd.grad(call(*inputs), inputs, gradient)


def processor_ms(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    times = in_turn(calls, rounds)
    return {name: 1e3 * statistics.median(each.processor) for name, each in times.items()}


def linear(count: int, width: int, out: int, rounds: int) -> dict[str, Any]:
    inputs = [torch.randn(count, width), torch.randn(out, width), torch.randn(out)]
    learned = [each.clone().requires_grad_() for each in inputs]
    ways = {"mkl": F.linear, "convolution": convolved, "fused": fused}
    with torch.no_grad():
        forward = processor_ms(
            {name: lambda way=way: way(*inputs) for name, way in ways.items()}, rounds
        )
    del ways["fused"]
    both = processor_ms({name: both_passes(way, learned) for name, way in ways.items()}, rounds)
    return {"tokens": count, "in": width, "out": out, "forward_ms": forward, "both_ms": both}


def convolutions(side: int, rounds: int) -> dict[str, float]:
    """Forward and backward pass of ResNet-50, by the layout of its maps and weights."""
    calls = {}
    for layout in (torch.channels_last, torch.contiguous_format):
        body = build_backbone(
            "resnet50",
            stages=3,
            dilation=False,
            norms="frozen",
            trains="late",
            pretrained=False,
        ).to(memory_format=layout)
        pixels = torch.randn(1, 3, side, side).to(memory_format=layout)

        def learn(body=body, pixels=pixels) -> None:
            sum(maps.sum() for maps in body(pixels)).backward()

        calls[str(layout).removeprefix("torch.")] = learn
    return processor_ms(calls, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=480)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    report = {**provenance(), "capability": torch.backends.cpu.get_cpu_capability(), "rows": []}
    for width, out in SHAPES:
        for count in TOKENS:
            row = linear(count, width, out, options.rounds)
            report["rows"].append(row)
            print(row, flush=True)
    report["resnet50_ms"] = convolutions(options.side, options.rounds)
    print(report["resnet50_ms"])
    files.write_json(options.output, report)


if __name__ == "__main__":
    main()
