import pytest
import torch

from detrlab.config import TrainConfig
from detrlab.presets import build_network, model_config
from detrlab.structures import ImageBatch, Target
from detrlab.training.engine import seed_step
from detrlab.training.gradient_checkpointing import checkpoint_layers


@pytest.mark.parametrize("preset", ["detr", "deformable-detr-two-stage"])
@pytest.mark.parametrize("norms", ["frozen", "trained"])
def test_checkpointing_saves_memory_and_changes_nothing(preset, norms, tiny_config):
    config = tiny_config(
        preset,
        model={
            "backbone_norms": norms,
            "backbone_trains": "late" if norms == "frozen" else "all",
            "dropout": 0.1,
            "encoder_layers": 2,
        },
    ).model
    criterion = config.criterion(TrainConfig())
    draw = torch.Generator().manual_seed(0)
    images = ImageBatch(
        torch.randn(2, 3, 72, 56, generator=draw), torch.zeros(2, 72, 56, dtype=torch.bool)
    )
    targets = [Target(torch.tensor([0]), torch.tensor([[0.4, 0.5, 0.2, 0.3]]))] * 2
    found = {}
    for way in ("plain", "recomputed"):
        network = build_network(config).train()
        names = list(network.state_dict())
        count = checkpoint_layers(network) if way == "recomputed" else 0
        assert list(network.state_dict()) == names
        seed_step(0, 0, 0)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, kept=kept: kept.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            loss = criterion(network(images), targets).total
        loss.backward()
        gradients = {name: each.grad for name, each in network.named_parameters()}
        statistics = dict(network.named_buffers())
        found[way] = (loss.detach(), gradients, statistics, sum(kept), count)
    plain, again = found["plain"], found["recomputed"]
    assert again[4] >= 4 + (norms == "frozen")
    assert torch.equal(plain[0], again[0])
    for name, gradient in plain[1].items():
        assert (gradient is None) == (again[1][name] is None), name
        assert gradient is None or torch.equal(gradient, again[1][name]), name
    for name, buffer in plain[2].items():
        assert torch.equal(buffer, again[2][name]), name
    assert again[3] < 0.7 * plain[3] if norms == "frozen" else again[3] < plain[3]


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [("resnet18", 4), ("tf_efficientnet_lite0", 7), ("convnext_atto", 4), ("test_resnet", 4)],
)
def test_stages_of_any_backbone_are_found(backbone, stages):
    with torch.device("meta"):
        network = build_network(model_config("detr", 2, backbone=backbone))
    layers = len(network.encoder.layers) + len(network.decoder.layers)
    assert checkpoint_layers(network) == layers + stages
