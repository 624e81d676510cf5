"""The encoder's paths, drawn as they were computed."""

import numpy as np
import pytest
import torch
from scenes_explained import explained, make_image, make_network

from detrlab.explain.stations import ATTENTION, BACK, DOWN, MEAN, START, draw_stations

HYBRID = [(START, 0), (START, 1), (START, 2), (ATTENTION, 2)]
HYBRID += [(DOWN, 2), (DOWN, 1), (DOWN, 0), (BACK, 1), (BACK, 2)]
LITE = [(START, 0), (START, 1), (MEAN, 1), (DOWN, 0), (BACK, 1)]
PLACES = {"rt-detr-r18": HYBRID, "dino-hybrid": HYBRID, "deimv2-femto": LITE}


@pytest.mark.parametrize("preset", PLACES)
def test_every_step_of_the_paths_is_drawn(preset):
    explanation = explained(preset)
    found = explanation.recording.stations
    assert [(each.stage, each.level) for each in found] == PLACES[preset]
    figure = draw_stations(explanation)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert len(drawn) == len(found)
    by_place = {(each.stage, each.level): each.values for each in found}
    stages = list(dict.fromkeys(stage for stage, _ in PLACES[preset]))
    for axes in drawn:
        level, stage = divmod(figure.axes.index(axes), len(stages))
        values = by_place[stages[stage], level]
        low, high = values.min(), values.quantile(0.98)
        assert axes.texts[0].get_text() == f"{low:.2g} to {high:.2g}"
        # The opacity is the value's square root: it can be read back.
        back = (np.asarray(axes.images[-1].get_array())[..., 3] / 0.85) ** 2
        expected = ((values - low) / (high - low)).clamp(max=1)
        np.testing.assert_allclose(back, expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_last_maps_are_the_memory():
    """Where the decoder's width is the encoder's, as in the lite encoder."""
    explanation = explained("deimv2-femto")
    memory = explanation.recording.memory
    fine, coarse = memory.tokens[0].split([h * w for h, w in memory.level_shapes])
    for level, (stage, tokens) in enumerate(((DOWN, fine), (BACK, coarse))):
        (values,) = (
            each.values
            for each in explanation.recording.stations
            if (each.stage, each.level) == (stage, level)
        )
        torch.testing.assert_close(values.flatten(), tokens.square().mean(-1).sqrt())


@torch.no_grad()
def test_attention_is_shown_by_how_far_it_turns_the_features():
    network, _ = make_network("rt-detr-r18")
    seen = []
    network.encoder.within[0].register_forward_hook(lambda *call: seen.append(call))
    network(make_image())
    ((_, (given, _), result),) = seen
    cosine = torch.nn.functional.cosine_similarity(given[0], result[0], dim=0)
    (values,) = (
        each.values for each in explained("rt-detr-r18").recording.stations if each[0] == ATTENTION
    )
    torch.testing.assert_close(values, 1 - cosine)


def test_other_encoders_have_no_such_paths(tmp_path):
    explanation = explained("dino-4scale")
    assert explanation.recording.stations == ()
    names = {path.stem for path in explanation.save(tmp_path, dpi=30)}
    assert "encoder-paths" not in names
    assert tmp_path / "encoder-paths.png" in explained("d-fine-n").save(tmp_path, dpi=30)
