import pytest

from detrlab.compare.budget import Budget
from detrlab.config import TrainConfig
from detrlab.errors import UserError


@pytest.mark.parametrize(
    ("text", "unit", "amount"),
    [
        ("epochs=12", "epochs", 12),
        ("12", "epochs", 12),
        ("20 minutes", "minutes", 20),
        ("minutes=2.5", "minutes", 2.5),
        ("20min", "minutes", 20),
        ("images=5,000", "images", 5000),
    ],
)
def test_a_budget_reads_as_people_write_it(text, unit, amount):
    assert Budget.parse(text) == Budget(unit, amount)


@pytest.mark.parametrize(
    "text", ["", "epochs", "epochs=0", "-3", "epochs=1.2.3", "epochs=3 min", "minuts=3"]
)
def test_a_budget_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="'minutes'" if text == "minuts=3" else "budget"):
        Budget.parse(text)


def test_a_budget_becomes_whole_epochs():
    assert Budget("epochs", 7).epochs(100, 70) == 7
    assert Budget("images", 250).epochs(100, 70) == 3
    assert Budget("minutes", 10).epochs(100, seconds_per_epoch=70) == 8
    assert Budget("minutes", 1).epochs(100, seconds_per_epoch=600) == 1


def test_the_drop_stays_at_the_same_fraction():
    recipe = TrainConfig(epochs=50, drop_epoch=40)
    assert recipe.over(25).drop_epoch == 20
    assert recipe.over(1).drop_epoch == 1
    assert TrainConfig(epochs=5).over(9).drop_epoch is None
