import os
import signal
import time

import pytest
import torch
from runs import assert_same_run, stopping_after, weights_of

from detrlab.checkpoints import native
from detrlab.errors import InUseError, UserError
from detrlab.evaluation.analysis import suggest_thresholds
from detrlab.evaluation.coco import as_ground_truth
from detrlab.evaluation.foreign import load_predictions
from detrlab.evaluation.matching import match
from detrlab.training.folder import RunConfig, RunFolder, locked
from detrlab.training.loop import Options, train

DENSE = {
    "epochs": 3,
    "plain_epochs": 1,
    "drop_epoch": None,
    "schedule": "flat_cosine",
    "warmup_steps": 2,
    "decay_norms": False,
    "ema_decay": 0.9,
    "ema_warmup": 3,
    "micro_batch": 2,
    "data": {"resize": "square", "augmentation": "dense", "scales": 1, "repeat_threshold": 0.9},
}


def test_a_run_leaves_its_files_and_a_line_an_epoch(tmp_path, tiny_config, tiny_data):
    lines = []
    folder = tmp_path / "run"
    outcome = train(tiny_config(), folder, tiny_data, Options(say=lines.append))
    assert outcome.finished
    assert [row["epoch"] for row in outcome.epochs] == [1, 2]
    assert [row["step"] for row in outcome.epochs] == [2, 4]
    assert outcome.epochs[0]["learning_rate"] == 1e-3
    assert outcome.epochs[1]["learning_rate"] == pytest.approx(1e-4)
    assert sum(line.startswith("epoch ") for line in lines) == 2
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert {
        "config.yaml",
        "metrics.csv",
        "metrics.json",
        "predictions.json",
        "environment.json",
        "weights/last.safetensors",
        "weights/best.safetensors",
    } <= found
    assert not [name for name in found if name.endswith((".tmp", ".partial"))]
    table = (folder / "metrics.csv").read_text().splitlines()
    assert len(table) == 3
    assert table[0].startswith("epoch,step,learning_rate,seconds,skipped,loss,loss_class")
    assert RunConfig.load(folder / "config.yaml") == tiny_config()
    again = train(tiny_config(), folder, tiny_data, Options(resume=True))  # only reads
    assert again.finished
    assert again.epochs == outcome.epochs
    assert again.metrics == outcome.metrics


def test_the_same_seed_gives_the_same_run_and_another_one_another(tmp_path, tiny_config, tiny_data):
    config = tiny_config(epochs=1)
    torch.manual_seed(1)
    train(config, tmp_path / "a", tiny_data)
    torch.manual_seed(2)  # the caller's generator must not matter
    state = torch.random.get_rng_state()
    train(config, tmp_path / "b", tiny_data)
    assert torch.equal(state, torch.random.get_rng_state())
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train(tiny_config(epochs=1, seed=43), tmp_path / "c", tiny_data)
    assert any(
        not torch.equal(value, weights_of(tmp_path / "c")[key])
        for key, value in weights_of(tmp_path / "a").items()
    )


@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (0, {"ema_decay": 0.9, "micro_batch": 2}),
        (0, {"preset": "dino-4scale", "model": {"levels": 3}, "micro_batch": 2}),
        (2, DENSE),
        pytest.param(1, {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param(
            2,
            {"schedule": "cosine", "warmup_steps": 2, "drop_epoch": None},
            marks=pytest.mark.slow,
        ),
        pytest.param(2, {"precision": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(2, {"precision": "float16"}, marks=pytest.mark.slow),
    ],
    ids=["average", "denoising", "dense", "between-epochs", "cosine", "bfloat16", "float16"],
)
def test_a_stopped_run_resumes_bit_for_bit(tmp_path, tiny_config, tiny_data, stop, changes):
    """With dropout, in the middle of an epoch and between two."""
    config = tiny_config(**changes)
    train(config, tmp_path / "whole", tiny_data)
    lines = []
    options = Options(on_step=stopping_after(stop), say=lines.append)
    stopped = train(config, tmp_path / "cut", tiny_data, options)
    assert not stopped.finished
    assert "SIGTERM" in lines[-1]
    resumed = train(config, tmp_path / "cut", tiny_data, Options(resume=True))
    assert resumed.finished
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_two_epochs_and_two_more_are_four(tmp_path, tiny_config, tiny_data):
    four, two = tiny_config(epochs=4), tiny_config(epochs=2)
    train(four, tmp_path / "whole", tiny_data)
    train(two, tmp_path / "parts", tiny_data)
    outcome = train(four, tmp_path / "parts", tiny_data, Options(resume=True))
    assert len(outcome.epochs) == 4
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UserError, match="4 epochs"):
        train(two, tmp_path / "parts", tiny_data, Options(resume=True))


def test_the_last_epochs_are_plain_and_those_before_are_not(tmp_path, tiny_config, tiny_data):
    usual = train(tiny_config(), tmp_path / "usual", tiny_data).epochs
    plain = train(tiny_config(plain_epochs=1), tmp_path / "plain", tiny_data).epochs
    assert plain[0]["loss"] == usual[0]["loss"]
    assert plain[1]["loss"] != usual[1]["loss"]


def test_epochs_that_count_from_the_end_may_not_change(tmp_path, tiny_config, tiny_data):
    for name, changes in {"a": {"plain_epochs": 1}, "b": {"schedule": "flat_cosine"}}.items():
        options = Options(on_step=stopping_after(0))
        train(tiny_config(**changes), tmp_path / name, tiny_data, options)
        longer = tiny_config(epochs=4, **changes)
        with pytest.raises(UserError, match=r"train\.epochs is 2 there and 4 here"):
            train(longer, tmp_path / name, tiny_data, Options(resume=True))


def test_a_second_ctrl_c_stops_at_once(tmp_path, tiny_config, tiny_data):
    def twice(report):
        if report.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # two signals at once may arrive as one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)

    python, before = signal.default_int_handler, signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, python)  # pytest's worker processes ignore the signal
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(), tmp_path, tiny_data, Options(on_step=twice))
        assert signal.getsignal(signal.SIGINT) is python
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list((tmp_path / "state").glob("*"))


def test_a_batch_system_may_signal_again_and_end_the_data_loading_first(
    tmp_path, tiny_config, tiny_data
):
    def signalled(report):
        if report.step == 1:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            raise UserError("a data loading worker died")

    options = Options(on_step=signalled, repeats=60)
    assert not train(tiny_config(), tmp_path / "cut", tiny_data, options).finished
    train(tiny_config(), tmp_path / "cut", tiny_data, Options(resume=True))
    train(tiny_config(), tmp_path / "whole", tiny_data)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_nothing_is_overwritten(tmp_path, tiny_config, tiny_data):
    config = tiny_config(epochs=1)
    with pytest.raises(UserError, match="no run in"):
        train(config, tmp_path / "a", tiny_data, Options(resume=True))
    train(config, tmp_path / "a", tiny_data)
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train(config, tmp_path / "a", tiny_data)
    other = tiny_config(epochs=1, learning_rate=1.0)
    with pytest.raises(UserError, match=r"train\.learning_rate .*0\.001 .*1\.0"):
        train(other, tmp_path / "a", tiny_data, Options(resume=True))


def test_a_run_that_is_in_use_is_refused_by_name(tmp_path, tiny_config, tiny_data):
    with locked(tmp_path), pytest.raises(InUseError, match=f"in use by process {os.getpid()}"):
        train(tiny_config(), tmp_path, tiny_data)
    assert train(tiny_config(epochs=1), tmp_path, tiny_data).finished


def test_a_run_does_not_resume_with_other_data(tmp_path, tiny_config, tiny_data):
    options = Options(on_step=stopping_after(0))
    train(tiny_config(), tmp_path, tiny_data, options)
    val = tiny_data.val
    other = tiny_data.__class__("shapes", tiny_data.train, val.select([0, 1]))
    with pytest.raises(UserError, match="data has changed"):
        train(tiny_config(), tmp_path, other, Options(resume=True))


def test_training_stops_early_when_ap_does_not_improve(tmp_path, tiny_config, tiny_data):
    config = tiny_config(epochs=9, patience=2, learning_rate=1e-12)
    lines = []
    outcome = train(config, tmp_path, tiny_data, Options(say=lines.append))
    assert outcome.finished
    assert len(outcome.epochs) < 9
    ended = f"stopped early, after epoch {len(outcome.epochs)} of 9"
    assert any(line.startswith(ended) for line in lines)
    assert len(outcome.epochs) - (outcome.best_epoch or 0) == 2
    assert RunFolder(tmp_path).read_metrics()["stopped_early"]


def test_classes_must_agree(tmp_path, tiny_config, tiny_data):
    config = tiny_config()
    config = config.change(model=config.model.change(num_classes=2).model_dump())
    with pytest.raises(UserError, match="2 classes, the data 6"):
        train(config, tmp_path, tiny_data)


def test_a_run_starts_from_weights_and_resumes_without_them(
    tmp_path, tiny_config, tiny_data, whole
):
    weights = tmp_path / "first.safetensors"
    weights.write_bytes((whole / "weights" / "last.safetensors").read_bytes())
    config = tiny_config(learning_rate=1e-9, weights=str(weights), freeze=("^backbone",))
    other = config.change(data={**config.data.to_dict(), "mean": [0.1, 0.2, 0.3]})
    lines = []
    options = Options(on_step=stopping_after(0), say=lines.append)
    train(other, tmp_path / "run", tiny_data, options)
    assert any(line.startswith("froze ") for line in lines)
    # The normalisation comes from the checkpoint.
    assert RunConfig.load(tmp_path / "run" / "config.yaml").data.mean == config.data.mean
    weights.unlink()
    assert train(other, tmp_path / "run", tiny_data, Options(resume=True)).finished
    before, after = weights_of(whole), weights_of(tmp_path / "run")
    for name, value in before.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.startswith("backbone."):
            assert torch.equal(value, after[name]), name
        else:
            assert torch.allclose(value, after[name], atol=1e-6), name


def test_the_checkpoint_suggests_a_threshold(tmp_path, tiny_config, tiny_data):
    folder = tmp_path / "run"
    train(tiny_config(), folder, tiny_data, Options())
    truth = as_ground_truth(tiny_data.val)
    found = load_predictions(folder / "predictions.json", tiny_data.val, trust=True).detected
    suggested = suggest_thresholds(match(truth, found)).overall.score
    stored = native.load(folder / "weights" / "last.safetensors").threshold
    assert stored == pytest.approx(suggested, abs=1e-4)


def test_precisions_have_short_names_too(tiny_config):
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "float16": "float16"}
    assert {name: tiny_config(precision=name).train.precision for name in names} == names
    with pytest.raises(UserError, match=r"precision: .*'bfloat16', 'float16' or 'auto'"):
        tiny_config().train.change(precision="half")


def test_a_state_is_saved_after_some_steps_not_after_none():
    with pytest.raises(UserError, match="save_every 0"):
        Options(save_every=0)
