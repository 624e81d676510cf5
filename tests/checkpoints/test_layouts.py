"""Rename tables: every name consumed, there and back equal, mistakes caught."""

import dataclasses

import pytest
import torch
from checkpoint_cases import assert_same_tensors, strong_state

from detrlab.checkpoints import hf, official
from detrlab.checkpoints.rules import Layout, clean, export, translate, translate_strictly
from detrlab.errors import UserError
from detrlab.presets import ORIGINALS, build_network
from detrlab.structures import ImageBatch
from tiny_detectors import tiny_config

pytestmark = pytest.mark.usefixtures("plain_ops")

SPELLINGS = {
    "in memory": hf.IN_MEMORY,
    "on disk": hf.ON_DISK,
    "in memory, own ResNet": hf.IN_MEMORY._replace(own_resnet=True),
    "on disk, own ResNet": hf.ON_DISK._replace(own_resnet=True),
}


def layouts(config):
    yield official.layout(config)
    for spelling in SPELLINGS.values():
        yield hf.layout(config, spelling)


@pytest.mark.parametrize("preset", [*ORIGINALS, "detr-sigmoid"])
def test_there_and_back_is_equal(preset):
    config = tiny_config(preset)
    state = strong_state(config)
    for layout in layouts(config):
        theirs = export(state, layout)
        back = translate_strictly(theirs, layout, state)
        assert_same_tensors(back, state)
        assert export(back, layout).keys() == theirs.keys()


@pytest.mark.parametrize("preset", ORIGINALS)
def test_every_row_names_something_and_only_one_names_each(preset):
    config = tiny_config(preset)
    names = list(build_network(config).state_dict())
    for layout in layouts(config):
        for row in layout.rows:
            alone = dataclasses.replace(layout, rows=(row,))
            assert any(matched(alone, name) for name in names) or dilatable(row), row
        claims = [parts for name in names for parts in layout.names(name)]
        assert len(claims) == len(set(claims))
        for name in names:
            matching = [
                row
                for row in layout.rows
                if matched(dataclasses.replace(layout, rows=(row,)), name)
            ]
            assert len(matching) == 1, (name, matching)


def matched(layout, name):
    try:
        return layout.names(name)
    except KeyError:
        return None


def dilatable(row):
    """Rows that only some backbones need."""
    return "downsample" in row[0]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_spelling_is_recognised(spelling):
    config = tiny_config("deformable-detr")
    theirs = export(strong_state(config), hf.layout(config, SPELLINGS[spelling]))
    assert hf.spelling_of(theirs) == SPELLINGS[spelling]


def official_state(preset):
    config = tiny_config(preset)
    state = strong_state(config)
    return export(state, official.layout(config)), official.layout(config), state


def test_an_unknown_name_is_caught():
    theirs, layout, state = official_state("detr")
    theirs["transformer.encoder.norm.weight"] = torch.ones(64)
    with pytest.raises(UserError, match=r"unknown 'transformer\.encoder\.norm\.weight'"):
        translate_strictly(theirs, layout, state)


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("detr", "transformer.decoder.norm.bias"),
        ("deformable-detr", "input_proj.3.1.weight"),
        ("deformable-detr", "class_embed.2.weight"),  # an alias: PyTorch's files hold them all
        ("deformable-detr-refine", "transformer.decoder.bbox_embed.1.layers.0.bias"),
        ("deformable-detr-two-stage", "transformer.pos_trans.weight"),
    ],
)
def test_a_missing_name_is_caught(preset, name):
    theirs, layout, state = official_state(preset)
    del theirs[name]
    with pytest.raises(UserError, match=f"lacks '{name}'"):
        translate_strictly(theirs, layout, state)


def test_aliases_must_be_equal():
    theirs, layout, state = official_state("deformable-detr")
    theirs["class_embed.2.weight"] = theirs["class_embed.2.weight"] + 1e-3
    with pytest.raises(UserError, match=r"'class_embed\.0\.weight' and 'class_embed\.2\.weight'"):
        translate(theirs, layout, state)


def test_the_plain_model_writes_one_head_for_every_layer():
    theirs, _, state = official_state("deformable-detr")
    for layer in range(3):
        assert torch.equal(
            theirs[f"bbox_embed.{layer}.layers.1.weight"],
            state["decoder.heads.0.boxes.layers.1.weight"],
        )


def test_wrappers_and_counters_are_dropped():
    theirs, layout, state = official_state("detr")
    wrapped = {f"module.{name}": each for name, each in theirs.items()}
    wrapped["module.backbone.0.body.bn1.num_batches_tracked"] = torch.tensor(7)
    wrapped["module.transformer.total_ops"] = torch.zeros(1)
    back = translate_strictly(wrapped, layout, state)
    assert_same_tensors(back, state)
    assert clean({}) == {}


@pytest.mark.parametrize("preset", ORIGINALS)
def test_transformers_files_keep_one_name_of_each_tensor(preset):
    config = tiny_config(preset)
    state = strong_state(config)
    layout = hf.layout(config, hf.ON_DISK)
    kept = export(state, layout, one_name_each=True)
    pointers = [each.data_ptr() for each in kept.values()]
    assert len(pointers) == len(set(pointers))
    back = translate_strictly(kept, layout, state)
    assert_same_tensors(back, state)
    # Whichever alias is there will do.
    other = {name: each for name, each in export(state, layout).items() if name not in kept}
    shared = {
        n: e for n, e in kept.items() if e.data_ptr() not in {o.data_ptr() for o in other.values()}
    }
    last = {**shared, **other}
    assert set(translate(last, layout, state).tensors) == set(state)


def test_tied_class_heads_of_a_refining_model_are_filled_from_the_first():
    config = tiny_config("deformable-detr-refine")
    state = strong_state(config)
    for index in (1, 2):
        for kind in ("weight", "bias"):
            state[f"decoder.heads.{index}.classes.{kind}"] = state[
                f"decoder.heads.0.classes.{kind}"
            ]
    layout = hf.layout(config, hf.ON_DISK)
    theirs = export(state, layout, one_name_each=True)
    for index in (1, 2):
        del theirs[f"class_embed.{index}.weight"], theirs[f"class_embed.{index}.bias"]
    back = translate_strictly(theirs, layout, state)
    assert_same_tensors(back, state)
    # Box heads are never tied: a missing one is missing.
    del theirs["model.decoder.bbox_embed.1.layers.0.bias"]
    with pytest.raises(UserError, match=r"lacks 'model\.decoder\.bbox_embed\.1\.layers\.0\.bias'"):
        translate_strictly(theirs, layout, state)


def test_half_a_packed_projection_is_missing():
    config = tiny_config("detr")
    state = strong_state(config)
    layout = hf.layout(config, hf.IN_MEMORY)
    theirs = export(state, layout)
    name = "model.encoder.layers.0.self_attn.k_proj.weight"
    del theirs[name]
    translation = translate(theirs, layout, state)
    assert translation.missing == {"encoder.layers.0.attention.in_proj_weight": name}


# --- mistakes that only numbers show --------------------------------------------------------


def logits_of(config, state):
    network = build_network(config).eval()
    network.load_state_dict(state)
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = network(ImageBatch(pixels, torch.zeros(1, 96, 128, dtype=torch.bool)))
    return output.final.logits


@pytest.mark.parametrize("preset", ["detr", "deformable-detr"])
def test_a_swapped_norm_passes_every_shape_and_no_number(preset):
    config = tiny_config(preset)
    state = strong_state(config)
    right = official.layout(config)
    swap = {"norm1": "norm2", "norm2": "norm1"}

    def wrong_row(row):
        ours, (theirs, *_) = row
        old = next((norm for norm in swap if f".{norm}." in theirs), None)
        if old is None or not ours.startswith("decoder."):
            return row
        return ours, (theirs.replace(old, swap[old]),)

    wrong = Layout("wrong", tuple(map(wrong_row, right.rows)), config.decoder_layers)
    assert wrong.rows != right.rows
    theirs = export(state, right)
    mistaken = translate_strictly(theirs, wrong, state)  # not noticed by names or shapes
    assert {name: each.shape for name, each in mistaken.items()} == {
        name: each.shape for name, each in state.items()
    }
    difference = (logits_of(config, mistaken) - logits_of(config, state)).abs().max()
    assert difference > 1e-2


def test_a_wrong_dilation_passes_every_shape_and_no_number():
    plain, dilated = tiny_config("detr"), tiny_config("detr-dc5")
    state = strong_state(dilated)
    theirs = export(state, official.layout(dilated))
    mistaken = translate_strictly(theirs, official.layout(plain), build_network(plain).state_dict())
    assert (logits_of(plain, mistaken) - logits_of(dilated, state)).abs().max() > 1e-2
