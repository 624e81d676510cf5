import itertools

import pytest

from detrlab.compare import entrants
from detrlab.errors import UserError
from detrlab.presets import BESIDE_THE_LADDER, FIVE, LADDER, PRESETS
from detrlab.presets.ladder import OF_THE_RECIPE
from detrlab.recipes import RECIPES, recipe


def test_without_names_the_five_take_part():
    assert [entrant.name for entrant in entrants.named([])] == list(FIVE)


def test_the_ladder_has_its_variants_beside_their_rungs():
    names = [entrant.name for entrant in entrants.ladder()]
    assert names == ["detr", "detr-dc5", *LADDER[1:-1], "deim-d-fine-n-dense", LADDER[-1]]
    assert set(entrants.in_order(list(PRESETS))) == set(PRESETS), "every preset has its place"


def test_a_part_of_the_ladder():
    steps = [entrant.name for entrant in entrants.ladder("dino-4scale", "rt-detr-r50-focal")]
    assert steps == ["dino-4scale", "dino-hybrid", "rt-detr-r50-focal"]
    assert [entrant.name for entrant in entrants.ladder(last="detr-dc5")] == ["detr", "detr-dc5"]
    with pytest.raises(UserError, match="'dino' is no step of the ladder, did you mean 'dino-"):
        entrants.ladder("dino")
    with pytest.raises(UserError, match="'detr' comes before 'dino-4scale' on the ladder"):
        entrants.ladder("dino-4scale", "detr")


def test_dense_one_to_one_changes_the_recipe_alone():
    """It is compared with the step it is a variant of, and no step builds on it."""
    (dense,) = entrants.named(["deim-d-fine-n-dense"])
    (plain,) = entrants.named(["deim-d-fine-n"])
    for name in ("photos", "laptop"):
        (model, train, data), old = (each.configs(recipe(name), 3) for each in (dense, plain))
        assert (model, train) == old[:2]
        assert data == old[2].change(augmentation="dense", resize="square")
    names = ["deimv2-n", "deim-d-fine-n-dense", "rt-detr-r18", "deim-d-fine-n"]
    order = ["rt-detr-r18", "deim-d-fine-n", "deim-d-fine-n-dense", "deimv2-n"]
    assert entrants.in_order(names) == order


@pytest.mark.parametrize("name", RECIPES)
def test_every_rung_of_the_ladder_is_possible_under_every_recipe(name):
    configs = [entrant.configs(recipe(name), 3)[0] for entrant in entrants.named(LADDER)]
    for before, after in itertools.pairwise(configs):
        assert entrants.config_differences(before, after)


def test_the_ladder_changes_one_idea_at_a_time():
    configs = [entrant.configs(recipe("paper"), 3)[0] for entrant in entrants.named(LADDER)]
    steps = [
        {line.split(":")[0] for line in entrants.config_differences(before, after)}
        for before, after in itertools.pairwise(configs)
    ]
    ideas = [type(config).__doc__.splitlines()[0].split(":")[0] for config in configs[1:]]
    settings = [
        {"num_queries"}, {"ffn_width", "levels", "points"}, {"levels"}, {}, {},
        {"num_queries", "ffn_width", "dropout"}, {"denoising", "label_noise", "box_noise"},
        {}, {}, {},
        # A fourth level has no place in the hybrid encoder.
        {"encoder_layers", "levels", "encoder_width", "encoder_ffn_width", "expansion"},
        # Not separated in the papers: RT-DETR's decoder, and the size of D-FINE-N.
        {"num_queries", "backbone", "backbone_trains", "ffn_width", "box_noise",
         "evaluated_layers"},
        {}, {},
        {"backbone", "backbone_norms", "backbone_trains", "width", "ffn_width", "decoder_layers",
         "encoder_width", "encoder_ffn_width", "expansion", "levels"},
        {"points"}, {}, {}, {}, {}, {},
    ]  # fmt: skip
    assert steps == [{idea, *named} for idea, named in zip(ideas, settings, strict=True)]
    for variant, rung in BESIDE_THE_LADDER.items():
        if variant in OF_THE_RECIPE:
            continue
        one, other = (
            entrant.configs(recipe("paper"), 3)[0] for entrant in entrants.named([rung, variant])
        )
        _, *changes = entrants.config_differences(one, other)
        assert changes in (
            ["dilation: False -> True"],
            ["levels: 4 -> 5"],
            ["label_noise: 0.5 -> 0.2", "box_noise: 0.4 -> 1.0"],
            ["backbone_norms: frozen -> trained", "backbone_trains: body -> all"],
            [],  # the idea alone
        )


def test_variations_are_every_combination():
    found = entrants.varied("detr", ["queries=50,100", "learning_rate=1e-4,3e-4"])
    names = [f"num_queries={n} learning_rate={lr}" for n in (50, 100) for lr in ("1e-4", "3e-4")]
    assert [entrant.name for entrant in found] == names
    model, train, _ = found[1].configs(recipe("tiny"), 2)
    assert (model.num_queries, train.learning_rate) == (50, 3e-4)


def test_a_list_is_one_value():
    found = entrants.varied("detr", ["mean=[0.1, 0.2, 0.3],[0.4, 0.5, 0.6]", "freeze=[^encoder]"])
    assert [dict(entrant.changes)["data.mean"] for entrant in found] == [
        [0.1, 0.2, 0.3],
        [0.4, 0.5, 0.6],
    ]


def test_an_architecture_can_vary_too():
    first, second = entrants.varied("deformable-detr", ["model.width=64,65"])
    assert first.configs(recipe("tiny"), 2)[0].width == 64
    with pytest.raises(UserError, match="65"):
        second.configs(recipe("tiny"), 2)
    with pytest.raises(UserError, match="dropout"):
        entrants.varied("detr", ["dropout=1.5"])[0].configs(recipe("tiny"), 2)
    with pytest.raises(UserError, match="queries"):
        entrants.varied("deformable-detr", ["model.queries=points,proposals"])


@pytest.mark.parametrize(
    ("models", "message"),
    [(["deformable-dtr"], "'deformable-detr'"), (["detr", "detr"], "'detr' takes part twice")],
)
def test_impossible_names_are_refused(models, message):
    with pytest.raises(UserError, match=message):
        entrants.named(models)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("num_querys=1", "num_queries"),
        ("num_queries", "write setting=value"),
        ("num_queries=", "write setting=value"),
        ("num_queries=[1", "write setting=value"),
        ("data=a,b", "cannot be varied"),
        ("seed=1,2", "cannot be varied"),
        ("width=32,32", "takes part twice"),
    ],
)
def test_impossible_variations_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        entrants.varied("detr", [text])


def test_a_changed_recipe_says_what_changed():
    named = recipe("laptop")
    assert entrants.recipe_differences(named) == ()
    changed = named.change(train=named.train.change(epochs=3), model={**named.model, "points": 3})
    assert set(entrants.recipe_differences(changed)) == {
        f"train.epochs: {named.train.epochs} -> 3",
        "model.points: the preset's own -> 3",
    }


def test_assumed_settings_are_real_ones():
    named = recipe("cppe5")
    assert "data.image_size" in named.assumed
    with pytest.raises(ValueError, match="did you mean"):
        named.change(assumed=("train.clipp",))
