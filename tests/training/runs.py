"""What tests of whole runs share."""

import json
import os
import signal

import torch

from detrlab.checkpoints import native


def timeless(rows):
    """Epoch rows without what a clock says."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def weights_of(folder, name="last"):
    return native.load(folder / "weights" / f"{name}.safetensors").state


def assert_same_run(a, b):
    """Both have the same weights, metrics and predictions, to the bit."""
    for name in ("last", "best"):
        ours, theirs = weights_of(a, name), weights_of(b, name)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert torch.equal(value, theirs[key]), f"{name}: {key}"
    ours, theirs = (json.loads((each / "metrics.json").read_text()) for each in (a, b))
    assert timeless(ours["epochs"]) == timeless(theirs["epochs"])
    assert ours["metrics"] == theirs["metrics"]
    assert (a / "predictions.json").read_bytes() == (b / "predictions.json").read_bytes()


def stopping_after(step):
    """An option that sends SIGTERM when a step has been taken."""

    def on_step(report):
        if report.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return on_step
