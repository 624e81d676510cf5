"""Compare a GPU with the CPU: agreement, half precision, times and memory.

    python benchmarks/gpu_check.py --output docs/results/gpu-check.json

Every detector is compared with itself on the CPU in float32 (TensorFloat-32 off), then takes
training steps in float32, bfloat16 and float16. Random weights that are large where the initial
ones are zero, so that every part has an effect. Times are of whole training steps on
noise of one size.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from detrlab.benchmark.op import compare_backends, table
from detrlab.benchmark.subjects import pictures
from detrlab.config import ModelConfig, TrainConfig
from detrlab.losses.criterion import Criterion
from detrlab.models.prepare import prepare
from detrlab.ops import cuda, deformable
from detrlab.presets import FIVE, PRESETS, build_network, model_config
from detrlab.structures import ImageBatch, Target
from detrlab.training.engine import autocast
from detrlab.training.optim import build_optimizer, clip_gradients, parameter_groups

AGREEMENT = (320, 416)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1066))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", choices=["agreement", "steps", "op"])
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16", "float16"])
    options = parser.parse_args()
    device = torch.device("cuda")
    report = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "ops_backend": deformable.backend(device),
        "sampling_by": cuda.implementation(device),
        "agreement_size": AGREEMENT,
        "step_size": list(options.size),
        "step_batch": options.batch,
        "agreement": {},
        "steps": {},
    }
    if options.output.exists():
        known = json.loads(options.output.read_text())
        report |= {key: known[key] for key in ("agreement", "steps", "op") if key in known}
    if options.only in (None, "op"):
        rows = compare_backends(*options.size, device=device, rounds=15, batch=options.batch)
        print("\n".join(table(rows)), flush=True)
        report["op"] = rows
    for name in PRESETS if options.only in (None, "agreement") else ():
        config = model_config(name, 91, backbone=options.backbone, dropout=0.0)
        report["agreement"][name] = row = agreement(config, device)
        print(name, row, flush=True)
    for name in FIVE if options.only in (None, "steps") else ():
        config = model_config(name, 91, backbone=options.backbone)
        for precision in options.precisions:
            row = steps(
                config, device, precision, tuple(options.size), options.batch, options.steps
            )
            report["steps"].setdefault(name, {})[precision] = row
            print(name, precision, row, flush=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")


@torch.no_grad()
def strengthen(network: nn.Module) -> None:
    """Give random weights to the layers that start at zero."""
    draw = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights" in name or "boxes" in name:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))


def judged(
    network: nn.Module, criterion: Criterion, images: ImageBatch, targets: list[Target]
) -> tuple[Tensor, Tensor, float, dict[str, float]]:
    network.zero_grad()
    output = network(images, targets)
    loss = criterion(output, targets).total
    loss.backward()
    norms = {
        name: parameter.grad.norm().item()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    return output.final.logits.detach().cpu(), output.final.boxes.detach().cpu(), loss.item(), norms


def agreement(config: ModelConfig, device: torch.device) -> dict[str, float]:
    """Differences between GPU and CPU, and between two passes on the GPU."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    network = prepare(build_network(config)).eval()
    strengthen(network)
    criterion = config.criterion(TrainConfig())
    images, targets = pictures(AGREEMENT, 2)
    images.padding[1, -64:] = True
    images.pixels[1, :, -64:] = 0
    with deformable.use("reference"):
        on_cpu = judged(network, criterion, images, targets)
    network.to(device)
    images = ImageBatch(*(each.to(device) for each in images))
    targets = [Target(*(each.to(device) for each in target)) for target in targets]
    on_gpu = judged(network, criterion, images, targets)
    again = judged(network, criterion, images, targets)

    def furthest(a: dict[str, float], b: dict[str, float]) -> float:
        total = sum(value**2 for value in a.values()) ** 0.5
        return max(abs(a[key] - b[key]) / (a[key] + 1e-5 * total) for key in a)

    return {
        "logits": (on_cpu[0] - on_gpu[0]).abs().max().item(),
        "boxes": (on_cpu[1] - on_gpu[1]).abs().max().item(),
        "loss_relative": abs(on_cpu[2] - on_gpu[2]) / on_cpu[2],
        "gradient_norms_relative": furthest(on_cpu[3], on_gpu[3]),
        "gradient_norms_relative_twice_on_gpu": furthest(on_gpu[3], again[3]),
    }


def steps(
    config: ModelConfig,
    device: torch.device,
    precision: str,
    size: tuple[int, int],
    batch: int,
    count: int,
) -> dict[str, float | bool]:
    """Training steps: seconds (median), memory, and whether all gradients were finite."""
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's own defaults
    network = prepare(build_network(config)).to(device).train()
    train = TrainConfig(precision=precision)
    criterion = config.criterion(train)
    optimizer = build_optimizer(parameter_groups(network, train), train)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
    images, targets = pictures(size, batch)
    images = ImageBatch(*(each.to(device) for each in images))
    targets = [Target(*(each.to(device) for each in target)) for target in targets]
    torch.cuda.reset_peak_memory_stats()
    times, finite, losses = [], 0, []
    for _ in range(count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            output = network(images, targets)
        loss = criterion(output, targets).total
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = clip_gradients(optimizer, train.clip)
        finite += bool(norm.isfinite())
        scaler.step(optimizer)
        scaler.update()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    return {
        "seconds": statistics.median(times[1:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "finite_steps": finite,
        "steps": count,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


if __name__ == "__main__":
    main()
