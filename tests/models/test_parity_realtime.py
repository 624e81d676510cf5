"""The real-time detectors against the authors' numbers: outputs, losses, matching, gradients.

As ``test_parity.py``; ``realtime_parity.py`` says what is compared.
"""

import copy
import zlib
from typing import NamedTuple

import pytest
import torch
from tests.models import realtime_parity as originals
from tests.models.make_parity_fixtures import digest
from tests.models.realtime_parity import ORIGINALS, section

from detrlab.checkpoints import official
from detrlab.checkpoints.rules import export, translate_strictly
from detrlab.config import TrainConfig
from detrlab.evaluation.postprocess import decode
from detrlab.models.prepare import plain, prepare
from detrlab.models.queries import proposals
from detrlab.models.queries.denoising import Noise
from detrlab.presets import PRESETS, build_network
from detrlab.structures import ImageBatch, Target
from tiny_detectors import tiny_resnet_d

pytestmark = pytest.mark.usefixtures("plain_ops")


class Tolerance(NamedTuple):
    """Largest differences.

    Attributes:
        outputs: of logits and boxes, relative to the largest of them.
        losses: relative.
        gradients: of a gradient, relative to the norm of all gradients.
    """

    outputs: float
    losses: float
    gradients: float


DOUBLE = Tolerance(outputs=1e-6, losses=1e-6, gradients=1e-6)
SINGLE = Tolerance(outputs=1e-4, losses=1e-4, gradients=3e-3)


# --- our detector ---------------------------------------------------------------------------


def configure(values):
    """Our settings from the original's configuration."""
    tree = values["tree"]
    if originals.num_ahead(tree):
        return configure_distributions(values)
    decoder, encoder = section(tree, "decoder"), section(tree, "encoder")
    backbone, criterion = section(tree, "backbone"), section(tree, "criterion")
    name = values["name"]
    name = f"{name}-dsp" if decoder.get("cross_attn_method") == "discrete" else name
    usual = PRESETS[name](preset=name, num_classes=values["classes"])
    # What the preset says is what the original's configuration said.
    assert usual.expansion == encoder["expansion"]
    assert usual.backbone_norms == ("frozen" if backbone["freeze_norm"] else "trained")
    assert usual.backbone_trains == ("all" if backbone["freeze_at"] < 0 else "body")
    assert usual.label_noise == decoder.get("label_noise_ratio", 0.5)
    assert usual.box_noise == decoder.get("box_noise_scale", 1.0)
    assert usual.levels == decoder["num_levels"]
    assert encoder["use_encoder_idx"] == [usual.levels - 1]
    assert criterion["matcher"]["alpha"] == 0.25
    if "vfl" in criterion["losses"]:
        assert (criterion["alpha"], criterion["gamma"]) == (0.75, 2.0)
    else:
        assert (criterion["losses"][0], criterion["gamma"]) == ("mal", 1.5)
    points = decoder.get("num_points", 4)
    return usual.change(
        backbone=tiny_resnet_d(basic=backbone["depth"] < 50),
        width=decoder["hidden_dim"],
        ffn_width=decoder["dim_feedforward"],
        decoder_layers=originals.num_layers(tree),
        num_queries=decoder["num_queries"],
        denoising=decoder["num_denoising"],
        points=tuple(points) if isinstance(points, list) else points,
        encoder_width=encoder["hidden_dim"],
        encoder_ffn_width=encoder["dim_feedforward"],
        encoder_layers=encoder["num_encoder_layers"],
        num_heads=encoder["nhead"],
    )


def configure_distributions(values):
    """Our settings of D-FINE and after, from the original's configuration."""
    tree, name = values["tree"], values["name"]
    decoder, encoder = section(tree, "decoder"), section(tree, "encoder")
    backbone, criterion = tree["HGNetv2"], section(tree, "criterion")
    name = name.replace("deim-", "deim-d-fine-")
    usual = PRESETS[name](preset=name, num_classes=values["classes"])
    assert usual.expansion == encoder["expansion"]
    assert usual.fusing_blocks == round(3 * encoder["depth_mult"])
    assert usual.backbone == f"hgnetv2_{backbone['name'].lower()}"
    assert usual.affine == backbone["use_lab"]
    assert usual.backbone_norms == ("frozen" if backbone["freeze_norm"] else "trained")
    assert usual.label_noise == decoder["label_noise_ratio"]
    assert usual.points == tuple(decoder["num_points"])
    assert usual.edge_scale == decoder["reg_scale"]
    assert usual.decoder_layers == decoder["num_layers"]
    assert usual.levels == decoder["num_levels"]
    weights = {term.name: term.weight for term in usual.criterion(TrainConfig()).terms}
    named = {
        term: weights[originals.TERMS[term]]
        for term in originals.TERMS
        if originals.TERMS[term] in weights
    }
    for loss, weight in criterion["weight_dict"].items():
        assert named.get(loss.removeprefix("loss_"), weight) == weight, loss
    return usual.change(
        width=decoder["hidden_dim"],
        ffn_width=decoder["dim_feedforward"],
        num_queries=decoder["num_queries"],
        denoising=decoder["num_denoising"],
        encoder_width=encoder["hidden_dim"],
        encoder_ffn_width=encoder.get("dim_feedforward", usual.encoder_ffn_width),
    )


def noise_of(tensors, targets):
    """What the original drew for its denoising queries, for the objects that there are."""
    sizes = [len(each.labels) for each in targets]
    image = torch.cat([torch.full((size,), index) for index, size in enumerate(sizes)])
    place = torch.cat([torch.arange(size) for size in sizes])

    def pick(index):
        drawn = tensors[f"noise.{index}"].unflatten(1, (-1, max(sizes)))  # (B, R, most, ...)
        return drawn[image, :, place].transpose(0, 1)

    return Noise(pick(0), pick(1).long(), pick(2) * 2.0 - 1.0, pick(3))


def keep_single_precision(network, monkeypatch, *, always):
    """The originals' anchors are in single precision whatever the network's.

    RT-DETR's always, its successors' in evaluation.
    """
    original = proposals.anchor_logits

    def in_single(memory):
        if network.training and not always:
            return original(memory)
        logits, usable = original(memory._replace(valid_ratios=memory.valid_ratios.float()))
        return logits.to(memory.tokens.dtype), usable

    monkeypatch.setattr(proposals, "anchor_logits", in_single)


def move_position(network, seed):
    """``witness.py`` moves every buffer, also the encoder's position that evaluation reads."""
    position = network.encoder.within[0].position
    original = position._embed

    def moved(padding):
        embedded = original(padding)
        draw = torch.Generator().manual_seed(
            (zlib.crc32(b"encoder.pos_embed2") + 7919 * seed) % 2**31
        )
        noise = torch.randn(embedded[:1].shape, generator=draw)
        return embedded if network.training else embedded + 0.1 * embedded[0].std() * noise

    position._embed = moved


# --- the comparison -------------------------------------------------------------------------


def close(ours, theirs, name, tolerance):
    """Relative to the largest entry."""
    scale = max(1e-3, theirs.abs().max().item()) if theirs.numel() else 1.0
    difference = (ours.double() - theirs.double()).abs().max().item() if theirs.numel() else 0.0
    assert ours.shape == theirs.shape, name
    assert difference <= tolerance * scale, f"{name}: {difference / scale:.1e}"
    return difference / scale


def check_all(values, tensors, state, pixels, dtype, tolerance, monkeypatch, moved=None):
    """Compare everything.

    Returns:
        The largest differences of outputs, losses and gradients.
    """
    config = configure(values)
    network = build_network(config).to(dtype)
    always = values["name"].startswith("rt-detr-r")
    keep_single_precision(network, monkeypatch, always=always)
    layout = official.layout(config)
    mine = translate_strictly(state, layout, network.state_dict())
    network.load_state_dict(mine, strict=False)
    if moved is not None:
        move_position(network, moved)
    check_names(network, layout, values)
    count = sum(f"target.labels.{image}" in tensors for image in range(len(pixels)))
    targets = [
        Target(tensors[f"target.labels.{i}"].long(), tensors[f"target.boxes.{i}"].to(dtype))
        for i in range(count)
    ]
    images = ImageBatch(pixels.to(dtype), torch.zeros(pixels[:, 0].shape, dtype=torch.bool))
    worst = [check_evaluation(network, config, images, values, tensors, tolerance)]
    if "noise.0" in tensors:
        network.queries.draw = lambda *_: noise_of(tensors, targets)
    output = network.train()(images, targets)
    for each in output.sets:
        if f"logits.{each.name}" in tensors:  # without objects we have empty sets for denoising
            for part in ("logits", "boxes"):
                found = getattr(each.predictions, part)
                wanted = tensors[f"{part}.{each.name}"]
                worst.append(close(found, wanted, f"{part} of {each.name}", tolerance.outputs))
    criterion = config.criterion(TrainConfig())
    losses = criterion(output, targets)
    for name, matches in losses.matches.items():
        for image, found in enumerate(matches):
            wanted = tensors[f"pairs.{name}.{image}"].long()
            assert torch.equal(torch.stack([found.queries, found.objects]), wanted), name
    lost = check_losses(losses, criterion, values["losses"], values, tolerance)
    if values.get("late"):
        late = criterion.at_the_end()
        check_losses(late(output, targets), late, values["late"], values, tolerance)
    losses.total.backward()
    return max(worst), lost, check_gradients(network, layout, values, tensors, tolerance)


def check_names(network, layout, values):
    """We write every name of the original's, with its shape, and train what it trains."""
    back = export(network.state_dict(), layout)
    assert set(back) == {name for name, _ in values["state"]}
    for name, shape in values["state"]:
        if name not in layout.derived:
            assert back[name].shape == tuple(shape), name
    fixed = {name for name, each in network.named_parameters() if not each.requires_grad}
    fixed = {name for each in fixed for parts in layout.names(each) for name in parts}
    assert fixed == set(values["frozen"]) - set(originals.CONSTANTS)


@torch.no_grad()
def check_evaluation(network, config, images, values, tensors, tolerance):
    """Outputs and detections of the network as it is used."""
    final = network.eval()(images).final
    worst = max(
        close(getattr(final, part), tensors[f"eval.{part}"], f"eval {part}", tolerance.outputs)
        for part in ("logits", "boxes")
    )
    sizes = [(height, width) for width, height in values["sizes"]]
    limit = tensors["found.scores.0"].shape[0]
    decoded = decode(final, config.scoring, sizes, limit)
    for image in range(len(sizes)):
        for part in ("scores", "boxes"):
            found, wanted = getattr(decoded, part)[image], tensors[f"found.{part}.{image}"]
            close(found, wanted, f"detected {part}", max(tolerance.outputs, 1e-5))
        assert torch.equal(decoded.labels[image], tensors[f"found.labels.{image}"].long())
    return worst


def check_losses(losses, criterion, expected, values, tolerance):
    """Every term of every set with its weight."""
    weights = {term.name: term.weight for term in criterion.terms}
    sizes = originals.num_layers(values["tree"]), originals.num_ahead(values["tree"])
    wanted = {originals.our_loss(name, *sizes): each for name, each in expected.items()}
    found = {
        (name, term): weights[term] * value.item()
        for name, row in losses.terms.items()
        for term, value in row.items()
    }
    # Without objects we have no denoising, and RT-DETRv2 one query that is to show nothing.
    empty = {key for key in {*found, *wanted} if "denoising" in key[0] and not _objects(losses)}
    # D-FINE lists that the last layer learns from itself.
    empty |= {key for key in wanted if key[1] == "distil" and wanted[key] == 0.0}
    assert set(found) - empty == set(wanted) - empty
    worst = 0.0
    for key in set(wanted) - empty:
        difference = abs(found[key] - wanted[key]) / max(abs(wanted[key]), 1e-3)
        assert difference <= tolerance.losses, (key, difference)
        worst = max(worst, difference)
    return worst


def _objects(losses):
    return sum(len(each.queries) for each in losses.matches["final"])


def check_gradients(network, layout, values, tensors, tolerance):
    """The digest of every gradient, by the originals' names."""
    gradients = {name: each.grad for name, each in network.named_parameters() if each.requires_grad}
    assert all(each is not None for each in gradients.values())
    ours = {
        name: each
        for name, each in export(gradients, layout, one_name_each=True).items()
        if name not in layout.derived
    }
    wanted = {name for name, _ in values["gradients"]}
    for name in set(ours) - wanted:  # without objects, the label embedding takes no part there
        assert not ours.pop(name).any(), name
    assert set(ours) == wanted
    start, worst = 0, 0.0
    for index, (name, _) in enumerate(values["gradients"]):
        norm, product, elements = digest(name, ours[name])
        theirs = tensors["gradient.elements"][start : start + len(elements)]
        start += len(elements)
        pairs = [
            (norm, tensors["gradient.norms"][index]),
            (product, tensors["gradient.products"][index]),
            (elements, theirs),
        ]
        for found, wanted in pairs:
            difference = (found.double() - wanted.double()).abs().max().item()
            difference /= values["gradient_norm"]
            assert difference <= tolerance.gradients, f"gradient of {name}: {difference:.1e}"
            worst = max(worst, difference)
    assert start == len(tensors["gradient.elements"])
    return worst


# --- the tests ------------------------------------------------------------------------------


def test_the_files_are_small():
    files = {path.stem: path.stat().st_size for path in originals.FOLDER.iterdir()}
    assert set(files) == set(originals.SEEDS)
    assert max(files.values()) < 250_000


@pytest.mark.parametrize("name", originals.SEEDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stored_numbers(name, dtype, monkeypatch):
    tolerance = DOUBLE if dtype == torch.float64 else SINGLE
    check_all(*originals.stored(name), dtype, tolerance, monkeypatch)


SQUARE = {"eval_spatial_size": [128, 128]}
DISCRETE = {"RTDETRTransformerv2": {"cross_attn_method": "discrete"}, **SQUARE}
POINTS = {"RTDETRTransformerv2": {"num_points": [3, 1, 2]}}
LIVE = [
    ("rt-detr-r18", "float64", None, (4, 1, 0)),
    ("rt-detr-r18", "float32", None, (4, 1, 0)),
    ("rt-detr-r18", "float64", None, (0, 0, 0)),
    ("rt-detr-v2-r18", "float64", None, (4, 1, 0)),
    ("rt-detr-v2-r18", "float32", None, (4, 1, 0)),
    ("rt-detr-v2-r18", "float64", POINTS, (2, 3, 1)),
    ("rt-detr-v2-r18", "float64", DISCRETE, (4, 1, 0)),
    ("rt-detr-v2-r50", "float64", None, (4, 1, 0)),
    ("rt-detr-v2-r50", "float32", None, (4, 1, 0)),
    ("deim-rt-detr-v2-r18", "float64", None, (4, 1, 0)),
    ("deim-rt-detr-v2-r18", "float32", None, (4, 1, 0)),
    ("deimv2-femto", "float64", None, (0, 0, 0)),
    ("deimv2-n", "float64", None, (0, 0, 0)),
    *(
        (name, dtype, None, (4, 1, 0))
        for name in (
            *("d-fine-n", "d-fine-s", "deim-n"),
            *("deimv2-atto", "deimv2-femto", "deimv2-pico", "deimv2-n"),
        )
        for dtype in ("float64", "float32")
    ),
]


@pytest.mark.slow
@pytest.mark.skipif(
    not ORIGINALS.is_dir(), reason="the authors' code does not lie beside the checkout"
)
@pytest.mark.parametrize(("name", "dtype", "changes", "counts"), LIVE)
def test_live(name, dtype, changes, counts, monkeypatch):
    record = originals.live(name, dtype=dtype, config=changes, counts=counts)
    values, tensors = originals.summarise(record)
    worst = check_all(
        values,
        tensors,
        record["state_dict"],
        record["pixel_values"],
        getattr(torch, dtype),
        DOUBLE if dtype == "float64" else SINGLE,
        monkeypatch,
        moved=record["seed"] if name.startswith("rt-detr") else None,
    )
    print(name, dtype, changes, counts, *(f"{each:.1e}" for each in worst))
    if dtype == "float64":
        check_deployed(record, values, monkeypatch)


def check_deployed(record, values, monkeypatch):
    """The form for inference: norms folded, RepVGG blocks merged, later heads dropped."""
    config = configure(values)
    network = build_network(config).double().eval()
    keep_single_precision(network, monkeypatch, always=values["name"].startswith("rt-detr-r"))
    layout = official.layout(config)
    network.load_state_dict(
        translate_strictly(record["state_dict"], layout, network.state_dict()), strict=False
    )
    if values["name"].startswith("rt-detr"):
        move_position(network, record["seed"])
    pixels = record["pixel_values"].double()
    images = ImageBatch(pixels, torch.zeros(pixels[:, 0].shape, dtype=torch.bool))
    theirs = record["deploy"]["outputs"]
    for form in (prepare(copy.deepcopy(network)).eval(), plain(network)):
        with torch.no_grad():
            found = form(images).final
        close(found.logits, theirs["pred_logits"], "deployed logits", DOUBLE.outputs)
        close(found.boxes, theirs["pred_boxes"], "deployed boxes", DOUBLE.outputs)
