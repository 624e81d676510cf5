import pytest

from detrlab.compare.budget import Budget
from detrlab.errors import UserError


@pytest.mark.parametrize("unit", ["epochs", "minutes", "images"])
def test_a_budget_reads_what_it_writes(unit):
    budget = Budget.parse(f"{unit}=2.5")
    assert budget == Budget(unit, 2.5) == Budget.parse(str(budget))


@pytest.mark.parametrize(
    "text", ["", "epochs", "epochs=0", "-3", "epochs=1.2.3", "epochs=3 min", "minuts=3", "12"]
)
def test_a_budget_that_cannot_be_read_is_refused(text):
    with pytest.raises(UserError, match="minutes=20"):
        Budget.parse(text)


def test_a_budget_becomes_whole_epochs():
    assert Budget("epochs", 7).epochs(100, 70) == 7
    assert Budget("images", 250).epochs(100, 70) == 3
    assert Budget("minutes", 10).epochs(100, seconds_per_epoch=70) == 8
    assert Budget("minutes", 1).epochs(100, seconds_per_epoch=600) == 1
