"""An estimate of what the CPPE-5 experiment costs on one GPU.

    python benchmarks/cppe5_estimate.py --output docs/results/cppe5-estimate.md

Nothing is computed: the networks run on PyTorch's meta device, which knows shapes only. Time is
taken from the originals' published GPU hours and, independently, from multiply-adds. Memory is
the sum of what the backward pass needs to be kept, and of weights, gradients and Adam's moments.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from detrlab.benchmark.cost import gflops
from detrlab.presets import FIVE, build_network, model_config
from detrlab.recipes import RECIPES
from detrlab.structures import ImageBatch, References

TITLE = "Estimated, not measured; one GPU, recipe `cppe5`"
IMAGES, CLASSES = 1000, 5
SIZE = (800, 1066)  # a 4:3 image at the recipe's size
COCO_IMAGES = 118_287
V100_HOURS = {  # for an epoch of COCO: README of fundamentalvision/Deformable-DETR
    "detr": 4.0,
    "detr-dc5": 14.0,
    "deformable-detr": 6.5,
    "deformable-detr-refine": 6.5,
    "deformable-detr-two-stage": 6.8,
}
FLOPS_A_MULTIPLY_ADD = 2
FORWARD_AND_BACKWARD = 3  # the backward pass is two more products for each of the forward pass
SUSTAINED = 10e12  # FLOP/s: under a third of what a card such as an RTX 3090 can at most (35.6)
GIB = 2**30


class Fused(torch.autograd.Function):
    """Stands for a kernel that keeps its inputs and its output, and no intermediate values."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, *inputs: Tensor) -> Tensor:
        output = output.clone()
        ctx.save_for_backward(output, *inputs)
        return output

    @staticmethod
    def backward(*_: Any) -> Any:
        raise NotImplementedError("nothing is computed here")


def dense(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return Fused.apply(torch.empty_like(q), q, k, v)


def deformable(
    values: Tensor, _shapes: Any, ratios: Tensor, at: References, offsets: Tensor, scores: Tensor
) -> Tensor:
    batch, queries = offsets.shape[:2]
    output = values.new_empty(batch, queries, values.shape[2] * values.shape[3])
    places = [each for each in at if each is not None]
    return Fused.apply(output, values, offsets, scores, ratios, *places)


@contextmanager
def fused_kernels() -> Iterator[None]:
    with (
        patch("detrlab.ops.dense.attend", dense),
        patch("detrlab.models.attention.attend", deformable),
    ):
        yield


def kept_for_backward(network: nn.Module, images: int, size: tuple[int, int] = SIZE) -> int:
    """Bytes that autograd keeps after the forward pass, parameters and buffers left out."""
    own = {each.untyped_storage()._cdata for each in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    pixels = torch.empty(images, 3, *size, device="meta")
    padding = torch.zeros(images, *size, dtype=torch.bool, device="meta")
    network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(ImageBatch(pixels, padding))
    assert output.final.boxes.requires_grad
    return sum(each.untyped_storage().nbytes() for at, each in kept.items() if at not in own)


def row(preset: str) -> list[str]:
    train = RECIPES["cppe5"].train_for(preset)
    assert isinstance(train.micro_batch, int)
    with torch.device("meta"):
        network = build_network(model_config(preset, CLASSES))
    seen = train.epochs * (IMAGES // train.batch) * train.batch
    multiply_adds = gflops(network, SIZE)
    flops = multiply_adds * 1e9 * FLOPS_A_MULTIPLY_ADD * FORWARD_AND_BACKWARD
    v100 = seen / COCO_IMAGES * V100_HOURS[preset]
    state = 4 * sum(each.nbytes for each in network.parameters())
    plain = kept_for_backward(network, train.micro_batch)
    with fused_kernels():
        fused = kept_for_backward(network, train.micro_batch)
    return [
        preset,
        f"{multiply_adds:.0f}",
        f"{v100:.1f}",
        f"{flops * COCO_IMAGES / V100_HOURS[preset] / 3600 / 1e12:.1f}",
        f"{flops * seen / SUSTAINED / 3600:.1f}",
        f"{(fused + state) / GIB:.1f}",
        f"{(plain + state) / GIB:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    head = [
        "model",
        "GFLOPs",
        "hours on a V100, from the published ones",
        "TFLOP/s which that means",
        f"hours at {SUSTAINED / 1e12:g} TFLOP/s",
        "GiB with fused attention",
        "GiB with plain attention",
    ]
    rows = [row(preset) for preset in FIVE]
    total = [
        f"{sum(float(each[column]) for each in rows):.1f}" if column in (2, 4) else ""
        for column in range(1, len(head))
    ]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows, ["together", *total]]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    options.output.write_text(f"{TITLE}\n\n{table}\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
