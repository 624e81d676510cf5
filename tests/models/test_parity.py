"""Our detectors against the original authors' numbers: outputs, losses, matching, gradients.

The numbers of small detectors lie in ``parity/``. Where the authors' code lies beside the
checkout, slow tests make further ones. ``make_parity_fixtures.py`` says what is compared.
"""

from typing import NamedTuple

import pytest
import torch
from tests.models import make_parity_fixtures as fixtures

from detrlab.checkpoints import official
from detrlab.checkpoints.rules import export, translate_strictly
from detrlab.config import TrainConfig
from detrlab.evaluation.postprocess import decode
from detrlab.models.queries.denoising import Noise
from detrlab.ops import deformable
from detrlab.presets import ORIGINALS, build_network
from detrlab.presets.deformable import (
    DeformableDetr,
    DeformableDetrRefine,
    DeformableDetrTwoStage,
)
from detrlab.presets.dino import Dino, DnDeformableDetr, MixedDeformableDetr
from detrlab.scoring import SoftmaxScoring
from detrlab.structures import ImageBatch, Target
from tiny_detectors import PLANES, tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")


class Tolerance(NamedTuple):
    """Largest differences.

    Attributes:
        outputs: absolute, of logits and boxes.
        memory: absolute, of the encoder's output.
        losses: relative.
        gradients: relative to the gradient itself.
        share: of a gradient, relative to the norm of all gradients.
    """

    outputs: float
    memory: float
    losses: float
    gradients: float
    share: float


SINGLE = Tolerance(outputs=1e-5, memory=1e-5, losses=1e-5, gradients=1e-4, share=1e-5)
# Stored in double precision, computed in single: convolutions differ between processors, and a
# sampling point may fall on the other side of a cell's border, where gradients jump.
STORED = SINGLE._replace(outputs=2e-5, memory=1e-4, share=5e-5)
# The originals keep a part of the sine embedding in single precision even here.
DOUBLE = Tolerance(outputs=1e-6, memory=1e-6, losses=1e-6, gradients=1e-6, share=1e-6)
LOGGED_ONLY = ("cardinality_error", "loss_xy", "loss_hw")
DINO = [preset for preset, case in fixtures.CASES.items() if case[0] == "dino-4scale"]
OURS = {  # suffix of the original's loss names -> name of our set
    "_0": "layer0",
    "_1": "layer1",
    "": "final",
    "_enc": "proposal",
    "_interm": "proposal",
    "_dn_0": "denoising_layer0",
    "_dn_1": "denoising_layer1",
    "_dn": "denoising_final",
}


def single(preset, tolerance):
    """DINO's content passes more layers of attention before it is compared."""
    if preset not in DINO:
        return tolerance
    return Tolerance(outputs=1e-4, memory=1e-4, losses=1e-4, gradients=0, share=3e-3)


# --- the interface of the package -----------------------------------------------------------


def build(preset, values, planes):
    """Our configuration of the preset, at the sizes of the original."""
    theirs = values["arguments"]
    sizes = {"width": theirs["hidden_dim"], "num_queries": theirs["num_queries"], "num_heads": 8}
    if preset in DINO:
        sizes["denoising"] = theirs["dn_number"]
    return tiny_config(preset, theirs.get("num_classes", 20), planes, **sizes)


def check_settings(config, theirs):
    """The preset says what the original's arguments said."""
    assert config.dilation == theirs["dilation"]
    assert isinstance(config, DeformableDetrRefine) == theirs.get("with_box_refine", False)
    assert isinstance(config, DeformableDetrTwoStage) == theirs.get("two_stage", False)
    assert config.num_heads == theirs["nheads"]
    if isinstance(config, DeformableDetr):
        assert config.levels == theirs["num_feature_levels"]
        assert {config.points} == {theirs[f"{part}_n_points"] for part in ("enc", "dec")}
    if isinstance(config, DnDeformableDetr):
        assert config.label_noise == theirs["dn_label_noise_ratio"]
        assert config.box_noise == theirs["dn_box_noise_scale"]
        assert isinstance(config, MixedDeformableDetr) == theirs["embed_init_tgt"]
        assert isinstance(config, Dino) != theirs["use_detached_boxes_dec_out"]


def replay(network, expected, config, targets):
    """Let the denoising queries use the noise that the original drew."""
    objects = sum(len(each.labels) for each in targets)
    chosen = expected["noise.chosen"].view(-1, objects)
    labels = torch.zeros(chosen.shape, dtype=torch.int64)
    labels[chosen < config.label_noise / 2] = expected["noise.labels"].long()
    signs, parts = (expected[f"noise.{name}"].view(-1, objects, 4) for name in ("signs", "parts"))
    noise = Noise(chosen, labels, signs * 2.0 - 1.0, parts)

    def draw(_targets, groups):
        assert groups * network.queries.kinds == len(chosen)
        return noise

    network.queries.draw = draw


def run(network, config, images, targets):
    """Predictions by loss suffix, memory tokens that are not padding, losses, matched pairs."""
    kept = []
    network.encoder.register_forward_hook(lambda _module, _inputs, memory: kept.append(memory))
    output = network(images, targets)
    losses = config.criterion(TrainConfig())(output, targets)
    suffixes = {name: suffix for suffix, name in OURS.items()}
    suffixes["proposal"] = "_interm" if config.preset in DINO else "_enc"
    # Without objects there are denoising sets without queries, which the originals do not have.
    predictions = {
        suffixes[each.name]: each.predictions
        for each in output.sets
        if each.predictions.logits.shape[1]
    }
    pairs = {suffixes[name]: matches for name, matches in losses.matches.items()}
    theirs = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}
    named = {
        f"{theirs[term]}{suffixes[name]}": value
        for name, terms in losses.terms.items()
        for term, value in terms.items()
    }
    named["class_error"] = losses.class_error
    if config.scoring == SoftmaxScoring():  # with sigmoids we count otherwise, on purpose
        named["cardinality_error"] = losses.cardinality_error
    return predictions, kept[0].tokens[~kept[0].padding], named, losses.total, pairs


# --- the comparison -------------------------------------------------------------------------


def batch(values, expected, dtype):
    """The originals' images, padded, and their targets."""
    images = fixtures.images(values["image_seed"])
    height, width = (max(size[axis] for size in fixtures.SIZES) for axis in (0, 1))
    pixels = torch.zeros(len(images), 3, height, width, dtype=dtype)
    padding = torch.ones(len(images), height, width, dtype=torch.bool)
    for index, (image, (h, w)) in enumerate(zip(images, fixtures.SIZES, strict=True)):
        pixels[index, :, :h, :w] = image
        padding[index, :h, :w] = False
    targets = [
        Target(expected[f"labels.{i}"].long(), expected[f"target_boxes.{i}"].to(dtype))
        for i in range(len(images))
    ]
    return ImageBatch(pixels, padding), targets


def check_all(path, dtype, tolerance, planes="tiny", preset=None):
    """Compare everything; with the name of another preset, that one instead of the file's own."""
    values, expected = fixtures.read(path)
    config = build(preset or values["preset"], values, planes)
    layout = official.layout(config)
    network = build_network(config).train().to(dtype)
    if preset is None:
        check_settings(config, values["arguments"])
    drawn = {  # a tensor under several names is drawn under the first
        first: fixtures.weight(first, tuple(shape), values["seed"])
        for name, shape, first in values["state"]
        if name == first
    }
    theirs = {name: drawn[first] for name, _, first in values["state"]}
    network.load_state_dict(translate_strictly(theirs, layout, network.state_dict()), strict=True)
    back = export(network.state_dict(), layout)
    assert set(back) == set(theirs)
    assert all(torch.equal(back[name], tensor.to(dtype)) for name, tensor in theirs.items())

    images, targets = batch(values, expected, dtype)
    if "noise.chosen" in expected:
        replay(network, expected, config, targets)
    predictions, memory, losses, total, pairs = run(network, config, images, targets)
    check_outputs(predictions, memory, expected, tolerance)
    check_losses(losses, values["losses"], tolerance)
    torch.testing.assert_close(total.item(), values["total"], rtol=tolerance.losses, atol=0)
    check_pairs(pairs, expected)
    check_detections(predictions[""], config, values["sizes"], expected)
    total.backward()
    check_gradients(network, layout, values, expected, tolerance)


def close(ours, theirs, name, relative=0.0, absolute=0.0):
    def message(text):
        return f"{name}: {text}"

    ours = ours.to(theirs.dtype)
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=absolute, msg=message)


def check_outputs(predictions, memory, expected, tolerance):
    """Every layer's predictions, the proposals', and the encoder's output."""
    ours = {"memory": fixtures.spread(memory, fixtures.MEMORY_SAMPLES)}
    for suffix, each in predictions.items():
        ours |= {f"logits{suffix}": each.logits, f"boxes{suffix}": each.boxes}
    stored = [name for name in expected if name.split("_")[0] in ("memory", "logits", "boxes")]
    assert set(ours) == set(stored)
    for name, value in ours.items():
        absolute = tolerance.memory if name == "memory" else tolerance.outputs
        close(value, expected[name], name, absolute=absolute)


def check_losses(losses, expected, tolerance):
    """Every term of every set, not weighted."""
    for name in set(expected) - set(losses):  # DINO's code adds zeros where it denoised nothing
        assert name.startswith(LOGGED_ONLY) or (name.split("_")[2] == "dn" and not expected[name])
    for name, value in losses.items():
        close(value, torch.tensor(expected[name], dtype=value.dtype), name, tolerance.losses)


def check_pairs(pairs, expected):
    for suffix, images in pairs.items():
        for image, found in enumerate(images):
            ours = torch.stack([found.queries, found.objects])
            assert torch.equal(ours, expected[f"pairs{suffix}.{image}"].long()), (suffix, image)


def check_gradients(network, layout, values, expected, tolerance):
    """The digest of every trainable tensor's gradient, under the originals' first name for it."""
    elements = expected["gradient_elements"]
    wanted = {}
    shapes = {name: shape for name, shape, _ in values["state"]}
    start = 0
    for index, name in enumerate(values["gradients"]):
        count = len(fixtures.spread(torch.empty(shapes[name]), fixtures.SAMPLES))
        part = elements[start : start + count]
        start += count
        wanted[name] = (*(expected[f"gradient_{x}"][index] for x in ("norms", "products")), part)
    assert start == len(elements)
    absolute = tolerance.share * values["gradient_norm"]
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        (theirs,) = {each for (each,) in layout.names(name)} & set(wanted)
        for ours, value in zip(
            fixtures.digest(theirs, parameter.grad), wanted.pop(theirs), strict=True
        ):
            close(ours, value, f"gradient of {theirs}", tolerance.gradients, absolute)
    assert not wanted, sorted(wanted)


def check_detections(final, config, sizes, expected):
    limit = 20 if config.preset in DINO else 100
    decoded = decode(final, config.scoring, [tuple(size) for size in sizes], limit)
    for image in range(len(sizes)):
        # DETR leaves its detections in the order of the queries.
        order = torch.arange(len(decoded.scores[image]))
        if config.scoring == SoftmaxScoring():
            order = decoded.queries[image].argsort()
        names = ("scores", "labels", "boxes")
        for name, absolute in zip(names, (1e-5, 0, 2e-3), strict=True):
            ours = getattr(decoded, name)[image][order]
            close(ours, expected[f"detected_{name}.{image}"], name, 1e-5, absolute)


# --- the tests ------------------------------------------------------------------------------


PRESETS = tuple(fixtures.CASES)


def stored(preset):
    return fixtures.FOLDER / f"{preset}.npz"


def test_every_original_is_compared_and_the_files_are_small():
    assert {*ORIGINALS, *DINO} == set(PRESETS) == {path.stem for path in fixtures.FOLDER.iterdir()}
    assert sum(stored(preset).stat().st_size for preset in PRESETS) < 2e6


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stored_numbers(preset, dtype):
    tolerance = DOUBLE if dtype == torch.float64 else single(preset, STORED)
    check_all(stored(preset), dtype, tolerance)


def test_look_forward_twice_differs_in_gradients_only():
    with pytest.raises(AssertionError, match=r"^gradient of"):
        check_all(stored("mixed-deformable-detr"), torch.float64, DOUBLE, preset="dino-4scale")


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["deformable-detr", "deformable-detr-two-stage", "dino-4scale"])
def test_stored_numbers_by_the_kernels(preset):
    problem = deformable.problem("cpu")
    if problem is not None:
        pytest.skip(f"the CPU kernels do not work here: {problem}")
    with deformable.use("cpu"):
        check_all(stored(preset), torch.float32, single(preset, STORED))


LIVE = [(preset, 7, "tiny", fixtures.COUNTS) for preset in PRESETS]
LIVE += [("detr-dc5", 1, "std", fixtures.COUNTS)]
LIVE += [("deformable-detr-two-stage", 1, "std", fixtures.COUNTS)]
LIVE += [("dino-4scale", 7, "tiny", (0, 0, 0))]


@pytest.mark.slow
@pytest.mark.skipif(
    not fixtures.ORIGINALS.is_dir(), reason="the authors' code does not lie beside the checkout"
)
@pytest.mark.parametrize(("preset", "seed", "planes", "counts"), LIVE)
def test_live(preset, seed, planes, counts, tmp_path):
    path = tmp_path / "numbers.npz"
    # In single precision the sums of wide convolutions differ between processors.
    dtype = torch.float64 if planes == "std" else torch.float32
    fixtures.make(preset, path, seed, PLANES[planes], str(dtype).removeprefix("torch."), counts)
    tolerance = DOUBLE if dtype == torch.float64 else single(preset, SINGLE)
    check_all(path, dtype, tolerance, planes)
