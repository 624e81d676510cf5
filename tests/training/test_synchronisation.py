"""A GPU must not wait for each layer or query: transfers and read values are counted.

On a CPU what would make a GPU wait is counted as it is called; on a GPU PyTorch reports it.
"""

import collections
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from detrlab.config import TrainConfig
from detrlab.models import attention
from detrlab.models.prepare import prepare
from detrlab.presets import build_network
from detrlab.structures import ImageBatch, Target

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tiny_detectors import tiny_config

READS = {"cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"}
SHAPED_BY_VALUES = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero",
    "equal",
}  # fmt: skip
ON_THE_CPU = ("ops/shares.py", "losses/union.py", "losses/matching.py")
"""Where tensors are on the CPU: what is drawn, and the pairs once the costs have been fetched."""
PRESETS = ["detr", "deformable-detr-two-stage", "dino-4scale", "rt-detr-r18", "d-fine-n"]


def place():
    """The nearest line of detrlab that is being run."""
    frame = sys._getframe()
    while frame is not None and "/detrlab/" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame and f"{frame.f_code.co_filename.split('/detrlab/')[-1]}:{frame.f_lineno}"


class Calls(TorchFunctionMode):
    """Counts what is called on tensors by name and line."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        moved = name == "to" and any(isinstance(each, torch.device | str) for each in args[1:])
        if name in READS or (moved and not (kwargs or {}).get("non_blocking")):
            self.counts[f"{name} {place()}"] += 1
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts operations whose result has a shape that depends on values."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        index = args[1] if name.startswith("index") and len(args) > 1 else ()
        masks = isinstance(index, list | tuple) and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in index
        )
        if name in SHAPED_BY_VALUES or masks:
            self.counts[f"{name} {place()}"] += 1
        return func(*args, **(kwargs or {}))


def step(preset, device="cpu", **sizes):
    """What a forward and a backward pass need."""
    config = tiny_config(preset, 3, **sizes)
    network = prepare(build_network(config)).train().to(device)
    draw = torch.Generator().manual_seed(0)
    padding = torch.zeros(2, 64, 96, dtype=torch.bool, device=device)
    images = ImageBatch(torch.randn(2, 3, 64, 96, generator=draw).to(device), padding)
    targets = [
        Target(
            torch.tensor([0, 1, 2], device=device),
            (torch.rand(3, 4, generator=draw) * 0.3 + 0.3).to(device),
        )
        for _ in range(2)
    ]
    return network, config.criterion(TrainConfig()), images, targets


def waits(preset, **sizes):
    network, criterion, images, targets = step(preset, **sizes)
    counts = collections.Counter()
    with Calls(counts), Operations(counts):
        criterion(network(images, targets), targets).total.backward()
    return {
        name: count
        for name, count in counts.items()
        if not any(file in name for file in ON_THE_CPU) or name.startswith("cpu losses/matching")
    }


@pytest.mark.usefixtures("plain_ops")
@pytest.mark.parametrize("preset", PRESETS)
def test_no_wait_for_each_layer_or_query(preset, monkeypatch):
    monkeypatch.setattr(attention, "may_hold", lambda _: True)  # as on a GPU
    few = waits(preset, decoder_layers=2, num_queries=8)
    assert waits(preset, decoder_layers=5, num_queries=8) == few
    assert waits(preset, decoder_layers=2, num_queries=24) == few
    fetched = sum(count for name, count in few.items() if name.startswith("cpu"))
    assert 1 <= fetched <= 2, few  # the costs: of the layers, and of the first stage
    assert sum(few.values()) <= 4, few


def test_a_wait_is_counted():
    counts = collections.Counter()
    with Calls(counts), Operations(counts):
        values = torch.arange(3.0)
        values[values > 1].sum().item()
        values.to(torch.device("cpu"))
    assert sum(counts.values()) >= 3, counts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", PRESETS)
def test_no_wait_on_a_gpu(preset):
    def reported(layers):
        network, criterion, images, targets = step(preset, "cuda", decoder_layers=layers)
        criterion(network(images, targets), targets).total.backward()  # compiles what it needs
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                criterion(network(images, targets), targets).total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return len([each for each in found if "synchronizing" in str(each.message)])

    assert reported(2) == reported(5) <= 6
