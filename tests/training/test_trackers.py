import importlib.util
import math
import sys
import types

import pytest

from detrlab.errors import UserError
from detrlab.training.loop import Options, train
from detrlab.training.trackers import flat, numbers, open_tracker


def test_settings_and_rows_become_flat():
    assert flat({"a": {"b": 1, "c": (2, 3)}, "d": None}) == {"a.b": 1, "a.c": "(2, 3)", "d": "None"}
    row = {"ap": 0.5, "ap50": None, "loss": math.nan, "per_class": {"x": 0.25, "y": None}}
    assert numbers(row) == {"ap": 0.5, "per_class/x": 0.25}


def test_unknown_and_missing_trackers(tmp_path):
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        open_tracker("tensorbord", "run", tmp_path, {})
    if importlib.util.find_spec("mlflow") is None:
        with pytest.raises(UserError, match="pip install mlflow"):
            open_tracker("mlflow", "run", tmp_path, {})


def test_an_installed_tracker_receives_settings_and_every_epoch(
    tmp_path, tiny_config, tiny_data, monkeypatch
):
    """With a fake package that records its calls."""
    calls = []

    class Run:
        config = types.SimpleNamespace(update=lambda values, **_: calls.append(("config", values)))

        def log(self, values, step=None, **_):
            calls.append((step, values))

        def finish(self):
            calls.append(("finish", None))

    package = types.ModuleType("wandb")
    package.init = lambda **_: Run()
    package.config = Run.config
    package.run = Run()
    monkeypatch.setitem(sys.modules, "wandb", package)
    train(tiny_config(), tmp_path / "run", tiny_data, Options(trackers=("wandb",)))
    kinds = [kind for kind, _ in calls]
    assert kinds == ["config", 2, 4, "finish"]
    assert calls[0][1]["train.epochs"] == 2
    assert calls[1][1]["epoch"] == 1.0
    assert calls[2][1]["learning_rate"] == pytest.approx(1e-4)
