"""Full-size detectors have exactly the published parameters, under the originals' names."""

import pytest
import torch

from detrlab.checkpoints import official
from detrlab.presets import build_network, model_config

# preset, backbone: keys of the original's state dict, distinct tensors, parameters, trainable.
PUBLISHED = {
    ("detr", "resnet50"): (458, 458, 41_524_768, 41_302_368),
    ("detr-dc5", "resnet50"): (458, 458, 41_524_768, 41_302_368),
    ("detr", "resnet101"): (713, 713, 60_464_672, 60_242_272),
    ("detr-dc5", "resnet101"): (713, 713, 60_464_672, 60_242_272),
    ("deformable-detr-single-scale", "resnet50"): (549, 509, 34_066_593, 33_844_193),
    ("deformable-detr-single-scale-dc5", "resnet50"): (549, 509, 34_066_593, 33_844_193),
    ("deformable-detr", "resnet50"): (561, 521, 40_069_665, 39_847_265),
    ("deformable-detr-refine", "resnet50"): (597, 561, 40_849_660, 40_627_260),
    ("deformable-detr-two-stage", "resnet50"): (630, 574, 41_181_529, 40_959_129),
}


@pytest.mark.parametrize(("preset", "backbone"), PUBLISHED)
def test_keys_and_parameters(preset, backbone):
    config = model_config(preset, 91, backbone=backbone)
    with torch.device("meta"):
        network = build_network(config)
    layout = official.layout(config)
    ours = network.state_dict()
    theirs = [name for each in ours for parts in layout.names(each) for name in parts]
    assert len(theirs) == len(set(theirs)), "two of our tensors claim one name"
    parameters = list(network.parameters())
    assert (
        len(theirs),
        len(ours),
        sum(each.numel() for each in parameters),
        sum(each.numel() for each in parameters if each.requires_grad),
    ) == PUBLISHED[preset, backbone]
    backbone_keys = [name for name in theirs if name.startswith("backbone.0.body.")]
    assert len(backbone_keys) == {"resnet50": 265, "resnet101": 520}[backbone]


def test_some_published_shapes():
    config = model_config("deformable-detr-two-stage", 91)
    with torch.device("meta"):
        network = build_network(config)
    layout = official.layout(config)
    shapes = {
        name: tuple(tensor.shape)
        for ours, tensor in network.state_dict().items()
        for (name,) in layout.names(ours)
    }
    for name, shape in {
        "input_proj.0.0.weight": (256, 512, 1, 1),
        "input_proj.3.0.weight": (256, 2048, 3, 3),
        "input_proj.3.1.weight": (256,),
        "transformer.level_embed": (4, 256),
        "transformer.encoder.layers.5.self_attn.sampling_offsets.weight": (256, 256),
        "transformer.encoder.layers.5.self_attn.attention_weights.weight": (128, 256),
        "transformer.encoder.layers.0.linear1.weight": (1024, 256),
        "transformer.decoder.layers.0.self_attn.in_proj_weight": (768, 256),
        "transformer.decoder.class_embed.6.weight": (91, 256),
        "bbox_embed.6.layers.2.weight": (4, 256),
        "transformer.pos_trans.weight": (512, 512),
        "transformer.enc_output_norm.bias": (256,),
    }.items():
        assert shapes.pop(name) == shape, name
    assert not any("query_embed" in name or "reference_points" in name for name in shapes)
