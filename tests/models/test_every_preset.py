"""What holds for every preset: training, evaluation, invariances, files, published sizes."""

import copy
import functools

import pytest
import torch
import yaml

import detrlab
from detrlab.benchmark.cost import gflops
from detrlab.checkpoints import official
from detrlab.config import TrainConfig
from detrlab.models.attention import DiscreteAttention
from detrlab.models.encoders.transformer import resize_padding, valid_ratio
from detrlab.models.prepare import prepare
from detrlab.models.queries.denoising import Noise
from detrlab.presets import PRESETS, build_network, model_config, parse_config
from detrlab.structures import ImageBatch, Memory, Target
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")

CLASSES = ("a", "b", "c", "d", "e")
STRIDES = (4, 8, 16, 32, 64)
DINO = [name for name in PRESETS if hasattr(tiny_config(name), "temperature")]
DENOISING = [name for name in PRESETS if hasattr(tiny_config(name), "denoising")]
REALTIME = [name for name in PRESETS if hasattr(tiny_config(name), "expansion")]
DISTRIBUTIONS = [name for name in PRESETS if hasattr(tiny_config(name), "edge_scale")]
# Where several sets agree on pairs, the order decides between equally frequent ones.
UNITED = [
    name
    for name in DISTRIBUTIONS
    if any(term.union for term in tiny_config(name).criterion(TrainConfig()).terms)
]
PROPOSING = ["deformable-detr-two-stage", *DINO, *REALTIME]
LEARNED = [name for name in PRESETS if name not in PROPOSING]
every_preset = pytest.mark.parametrize("preset", PRESETS)


@functools.cache
def _original(preset, num_queries, changes):
    """Random values everywhere: many initial values are zero and would hide mistakes."""
    few = {"denoising": 4} if preset in DENOISING else {}
    config = tiny_config(preset, len(CLASSES), num_queries=num_queries, **few, **dict(changes))
    network = build_network(config)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, each in network.state_dict().items():
            if name.endswith(("running_var", "num_batches_tracked")):
                continue
            noise = torch.randn(each.shape, generator=draw)
            each += noise if "sampling_offsets.bias" in name else 0.15 * noise
    return network, config


def built(preset, num_queries=12, **changes):
    """A network of its own, and its settings."""
    network, config = _original(preset, num_queries, tuple(changes.items()))
    return copy.deepcopy(network), config


def batch(padded=True):
    pixels = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(5))
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, 64:] = padded
    return ImageBatch(pixels * ~padding[:, None], padding)


def trained(network):
    """In training mode, but for batch norms: they would compute something else."""
    network.train()
    for each in network.modules():
        if isinstance(each, torch.nn.BatchNorm2d):
            each.eval()
    return network


def strides_of(config):
    """Of the memory's levels."""
    levels = getattr(config, "levels", 1)
    if config.preset in REALTIME:  # C5 is the coarsest
        return STRIDES[4 - levels : 4]
    return STRIDES[-levels:] if levels > 1 else (32,)


def targets_of(*sizes):
    draw = torch.Generator().manual_seed(1)
    return [
        Target(
            torch.randint(len(CLASSES), (size,), generator=draw),
            torch.rand(size, 4, generator=draw) * 0.3 + 0.2,
        )
        for size in sizes
    ]


def assert_same(found, expected, order=slice(None)):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits[:, order], rtol=5e-4, atol=5e-5)
        torch.testing.assert_close(ours.boxes, theirs.boxes[:, order], rtol=5e-4, atol=1e-5)


# --- training and evaluation ----------------------------------------------------------------


@every_preset
@torch.no_grad()
def test_targets_and_training_mode_do_not_change_detections(preset):
    network, config = built(preset)
    images, targets = batch(), targets_of(3, 1)
    output = trained(network)(images, targets)
    plain = network.eval()(images)
    assert_same(output.layers, plain.layers)
    layers = ["layer0", "layer1", "final"]
    if preset in DISTRIBUTIONS:  # the first layer predicts twice
        layers = ["layer0", "layer1", "layer2", "final"]
    assert [each.name for each in plain.sets] == layers
    more = (["proposal"] if preset in PROPOSING else []) + (
        [f"denoising_{name}" for name in layers] if preset in DENOISING else []
    )
    assert [each.name for each in output.sets] == layers + more
    logits = config.scoring.num_logits(len(CLASSES))
    for each in output.sets:
        count = each.predictions.logits.shape[1]
        assert each.predictions.logits.shape == (2, count, logits)
        assert each.predictions.boxes.shape == (2, count, 4)
        if "corners" not in each.predictions.details:  # those may reach over the edge
            assert each.predictions.boxes.min() >= 0
            assert each.predictions.boxes.max() <= 1
    assert plain.final.logits.shape[1] == 12


@every_preset
@pytest.mark.parametrize("sizes", [(3, 1), (0, 0)], ids=["objects", "no objects"])
def test_every_trainable_parameter_gets_a_gradient(preset, sizes):
    network, config = built(preset)
    targets = targets_of(*sizes)
    losses = config.criterion(TrainConfig())(network.train()(batch(), targets), targets)
    assert losses.invalid_costs == 0
    losses.total.backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or not sum(sizes), name


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in UNITED])
@torch.no_grad()
def test_the_order_of_objects_does_not_matter(preset):
    network, config = built(preset)
    targets, order = targets_of(4, 1), torch.tensor([2, 0, 3, 1])
    moved = [Target(*(each[order] for each in targets[0])), targets[1]]
    criterion = config.criterion(TrainConfig())
    torch.manual_seed(3)
    plain = criterion(network(batch(), targets), targets).total
    if preset in DENOISING:
        draw, columns = network.queries.draw, torch.cat([order, torch.tensor([4])])
        network.queries.draw = lambda *of: Noise(*(each[:, columns] for each in draw(*of)))
    torch.manual_seed(3)
    permuted = criterion(network(batch(), moved), moved).total
    torch.testing.assert_close(permuted, plain, rtol=1e-4, atol=0)


# --- invariances ----------------------------------------------------------------------------


@every_preset
@torch.no_grad()
def test_the_images_of_a_batch_do_not_mix(preset):
    network, _ = built(preset)
    images = batch()
    together = network.eval()(images)
    alone = network(ImageBatch(*(each[1:] for each in images)))
    assert_same([alone.final], [together.final.__class__(*(x[1:] for x in together.final[:2]))])


def memory_of(network, config, padded, garbage=37.0):
    """A memory of fixed features of a 192 x 256 image, with rows and columns added.

    Args:
        padded: (height, width) with the padding.
        garbage: what the padded cells hold.
    """
    strides = strides_of(config)
    padding = torch.ones(1, *padded, dtype=torch.bool)
    padding[:, :192, :256] = False
    tokens, paddings = [], []
    for level, stride in enumerate(strides):
        draw = torch.Generator().manual_seed(100 + level)
        h, w = 192 // stride, 256 // stride
        features = torch.full((1, config.width, padded[0] // stride, padded[1] // stride), garbage)
        features[:, :, :h, :w] = torch.randn(1, config.width, h, w, generator=draw)
        tokens.append(features)
        paddings.append(resize_padding(padding, features.shape[-2:]))
    flat = torch.cat([each.flatten(2).transpose(1, 2) for each in tokens], 1)
    position = torch.zeros_like(flat)
    if config.preset not in REALTIME:
        position = torch.cat(network.encoder.neck.position(paddings, torch.float32), 1)
    return Memory(
        tokens=flat,
        position=position,
        padding=torch.cat([each.flatten(1) for each in paddings], 1),
        level_shapes=tuple(tuple(each.shape[-2:]) for each in tokens),
        valid_ratios=torch.stack([valid_ratio(each, torch.float32) for each in paddings], 1),
    )


@torch.no_grad()
def transform(network, memory):
    encoder = network.encoder
    if hasattr(encoder, "layers"):  # others transform before the levels become one memory
        references = encoder.references and encoder.references(memory)
        for layer in encoder.layers:
            memory = layer(memory, references)
    return network.decoder(network.queries(memory)[0], memory)


@every_preset
def test_padding_does_not_reach_the_transformer(preset):
    network, config = built(preset)
    if preset in DINO:  # its anchors are embedded as fractions of the padded image
        position = network.decoder.position
        embed = position.forward
        position.forward = lambda queries, memory: embed(
            queries, memory._replace(valid_ratios=torch.ones_like(memory.valid_ratios))
        )
    plain = transform(network, memory_of(network, config, (192, 256)))
    memory = memory_of(network, config, (320, 448))
    assert_same(transform(network, memory), plain)
    seen = transform(network, memory._replace(padding=torch.zeros_like(memory.padding)))
    if any(isinstance(each, DiscreteAttention) for each in network.modules()):
        return  # it reads unpadded cells only
    assert (plain[-1].logits - seen[-1].logits).abs().max() > 0.01


@pytest.mark.parametrize("preset", LEARNED)
def test_queries_have_no_order(preset):
    network, config = built(preset)
    memory = memory_of(network, config, (192, 256))
    before = transform(network, memory)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    tables = [each for each in network.queries.parameters() if len(each) == 12]
    assert tables
    with torch.no_grad():
        for table in tables:
            table.copy_(table[order].clone())
    assert_same(transform(network, memory), before, order)


@pytest.mark.parametrize("preset", PROPOSING)
def test_fewer_cells_than_queries(preset):
    network, config = built(preset, num_queries=300)
    images = ImageBatch(batch().pixels[:, :, :64, :64], batch(padded=False).padding[:, :64, :64])
    targets = targets_of(2, 1)
    output = network(images, targets)
    cells = sum((64 // stride) ** 2 for stride in strides_of(config))
    assert output.final.logits.shape == (2, min(cells, 300), len(CLASSES))
    assert config.criterion(TrainConfig())(output, targets).total.isfinite()


@pytest.mark.parametrize(("points", "levels"), [(1, 1), (3, 2), (3, 5)])
@torch.no_grad()
def test_other_numbers_of_points_and_levels(points, levels):
    network, _ = built("deformable-detr-refine", points=points, levels=levels)
    assert len(network.encoder.neck.projections) == levels
    assert network(batch()).final.boxes.isfinite().all()


# --- settings and files ---------------------------------------------------------------------


@every_preset
@torch.no_grad()
def test_settings_and_weights_come_back(preset, tmp_path):
    network, config = built(preset)
    config.save(tmp_path / "settings.yaml")
    settings = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert parse_config(settings) == type(config).load(tmp_path / "settings.yaml") == config
    assert type(parse_config(settings)) is PRESETS[preset]

    detector = detrlab.Detector(network.eval(), config, CLASSES)
    again = detrlab.load(detector.save(tmp_path / "detector"))
    assert (again.config, again.classes) == (config, CLASSES)
    state = again.network.state_dict()
    assert all(torch.equal(state[name], each) for name, each in network.state_dict().items())
    # Loading prepares for speed, which rounds otherwise.
    assert_same(again.network(batch()).layers, prepare(network)(batch()).layers)


# preset, backbone: keys of the original's state dict, distinct tensors, parameters, trainable.
PUBLISHED = {
    ("detr", "resnet50"): (458, 458, 41_524_768, 41_302_368),
    ("detr-dc5", "resnet50"): (458, 458, 41_524_768, 41_302_368),
    ("detr", "resnet101"): (713, 713, 60_464_672, 60_242_272),
    ("deformable-detr-single-scale", "resnet50"): (549, 509, 34_066_593, 33_844_193),
    ("deformable-detr-single-scale-dc5", "resnet50"): (549, 509, 34_066_593, 33_844_193),
    ("deformable-detr", "resnet50"): (561, 521, 40_069_665, 39_847_265),
    ("deformable-detr-refine", "resnet50"): (597, 561, 40_849_660, 40_627_260),
    ("deformable-detr-two-stage", "resnet50"): (630, 574, 41_181_529, 40_959_129),
    ("cdn-deformable-detr", "resnet50"): (625, 537, 46_662_782, 46_440_382),
    ("mixed-deformable-detr", "resnet50"): (626, 538, 46_893_182, 46_670_782),
    ("dino-4scale", "resnet50"): (626, 538, 46_893_182, 46_670_782),
    ("dino-5scale", "resnet50"): (630, 542, 47_255_806, 47_033_406),
}


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("rt-detr-r18", 20), ("rt-detr-r34", 31), ("rt-detr-r50-m", 36), ("rt-detr-r50", 42),
        ("rt-detr-r101", 76), ("rt-detr-v2-r18", 20), ("rt-detr-v2-r34", 31),
        ("rt-detr-v2-r50-m", 36), ("rt-detr-v2-r50", 42), ("rt-detr-v2-r101", 76),
    ],
)  # fmt: skip
def test_real_time_detectors_have_the_published_size(preset, millions):
    with torch.device("meta"):
        network = build_network(model_config(preset, 80))
    assert sum(each.numel() for each in network.parameters()) // 10**6 == millions


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "published"), [("rt-detr-r18", 60), ("rt-detr-r34", 92), ("rt-detr-r50", 136)]
)
def test_real_time_detectors_have_the_published_cost(preset, published):
    network = build_network(model_config(preset, 80)).eval()
    # Their tables count a multiplication and an addition as two.
    assert abs(2 * gflops(network, (640, 640)) - published) < 1


@pytest.mark.parametrize(("preset", "backbone"), PUBLISHED)
def test_full_size_has_the_originals_tensors(preset, backbone):
    config = model_config(preset, 91, backbone=backbone)
    with torch.device("meta"):
        network = build_network(config)
    layout = official.layout(config)
    ours = network.state_dict()
    theirs = [name for each in ours for parts in layout.names(each) for name in parts]
    assert len(theirs) == len(set(theirs)), "two of our tensors claim one name"
    sizes = [each.numel() for each in network.parameters()]
    trained = [each.numel() for each in network.parameters() if each.requires_grad]
    counts = (len(theirs), len(ours), sum(sizes), sum(trained))
    assert counts == PUBLISHED[preset, backbone]
    backbone_keys = [name for name in theirs if name.startswith("backbone.0.body.")]
    assert len(backbone_keys) == {"resnet50": 265, "resnet101": 520}[backbone]
