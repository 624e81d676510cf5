import pytest
import torch

from detrlab.errors import UserError
from detrlab.training import loop, precision
from detrlab.training.folder import RunConfig

CPU = torch.device("cpu")


def measured(monkeypatch, gain):
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(precision, "bfloat16_gain", lambda: gain)


@pytest.mark.parametrize(
    ("gain", "expected"), [(0.1, "float32"), (1.1, "float32"), (1.3, "bfloat16")]
)
def test_auto_takes_what_is_measured_to_be_faster(monkeypatch, gain, expected):
    measured(monkeypatch, gain)
    assert precision.settled("auto", CPU) == expected


def test_slow_bfloat16_is_refused_unless_insisted_on(monkeypatch):
    measured(monkeypatch, 0.1)
    with pytest.raises(UserError, match=r"measured 10 times slower .*--precision auto"):
        precision.settled("bfloat16", CPU)
    assert precision.settled("float32", CPU) == "float32"
    assert precision.settled("bfloat16", torch.device("cuda")) == "bfloat16"
    monkeypatch.setenv(precision.VARIABLE, "insist")
    assert precision.settled("bfloat16", CPU) == "bfloat16"


def test_the_measurement_compares_two_numbers_of_seconds():
    assert 1e-4 < precision.bfloat16_gain() < 100


def test_a_run_remembers_the_choice(monkeypatch, tiny_config, tiny_data, tmp_path):
    measured(monkeypatch, 0.1)
    config = tiny_config(precision="auto")
    outcome = loop.train(config, tmp_path, tiny_data)
    assert RunConfig.load(outcome.folder.config).train.precision == "float32"
    measured(monkeypatch, 10.0)  # another machine
    longer = config.change(train=config.train.change(epochs=config.train.epochs + 1).model_dump())
    outcome = loop.train(longer, tmp_path, tiny_data, loop.Options(resume=True))
    assert RunConfig.load(outcome.folder.config).train.precision == "float32"
