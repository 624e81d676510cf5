"""Our detectors against the originals' numbers: outputs, losses, matching, gradients.

The numbers were made with transformers, corrected wherever it differs from the original code;
they lie beside the checkout, as does the program that makes more of them.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from REMOVED import Weights  # TODO

from detrlab.checkpoints import official
from detrlab.checkpoints.rules import export, translate_strictly
from detrlab.evaluation.postprocess import decode
from detrlab.losses.criterion import Criterion
from detrlab.ops import deformable
from detrlab.presets import ORIGINALS, build_network
from detrlab.structures import ImageBatch, Target
from tiny_detectors import tiny_config

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle"
pytestmark = [
    pytest.mark.usefixtures("plain_ops"),
    pytest.mark.skipif(
        not ORACLE.is_dir(), reason="the originals' numbers do not lie beside the checkout"
    ),
]


def preset_of(variant: str) -> str:
    name = variant.replace("_", "-")
    return name if name.startswith("detr") else name.replace("deformable", "deformable-detr")


VARIANTS = (
    "detr",
    "detr_dc5",
    "deformable",
    "deformable_refine",
    "deformable_two_stage",
    "deformable_single_scale",
    "deformable_single_scale_dc5",
)


def test_every_original_is_compared():
    assert {preset_of(variant) for variant in VARIANTS} == set(ORIGINALS)


def config_of(blob):
    arch = blob["arch"]
    preset = preset_of(blob["meta"]["variant"])
    config = tiny_config(preset, arch["num_classes"], blob["meta"]["width"])
    # The preset must say what the originals' arguments said.
    assert config.dilation == arch["dilation"]
    assert config.levels == arch["num_feature_levels"]
    assert config.refine == arch["with_box_refine"]
    assert (config.queries == "proposals") == arch["two_stage"]
    assert (config.width, config.num_heads) == (arch["d_model"], arch["heads"])
    assert (config.num_queries, config.points) == (arch["num_queries"], arch["n_points"])
    return config


class Run:
    """Our detector with the originals' weights, run on the originals' batch."""

    def __init__(self, blob):
        self.blob = blob
        self.config = config_of(blob)
        self.layout = official.layout(self.config)
        self.network = build_network(self.config)
        wanted = self.network.state_dict()
        state = translate_strictly(blob["state_dict"], self.layout, wanted)
        self.dtype = blob["inputs"]["pixel_values"].dtype
        self.network.to(self.dtype).load_state_dict(state, strict=True)
        self.network.train()
        self.network.encoder.register_forward_pre_hook(self._keep_position)
        self.network.encoder.register_forward_hook(self._keep_memory)
        inputs = blob["inputs"]
        self.output = self.network(ImageBatch(inputs["pixel_values"], inputs["padding_mask"]))
        self.targets = [Target(t["labels"], t["boxes"]) for t in blob["targets"]]
        self.scoring = self.config.scoring

    def _keep_position(self, _module, inputs):
        self.position = inputs[0].position

    def _keep_memory(self, _module, _inputs, memory):
        self.memory = memory

    def losses(self):
        weights = Weights(self.scoring.class_weight)
        return Criterion(self.scoring, weights)(self.output, self.targets)


def check_outputs(run, tolerance, memory_tolerance):
    """Position, memory at unpadded cells, every layer's predictions, proposals."""
    expected = run.blob["outputs"]

    def close(ours, theirs):
        torch.testing.assert_close(ours, theirs, **tolerance)

    visible = ~expected["memory_padding"]
    assert torch.equal(~run.memory.padding, visible)
    close(run.position[visible], expected["pos_embed"][visible])
    torch.testing.assert_close(
        run.memory.tokens[visible], expected["memory"][visible], **memory_tolerance
    )
    if "valid_ratios" in expected:
        close(run.memory.valid_ratios, expected["valid_ratios"])
        assert run.memory.level_shapes == tuple(map(tuple, expected["spatial_shapes"].tolist()))
    sets = [
        *((aux["pred_logits"], aux["pred_boxes"]) for aux in expected["aux_outputs"]),
        (expected["pred_logits"], expected["pred_boxes"]),
    ]
    assert len(run.output.layers) == len(sets) == 3
    for ours, (logits, boxes) in zip(run.output.layers, sets, strict=True):
        close(ours.logits, logits)
        close(ours.boxes, boxes)
    assert (run.output.proposals is not None) == ("enc_outputs" in expected)
    if run.output.proposals is not None:
        close(run.output.proposals.logits, expected["enc_outputs"]["pred_logits"])
        close(run.output.proposals.boxes, expected["enc_outputs"]["pred_boxes"])


def check_losses(run, losses, relative):
    """Every term of every set, the total, and the matching."""
    expected = run.blob["losses"]
    sets = {"_0": losses.layers[0], "_1": losses.layers[1], "": losses.layers[2]}
    if losses.proposals is not None:
        sets["_enc"] = losses.proposals
    ours = {
        f"{name}{suffix}": value
        for suffix, terms in sets.items()
        for name, value in zip(("loss_ce", "loss_bbox", "loss_giou"), terms, strict=True)
    }
    assert set(ours) == set(expected)
    for name, value in ours.items():
        torch.testing.assert_close(value, expected[name], rtol=relative, atol=0, msg=name)
    torch.testing.assert_close(losses.total, run.blob["total_loss"], rtol=relative, atol=0)
    indices = run.blob["indices"]
    for layer, name in enumerate(["_0", "_1", "last"]):
        for match, (queries, objects) in zip(losses.matches[layer], indices[name], strict=True):
            assert match.queries.tolist() == queries.tolist()
            assert match.objects.tolist() == objects.tolist()


def check_gradients(run, relative, share):
    """The norm of every trainable tensor's gradient, under each name the originals give it."""
    expected = dict(run.blob["grads"]["per_parameter"])
    total = run.blob["grads"]["total"]
    squares = []
    for name, parameter in run.network.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        norm = parameter.grad.norm()
        squares.append(norm**2)
        for (theirs,) in run.layout.names(name):
            if theirs in expected:
                wanted = expected.pop(theirs)
                torch.testing.assert_close(
                    norm, wanted, rtol=relative, atol=share * float(total), msg=theirs
                )
            else:  # the originals' second name of a head
                assert theirs.startswith("transformer.decoder."), theirs
    leftover = {name for name in expected if not name.startswith("transformer.decoder.")}
    assert not leftover, sorted(leftover)
    torch.testing.assert_close(torch.stack(squares).sum().sqrt(), total, rtol=relative, atol=0)


def check_detections(run, tolerance):
    expected = run.blob["detections"]
    sizes = [tuple(size) for size in run.blob["orig_sizes"].tolist()]
    decoded = decode(run.output.final, run.scoring, sizes)
    if run.config.scoring == "softmax":  # the originals leave these in query order
        order = decoded.queries.argsort(dim=1)
    else:
        order = torch.arange(decoded.scores.shape[1]).expand_as(decoded.scores)
    ours = decoded.scores.gather(1, order)
    torch.testing.assert_close(ours, expected["scores"].float(), **tolerance)
    assert torch.equal(decoded.labels.gather(1, order), expected["labels"])
    boxes = decoded.boxes.gather(1, order[..., None].expand(-1, -1, 4))
    torch.testing.assert_close(boxes, expected["boxes"].float(), rtol=1e-5, atol=2e-3)


def check_all(blob, *, outputs, losses, gradients, memory=None):
    run = Run(blob)
    check_outputs(run, outputs, memory or outputs)
    computed = run.losses()
    check_losses(run, computed, relative=losses)
    computed.total.backward()
    check_gradients(run, relative=gradients, share=1e-5)
    check_detections(run, {"rtol": 1e-5, "atol": 1e-5})
    return run


SINGLE = {"outputs": {"rtol": 0, "atol": 1e-5}, "losses": 1e-5, "gradients": 1e-4}
# The originals compute the sine embedding in float32 even here; transformers and we do not.
DOUBLE = {"outputs": {"rtol": 1e-6, "atol": 1e-6}, "losses": 1e-6, "gradients": 1e-6}
# The stored numbers come from another processor, whose convolutions round otherwise: run again
# on a second one, transformers itself differs from them by 4.2e-5 in the memory and 1.05e-5 in
# the logits. Compared live, on one processor, we hold 1e-5.
STORED = {**SINGLE, "outputs": {"rtol": 0, "atol": 2e-5}, "memory": {"rtol": 0, "atol": 1e-4}}


@pytest.mark.parametrize("variant", VARIANTS)
def test_stored_numbers(variant):
    path = ORACLE / "fixtures" / f"{variant}-float32-seed0.pt"
    blob = torch.load(path, weights_only=True)
    run = check_all(blob, **STORED)
    back = export(run.network.state_dict(), run.layout)
    assert set(back) == set(blob["state_dict"])
    assert all(torch.equal(back[name], tensor) for name, tensor in blob["state_dict"].items())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["deformable", "deformable_two_stage"])
def test_stored_numbers_by_the_kernels(variant):
    problem = deformable.problem("cpu")
    if problem is not None:
        pytest.skip(f"the CPU kernels do not work here: {problem}")
    with deformable.use("cpu"):
        check_all(torch.load(ORACLE / "fixtures" / f"{variant}-float32-seed0.pt"), **STORED)


@pytest.fixture(scope="module")
def oracle():
    pytest.importorskip("transformers")
    spec = importlib.util.spec_from_file_location("hf_oracle", ORACLE / "hf_oracle.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.slow), 7])
@pytest.mark.parametrize("variant", VARIANTS)
def test_live(oracle, variant, seed):
    blob, _ = oracle.make_oracle(variant, seed=seed)
    check_all(blob, **SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_full_backbone_width(oracle, variant):
    blob, _ = oracle.make_oracle(variant, seed=3, width="std")
    check_all(blob, **SINGLE)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_double_precision(oracle, variant):
    blob, _ = oracle.make_oracle(variant, seed=1, dtype=torch.float64)
    check_all(blob, **DOUBLE)
