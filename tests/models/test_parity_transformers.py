"""Our detectors against transformers' models, built here and now, mapped by our own table.

Needs nothing but the package. transformers differs from the original code in known places;
each is put right here and marked.
"""

import re

import pytest
import torch
from REMOVED import Weights  # TODO
from torch import nn

from detrlab.boxes import inverse_sigmoid
from detrlab.checkpoints import hf
from detrlab.checkpoints.hf_config import to_transformers
from detrlab.checkpoints.rules import clean, export, translate_strictly
from detrlab.losses.criterion import Criterion
from detrlab.presets import ORIGINALS, build_network
from detrlab.structures import ImageBatch, Target
from tiny_detectors import tiny_config

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("plain_ops")

CLASSES = tuple("abcde")
SETS = ("_0", "_1", "")


def build_theirs(config, seed, dtype):
    """transformers' model with strong random weights."""
    values = to_transformers(config, CLASSES)
    kind = "DeformableDetr" if config.attention == "deformable" else "Detr"
    their_config = getattr(transformers, f"{kind}Config")(**values)
    their_config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForObjectDetection")(their_config)
    if config.refine and config.queries == "points":
        # transformers ties the class heads even with refinement; the original does not.
        model.class_embed = nn.ModuleList(
            nn.Linear(config.width, len(CLASSES)) for _ in model.class_embed
        )
    model = model.to(dtype)
    randomise(model, seed)
    for name, parameter in model.model.backbone.model.named_parameters():
        # transformers freezes nothing of a timm backbone that it does not know by name.
        parameter.requires_grad_(re.match(r"layer[234]\.", name) is not None)
    return model.train()


@torch.no_grad()
def randomise(model, seed):
    """Random values large enough to show every mistake; each tensor once."""
    draw = torch.Generator().manual_seed(seed)
    seen = set()
    for name, each in sorted(
        {**dict(model.named_parameters()), **dict(model.named_buffers())}.items()
    ):
        if each.data_ptr() in seen or not each.is_floating_point():
            continue
        seen.add(each.data_ptr())
        noise = torch.rand(each.shape, generator=draw, dtype=torch.float64) * 2 - 1
        if name.endswith("running_var"):
            noise = 1.1 + 0.5 * noise
        elif "norm" in name or re.search(r"\.bn\d\.|downsample\.1\.|input_proj\.\d\.1\.", name):
            noise = (1 if name.endswith("weight") else 0) + 0.3 * noise
        elif "sampling_offsets.bias" in name:
            noise = 2 * noise
        elif "query_position_embeddings" in name or "level_embed" in name:
            pass
        elif each.dim() > 1:
            noise *= (3 / each[0].numel()) ** 0.5 * (1.4 if each.dim() == 4 else 1)
        else:
            noise *= 0.3
        each.copy_(noise)


def make_batch(seed, dtype, config):
    """Two images, the second padded; wide ones where proposals are cut off near the edge."""
    sizes = ((96, 512), (80, 416)) if config.queries == "proposals" else ((128, 160), (96, 128))
    draw = torch.Generator().manual_seed(100 + seed)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = torch.zeros(2, 3, height, width, dtype=dtype)
    padding = torch.ones(2, height, width, dtype=torch.bool)
    targets = []
    for image, (h, w) in enumerate(sizes):
        pixels[image, :, :h, :w] = torch.randn(3, h, w, generator=draw, dtype=dtype)
        padding[image, :h, :w] = False
        count = 3 - image
        sides = torch.rand(count, 2, generator=draw, dtype=dtype) * 0.4 + 0.1
        centers = torch.rand(count, 2, generator=draw, dtype=dtype) * (1 - sides) + sides / 2
        labels = torch.randint(0, len(CLASSES), (count,), generator=draw)
        targets.append(Target(labels, torch.cat([centers, sides], 1)))
    return ImageBatch(pixels, padding), targets


def run_theirs(model, images, config):
    """Predictions of every layer and of the proposals, and the memory."""
    states, memory = [], {}

    def keep_state(_module, _inputs, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    def keep_inputs(_module, _inputs, named):
        memory["position"] = named["spatial_position_embeddings"]
        memory["visible"] = named["attention_mask"].bool()

    for layer in model.model.decoder.layers:
        layer.register_forward_hook(keep_state)
    model.model.encoder.register_forward_pre_hook(keep_inputs, with_kwargs=True)
    output = model(pixel_values=images.pixels, pixel_mask=(~images.padding).long())
    memory["tokens"] = output.encoder_last_hidden_state
    if config.attention == "dense":
        # With auxiliary_loss transformers would feed the normalised state to the next layer.
        normed = [model.model.decoder.layernorm(state) for state in states]
        layers = [
            (model.class_labels_classifier(each), model.bbox_predictor(each).sigmoid())
            for each in normed
        ]
        return layers, None, memory
    layers = []
    for index, state in enumerate(output.intermediate_hidden_states.unbind(1)):
        before = output.intermediate_reference_points[:, index - 1]
        reference = inverse_sigmoid(before if index else output.init_reference_points)
        deltas = model.bbox_embed[index](state)
        known = reference.shape[-1]
        boxes = torch.cat([deltas[..., :known] + reference, deltas[..., known:]], -1).sigmoid()
        layers.append((model.class_embed[index](state), boxes))
    proposals = None
    if config.queries == "proposals":
        proposals = (output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid())
    return layers, proposals, memory


def their_losses(layers, proposals, targets, config):
    """transformers' criteria, on every set the originals judge, with the originals' weights."""
    from transformers.loss import loss_deformable_detr, loss_for_object_detection

    if config.scoring == "softmax":
        costs = {"class_cost": 1, "bbox_cost": 5, "giou_cost": 2}
        matcher = loss_for_object_detection.HungarianMatcher(**costs)
        criterion = loss_for_object_detection.ImageLoss(
            matcher, len(CLASSES), eos_coef=0.1, losses=["labels", "boxes"]
        )
    else:
        costs = {"class_cost": 2, "bbox_cost": 5, "giou_cost": 2}
        matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(**costs)
        criterion = loss_deformable_detr.DeformableDetrImageLoss(
            matcher, len(CLASSES), focal_alpha=0.25, losses=["labels", "boxes"]
        )
    criterion = criterion.to(layers[0][0].dtype)
    theirs = [{"class_labels": t.labels, "boxes": t.boxes} for t in targets]
    terms, matches = {}, {}
    sets = dict(zip(SETS, layers, strict=True))
    if proposals is not None:
        sets["_enc"] = proposals  # transformers never judges the first stage; the original does
    for suffix, (logits, boxes) in sets.items():
        wanted = theirs
        if suffix == "_enc":
            wanted = [{**t, "class_labels": torch.zeros_like(t["class_labels"])} for t in theirs]
        outputs = {"logits": logits, "pred_boxes": boxes}
        matches[suffix] = matcher(outputs, wanted)
        terms[suffix] = criterion(outputs, wanted)
    weights = {"loss_ce": costs["class_cost"], "loss_bbox": 5, "loss_giou": 2}
    total = sum(weights[name] * each[name] for each in terms.values() for name in weights)
    return terms, matches, total


def compare(preset, seed, dtype, outputs, relative, planes="tiny", **changes):
    config = tiny_config(preset, planes=planes, **changes)
    model = build_theirs(config, seed, dtype)
    images, targets = make_batch(seed, dtype, config)
    layers, proposals, memory = run_theirs(model, images, config)
    terms, matches, total = their_losses(layers, proposals, targets, config)
    total.backward()

    state = clean(model.state_dict())
    table = hf.layout(config, hf.IN_MEMORY)
    network = build_network(config).to(dtype).train()
    network.load_state_dict(translate_strictly(state, table, network.state_dict()))
    kept = {}
    network.encoder.register_forward_pre_hook(lambda _, inputs: kept.update(before=inputs[0]))
    network.encoder.register_forward_hook(lambda _, __, result: kept.update(after=result))
    ours = network(images)
    scoring = config.scoring
    losses = Criterion(scoring, Weights(scoring.class_weight))(ours, targets)
    losses.total.backward()

    tolerance = 0 if dtype == torch.float32 else outputs

    def close(a, b):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=outputs)

    visible = memory["visible"]
    assert torch.equal(~kept["before"].padding, visible)
    close(kept["before"].position[visible], memory["position"][visible])
    close(kept["after"].tokens[visible], memory["tokens"][visible])
    for mine, (logits, boxes) in zip(ours.layers, layers, strict=True):
        close(mine.logits, logits)
        close(mine.boxes, boxes)
    if proposals is not None:
        close(ours.proposals.logits, proposals[0])
        close(ours.proposals.boxes, proposals[1])

    judged = dict(zip(SETS, losses.layers, strict=True))
    if proposals is not None:
        judged["_enc"] = losses.proposals
    for suffix, each in judged.items():
        for name, value in zip(("loss_ce", "loss_bbox", "loss_giou"), each, strict=True):
            torch.testing.assert_close(value, terms[suffix][name], rtol=relative, atol=0)
    torch.testing.assert_close(losses.total, total, rtol=relative, atol=0)
    for suffix, pairs in zip(SETS, losses.matches, strict=True):
        for mine, (queries, objects) in zip(pairs, matches[suffix], strict=True):
            assert mine.queries.tolist() == queries.tolist()
            assert mine.objects.tolist() == objects.tolist()
    compare_gradients(network, model, table, 10 * relative)
    return model, network, table


def compare_gradients(network, model, table, relative):
    """Every element of every gradient, through the same table that carries the weights."""
    theirs = dict(model.named_parameters(remove_duplicate=False))
    mine = {name: each for name, each in network.named_parameters() if each.requires_grad}
    total = torch.stack([each.grad.norm() for each in mine.values()]).norm()
    gradients = export({name: each.grad for name, each in mine.items()}, table)
    for name, gradient in gradients.items():
        wanted = theirs[name].grad
        if wanted is None:
            # Only the original's second name of a head, which transformers keeps untied here.
            assert not gradient.any(), name
            continue
        torch.testing.assert_close(
            gradient, wanted, rtol=relative, atol=float(1e-5 * total), msg=name
        )
    frozen = {name for name, each in network.named_parameters() if not each.requires_grad}
    assert all(network.get_parameter(name).grad is None for name in frozen)
    reached = {name for name, each in theirs.items() if each.requires_grad}
    assert reached <= set(gradients), sorted(reached - set(gradients))[:5]


@pytest.mark.parametrize("preset", ORIGINALS)
def test_single_precision(preset):
    compare(preset, 0, torch.float32, outputs=1e-5, relative=1e-5)


@pytest.mark.parametrize("preset", ORIGINALS)
def test_double_precision(preset):
    # Even here transformers embeds the proposals in single precision, and keeps the no-object
    # weight 0.1 in it.
    outputs = 1e-6 if "two-stage" in preset else 1e-9
    compare(preset, 1, torch.float64, outputs=outputs, relative=max(outputs, 1e-8))


@pytest.mark.slow
@pytest.mark.parametrize("preset", ORIGINALS)
def test_published_backbone_width(preset):
    compare(preset, 2, torch.float32, outputs=1e-5, relative=1e-5, planes="std")


def test_three_points():
    compare("deformable-detr-refine", 3, torch.float32, outputs=1e-5, relative=1e-5, points=3)


def test_state_dicts_go_there_and_back():
    for preset in ORIGINALS:
        config = tiny_config(preset)
        state = clean(build_theirs(config, 4, torch.float32).state_dict())
        table = hf.layout(config, hf.IN_MEMORY)
        ours = translate_strictly(state, table, build_network(config).state_dict())
        back = export(ours, table)
        assert set(back) == set(state)
        assert all(torch.equal(back[name], each) for name, each in state.items())
