"""First weights: what is kept, resized, re-initialised; and what is refused."""

import pytest
import torch
from checkpoint_cases import FIVE_CLASSES, imported

from detrlab.checkpoints import coco
from detrlab.checkpoints.start import start_from
from detrlab.errors import UserError
from detrlab.presets import build_network
from tiny_detectors import tiny_config

PRIOR = -4.59512


def started(source, preset, classes, **options):
    changes = options.pop("changes", {})
    config = tiny_config(preset, num_classes=len(classes), **changes)
    network, report = start_from(source, config, classes, **options)
    return network.state_dict(), report, build_network(config).state_dict()


def rows_of(state, layer=0, kind="weight"):
    return state[f"decoder.heads.{layer}.classes.{kind}"]


def test_the_same_classes_keep_everything():
    source = imported("deformable-detr-two-stage")
    state, report, _ = started(source, "deformable-detr-two-stage", FIVE_CLASSES)
    assert all(torch.equal(state[n], e) for n, e in source.checkpoint.state.items())
    assert set(report.kept) == set(state)
    assert report.resized == report.reinitialised == {}
    assert report.lines() == [f"here (detrlab): kept {len(state)} of {len(state)} tensors"]


@pytest.mark.parametrize("preset", ["detr", "deformable-detr-refine", "deformable-detr-two-stage"])
def test_the_same_classes_in_another_order_are_put_into_order(preset):
    source = imported(preset)
    order = [3, 0, 4, 1, 2]
    state, report, _ = started(source, preset, [FIVE_CLASSES[index] for index in order])
    old = source.checkpoint.state
    softmax = [5] if preset == "detr" else []  # "no object" stays last
    assert torch.equal(rows_of(state), rows_of(old)[order + softmax])
    assert report.resized["decoder.heads.0.classes.bias"].startswith("rows put into the order")
    if "two-stage" in preset:  # the proposal head knows no classes, only objectness
        assert torch.equal(state["queries.head.classes.weight"], old["queries.head.classes.weight"])


@pytest.mark.parametrize("names", [("cup", "jug"), ("a", "b", "c", "d", "e"), tuple("abcdefgh")])
def test_other_classes_start_anew_with_the_prior(names):
    source = imported("deformable-detr-two-stage")
    state, report, fresh = started(source, "deformable-detr-two-stage", names)
    old = source.checkpoint.state
    for layer in range(3):
        assert torch.equal(rows_of(state, layer), rows_of(fresh, layer))
        bias = rows_of(state, layer, "bias")
        torch.testing.assert_close(bias, torch.full((len(names),), PRIOR))
        name = f"decoder.heads.{layer}.classes.weight"
        assert "5 classes (ant, bee, cat and 2 more)" in report.reinitialised[name]
        boxes = f"decoder.heads.{layer}.boxes.layers.0.weight"
        assert torch.equal(state[boxes], old[boxes])
        assert boxes in report.kept
    head = "queries.head.classes.weight"
    assert torch.equal(state[head][0], old[head][0])  # row 0 is the objectness
    assert torch.equal(state["queries.head.classes.bias"][0], old["queries.head.classes.bias"][0])
    if len(names) != 5:
        assert torch.equal(state[head][1:], fresh[head][1:])
        torch.testing.assert_close(
            state["queries.head.classes.bias"][1:], torch.full((len(names) - 1,), PRIOR)
        )
        assert "row 0, the objectness, kept" in report.resized[head]
    assert any(
        line.startswith("re-initialised: decoder.heads.0.classes.weight") for line in report.lines()
    )


def test_softmax_heads_start_anew_as_a_whole():
    source = imported("detr")
    state, report, fresh = started(source, "detr", ("cup", "jug"))
    assert torch.equal(rows_of(state), rows_of(fresh))
    assert rows_of(state).shape[0] == 3
    assert set(report.reinitialised) == {
        "decoder.heads.0.classes.weight",
        "decoder.heads.0.classes.bias",
    }


def test_rows_seeded_by_name_if_asked():
    source = imported("detr", classes=coco.CLASSES)
    names = ("Wine-glass", "mug", "cup")
    state, report, fresh = started(source, "detr", names, class_rows="seed")
    old = rows_of(source.checkpoint.state)
    assert torch.equal(rows_of(state)[0], old[46])
    assert torch.equal(rows_of(state)[1], rows_of(fresh)[1])
    assert torch.equal(rows_of(state)[2], old[47])
    assert torch.equal(rows_of(state)[3], old[91])  # "no object"
    (note,) = report.notes
    assert note.endswith("seeded by name: 'Wine-glass' from 'wine glass', 'cup' from 'cup'")
    assert "rows of shared names seeded" in report.reinitialised["decoder.heads.0.classes.bias"]
    with pytest.raises(UserError, match=r"none of the data's classes \('mug', 'jar'\)"):
        started(source, "detr", ("mug", "jar"), class_rows="seed")


def test_rows_kept_by_index_if_asked():
    source = imported("deformable-detr")
    state, _, _ = started(source, "deformable-detr", tuple("vwxyz"), class_rows="keep")
    assert torch.equal(rows_of(state), rows_of(source.checkpoint.state))
    with pytest.raises(UserError, match="5 classes and the data 2"):
        started(source, "deformable-detr", ("a", "b"), class_rows="keep")


def test_rows_started_anew_if_asked():
    source = imported("deformable-detr")
    state, _, fresh = started(source, "deformable-detr", FIVE_CLASSES, class_rows="new")
    assert torch.equal(rows_of(state), rows_of(fresh))


def test_another_scoring_means_other_classes():
    source = imported("detr")
    state, _, fresh = started(source, "detr-sigmoid", FIVE_CLASSES)
    assert torch.equal(rows_of(state), rows_of(fresh))
    torch.testing.assert_close(rows_of(state, kind="bias"), torch.full((5,), PRIOR))
    with pytest.raises(UserError, match=r"detr .*detr-sigmoid"):
        started(source, "detr-sigmoid", FIVE_CLASSES, class_rows="keep")


@pytest.mark.parametrize(
    ("preset", "name"), [("detr", "queries.position"), ("deformable-detr", "queries.embedding")]
)
def test_another_number_of_queries_copies_rows(preset, name):
    source = imported(preset)
    old = source.checkpoint.state[name]
    fewer, report, _ = started(source, preset, FIVE_CLASSES, changes={"num_queries": 10})
    assert torch.equal(fewer[name], old[:10])
    assert report.resized == {name: "10 rows: the first of 24"}
    more, report, _ = started(source, preset, FIVE_CLASSES, changes={"num_queries": 60})
    assert torch.equal(more[name], torch.cat([old, old, old[:12]]))
    assert report.resized == {name: "60 rows: 24 repeated"}


def test_two_stage_queries_have_no_rows():
    source = imported("deformable-detr-two-stage")
    changes = {"num_queries": 60}
    _, report, _ = started(source, "deformable-detr-two-stage", FIVE_CLASSES, changes=changes)
    assert not report.resized


def test_random_heads_are_refused():
    source = imported("deformable-detr")
    with pytest.raises(
        UserError,
        match=r"'deformable-detr' instead of 'deformable-detr-refine'.*"
        r"16 tensors would stay random.*"
        r"'decoder\.heads\.1\.classes\.weight'.*--reinitialise '\^decoder\\\.heads\\\.1\\\.'",
    ) as raised:
        started(source, "deformable-detr-refine", FIVE_CLASSES)
    assert "here does not fit this model" in str(raised.value)


def test_random_heads_can_be_asked_for():
    source = imported("deformable-detr")
    state, report, fresh = started(
        source, "deformable-detr-refine", FIVE_CLASSES, reinitialise=[r"decoder\.heads\.[12]"]
    )
    assert torch.equal(rows_of(state, 1), rows_of(fresh, 1))
    assert torch.equal(rows_of(state, 0), rows_of(source.checkpoint.state, 0))
    assert report.reinitialised["decoder.heads.2.boxes.layers.2.bias"] == (
        r"requested by 'decoder\\.heads\\.[12]'"
    )
    with pytest.raises(
        UserError, match=r"'decodr' matches no tensor .* begin with backbone, encoder"
    ):
        started(source, "deformable-detr", FIVE_CLASSES, reinitialise=["decodr"])
    with pytest.raises(UserError, match="not a regular expression"):
        started(source, "deformable-detr", FIVE_CLASSES, reinitialise=["("])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffn_width": 128}, r"ffn_width 96 instead of 128.*\(96, 64\) in the checkpoint"),
        ({"levels": 3}, r"levels 4 instead of 3"),
        ({"points": 2}, r"points 4 instead of 2"),
        ({"num_heads": 8}, r"num_heads 4; the model .* has 8"),
        ({"encoder_layers": 4}, r"encoder_layers 2 instead of 4.*would stay random"),
    ],
)
def test_another_architecture_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        started(imported("deformable-detr"), "deformable-detr", FIVE_CLASSES, changes=changes)


def test_fewer_layers_leave_some_aside_and_say_so():
    source = imported("detr")
    _, report, _ = started(source, "detr", FIVE_CLASSES, changes={"decoder_layers": 2})
    assert any(name.startswith("decoder.layers.2.") for name in report.left_aside)
    assert any(line.startswith("unused: decoder.layers.2.") for line in report.lines())


def test_dilation_and_norms_are_noted():
    _, report, _ = started(imported("detr"), "detr-dc5", FIVE_CLASSES)
    assert any("dilated here and was not" in note for note in report.notes)
    changes = {"backbone_norms": "trained"}
    _, report, _ = started(imported("detr"), "detr", FIVE_CLASSES, changes=changes)
    assert any("norms were frozen and are trained here" in note for note in report.notes)
    source = imported("detr", **changes)
    _, report, _ = started(source, "detr", FIVE_CLASSES)
    assert not any("num_batches_tracked" in name for name in report.left_aside)


def test_the_report_is_plain_values():
    _, report, _ = started(imported("detr"), "detr", ("cup",))
    import json

    back = json.loads(json.dumps(report.to_dict()))
    assert back["source"] == "here"
    assert set(back["reinitialised"]) == set(report.reinitialised)
    assert str(report) == "\n".join(report.lines())
