"""Runs under faults: damaged files, full disks, missing images, errors. They all resume."""

import errno
import gc
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from runs import assert_same_run, stopping_after, weights_of

from detrlab import files
from detrlab.data import open_data
from detrlab.errors import UserError
from detrlab.training import state
from detrlab.training.folder import RunFolder, locked
from detrlab.training.loop import Options, train


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_state_is_skipped_and_reported(tmp_path, tiny_config, tiny_data, whole):
    folder = tmp_path / "run"
    options = Options(save_every=1, on_step=stopping_after(2))
    train(tiny_config(), folder, tiny_data, options)
    older, newer = sorted((folder / "state").iterdir())
    damage(newer)
    lines = []
    train(tiny_config(), folder, tiny_data, Options(resume=True, say=lines.append))
    assert any(f"{newer.name} is damaged" in each for each in lines)
    assert any("after step 2" in each for each in lines)
    assert older.name.startswith("step-00000002")
    assert newer.with_suffix(".damaged").exists()
    assert_same_run(whole, folder)


def test_without_an_undamaged_state_the_run_does_not_resume(tmp_path, tiny_config, tiny_data):
    train(tiny_config(), tmp_path, tiny_data, Options(save_every=1, on_step=stopping_after(2)))
    for path in (tmp_path / "state").iterdir():
        path.write_bytes(path.read_bytes()[:-100])  # cut short
    with pytest.raises(UserError, match=r"every saved state in .* is damaged"):
        train(tiny_config(), tmp_path, tiny_data, Options(resume=True))


def full_disk(monkeypatch, is_victim, code=errno.ENOSPC):
    """Writing fails in the middle of files whose name ``is_victim`` accepts."""
    true = files._sync

    def sync(path):
        """However the file was written, this comes before it gets its name."""
        if is_victim(path.name):
            os.truncate(path, path.stat().st_size // 2)
            raise OSError(code, os.strerror(code))
        true(path)

    monkeypatch.setattr(files, "_sync", sync)


@pytest.mark.parametrize(
    ("victim", "epochs_before"),
    [
        pytest.param("best", 0, marks=pytest.mark.slow),
        pytest.param("last", 1, marks=pytest.mark.slow),
        pytest.param("metrics.csv", 1, marks=pytest.mark.slow),
        pytest.param("metrics.json", 1, marks=pytest.mark.slow),
        ("epoch-0002", 1),
    ],
)
def test_a_full_disk_loses_nothing(
    tmp_path, tiny_config, tiny_data, whole, monkeypatch, victim, epochs_before
):
    """Whichever file does not fit; then there is room again."""
    folder = tmp_path / "run"
    if epochs_before:
        train(tiny_config(epochs=1), folder, tiny_data)
    resume = Options(resume=True)
    with monkeypatch.context() as broken:
        full_disk(broken, lambda name: victim in name)
        with pytest.raises(UserError, match="disk is full"):
            train(tiny_config(), folder, tiny_data, resume if epochs_before else None)
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    assert all(state.is_whole(path) for path in (folder / "state").iterdir())
    assert not epochs_before or weights_of(folder)  # what was there still reads
    train(tiny_config(), folder, tiny_data, resume)
    assert_same_run(whole, folder)


def test_permission_denied_is_one_message(tmp_path, tiny_config, tiny_data, monkeypatch):
    full_disk(monkeypatch, lambda name: "config.yaml" in name, errno.EACCES)
    with pytest.raises(UserError, match=r"permission denied.*writable"):
        train(tiny_config(), tmp_path / "run", tiny_data)


@pytest.mark.slow
def test_a_state_that_reads_back_differently_is_refused(
    tmp_path, tiny_config, tiny_data, whole, monkeypatch
):
    folder = tmp_path / "run"
    train(tiny_config(epochs=1), folder, tiny_data)
    true = files.write_bytes

    def flip(path, data):
        true(path, data)
        if path.name.startswith("step-00000004"):
            damage(path)

    with monkeypatch.context() as broken:
        broken.setattr(files, "write_bytes", flip)
        with pytest.raises(UserError, match=r"reads back differently.*check the disk"):
            train(tiny_config(), folder, tiny_data, Options(resume=True))
    train(tiny_config(), folder, tiny_data, Options(resume=True))
    assert_same_run(whole, folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_folder_that_may_not_be_written(tmp_path, tiny_config, tiny_data):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="permission denied"):
            train(tiny_config(), tmp_path / "run", tiny_data)
    finally:
        tmp_path.chmod(0o700)


def test_a_path_that_is_no_folder(tmp_path, tiny_config, tiny_data):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="could not be written"):
        train(tiny_config(), tmp_path / "file" / "run", tiny_data)


@pytest.fixture
def photographs(tmp_path, tiny_data):
    """The tiny data as a folder of files in COCO's layout."""
    root = tmp_path / "photographs"
    for split, table in (("train", tiny_data.train), ("val", tiny_data.val)):
        (root / split).mkdir(parents=True)
        coco = table.coco_ground_truth()
        for i, image in enumerate(coco["images"]):
            image["file_name"] = f"{image['id']}.png"
            pixels = table.picture(i).permute(1, 2, 0).numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(root / split / image["file_name"])
        (root / split / "_annotations.coco.json").write_text(json.dumps(coco))
    return root


@pytest.mark.parametrize(
    ("split", "workers"),
    [
        ("train", 0),
        pytest.param("train", 2, marks=pytest.mark.slow),
        pytest.param("val", 0, marks=pytest.mark.slow),
        pytest.param("val", 2, marks=pytest.mark.slow),
    ],
)
def test_a_missing_image_is_named_and_the_run_resumes_when_it_is_back(
    tmp_path, tiny_config, photographs, split, workers
):
    data = open_data(photographs)
    config = tiny_config()
    train(config, tmp_path / "whole", data)
    folder = tmp_path / "run"
    options = Options(on_step=stopping_after(1), workers=workers)
    train(config, folder, data, options)
    victim = sorted((photographs / split).glob("*.png"))[0]
    kept = victim.read_bytes()
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        train(config, folder, data, Options(resume=True, workers=workers))
    victim.write_bytes(kept)
    train(config, folder, data, Options(resume=True, workers=workers))
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_run_is_the_same_with_any_number_of_loader_processes(
    tmp_path, tiny_config, tiny_data, whole, workers
):
    """Stopped in the middle of an epoch, and resumed with another number."""
    folder = tmp_path / "run"
    options = Options(on_step=stopping_after(2), workers=workers)
    assert not train(tiny_config(), folder, tiny_data, options).finished
    train(tiny_config(), folder, tiny_data, Options(resume=True, workers=4 - workers))
    assert_same_run(whole, folder)


def test_an_error_of_any_kind_keeps_what_was_reached(tmp_path, tiny_config, tiny_data, whole):
    folder = tmp_path / "run"

    def trip(report):
        if report.step == 2:
            raise ZeroDivisionError

    lines = []
    with pytest.raises(ZeroDivisionError):
        train(tiny_config(), folder, tiny_data, Options(on_step=trip, say=lines.append))
    assert "step 3" in lines[-1]
    assert "--resume" in lines[-1]
    lines = []
    train(tiny_config(), folder, tiny_data, Options(resume=True, say=lines.append))
    assert any("after step 3" in line for line in lines)
    assert_same_run(whole, folder)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")],
)
def test_a_failed_step_changes_nothing(tmp_path, tiny_config, tiny_data, whole, monkeypatch, error):
    """Memory runs out after the backward pass: the norms' statistics are restored too."""
    from detrlab.training import engine

    folder = tmp_path / "run"
    true = engine.clip_gradients

    def clip_gradients(optimizer, bound):
        if any(optimizer.state.values()):
            raise error
        return true(optimizer, bound)

    with monkeypatch.context() as broken:
        broken.setattr(engine, "clip_gradients", clip_gradients)
        with pytest.raises(UserError, match=r"memory.* 4 images.*micro_batch"):
            train(tiny_config(), folder, tiny_data)
    train(tiny_config(), folder, tiny_data, Options(resume=True))
    assert_same_run(whole, folder)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_a_resumed_run_does_not_keep_the_file_of_its_state_open(tmp_path, tiny_config, tiny_data):
    """A deleted file that is still mapped keeps its disk space."""
    train(tiny_config(), tmp_path, tiny_data, Options(on_step=stopping_after(0)))
    held = []

    def look(report):  # noqa: ARG001
        gc.collect()
        held.append(str(tmp_path / "state") in Path("/proc/self/maps").read_text())

    train(tiny_config(), tmp_path, tiny_data, Options(resume=True, on_step=look))
    assert held == [False] * 3


@pytest.mark.slow
def test_stopping_during_an_evaluation(tmp_path, tiny_config, tiny_data, whole, monkeypatch):
    from detrlab.training import loop

    folder = tmp_path / "run"
    true = loop.evaluate

    def evaluate(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return true(*arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(loop, "evaluate", evaluate)
        outcome = train(tiny_config(), folder, tiny_data)
    assert not outcome.finished
    assert outcome.epochs == ()
    train(tiny_config(), folder, tiny_data, Options(resume=True))
    assert_same_run(whole, folder)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_a_lock_that_cannot_be_written_is_one_message(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(UserError, match=r"run\.lock could not be written"), locked(tmp_path):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITTEN = ("config", "environment", "best", "last", "predictions", "metrics", "metrics", "step")


def test_the_disk_is_full_at_each_write_in_turn(tmp_path, tiny_config, tiny_data, monkeypatch):
    """The first attempt fails at its first write, the second at its second one, and so on."""
    config, folder = tiny_config(epochs=1), tmp_path / "run"
    train(config, tmp_path / "whole", tiny_data)
    failed = []
    while len(failed) < len(WRITTEN):
        writes = []

        def is_victim(name, writes=writes):
            writes.append(name)
            return len(writes) > len(failed)

        resume = Options(resume=RunFolder(folder).is_run)
        with monkeypatch.context() as broken:
            full_disk(broken, is_victim)
            with pytest.raises(UserError, match="disk is full"):
                train(config, folder, tiny_data, resume)
        failed.append(writes[len(failed)])
        assert not list(folder.rglob("*.tmp"))
        assert all(state.is_whole(path) for path in (folder / "state").glob("*"))
    assert tuple(name.split(".")[1].partition("-")[0] for name in failed) == WRITTEN
    train(config, folder, tiny_data, Options(resume=RunFolder(folder).is_run))
    assert_same_run(tmp_path / "whole", folder)


def test_a_killed_loading_process_is_named_and_the_run_resumes(
    tmp_path, tiny_config, tiny_data, whole
):
    """As the kernel does it when memory runs out."""
    folder = tmp_path / "run"

    def kill(report):
        if report.step == 0:
            for process in psutil.Process().children():
                process.kill()

    with pytest.raises(UserError, match=r"worker died.*fewer --workers"):
        train(tiny_config(), folder, tiny_data, Options(workers=1, on_step=kill))
    train(tiny_config(), folder, tiny_data, Options(resume=True))
    assert_same_run(whole, folder)


@pytest.mark.parametrize("change", ["half", "other"])
def test_an_image_that_changes_while_a_run_trains(tmp_path, tiny_config, photographs, change):
    """Half a file is named, and the run resumes when it is whole again; another image is read."""
    config, folder, data = tiny_config(), tmp_path / "run", open_data(photographs)
    victim = sorted((photographs / "train").glob("*.png"))[0]
    kept = victim.read_bytes()

    def damage_it(report):
        if report.step == 1 and change == "half":
            victim.write_bytes(kept[: len(kept) // 2])
        elif report.step == 1:
            Image.new("RGB", (90, 31)).save(victim)

    options = Options(on_step=damage_it)
    if change == "other":
        assert train(config, folder, data, options).finished
        return
    with pytest.raises(UserError, match=victim.name):
        train(config, folder, data, options)
    victim.write_bytes(kept)
    train(config, folder, data, Options(resume=True))
    train(config, tmp_path / "whole", data)
    assert_same_run(tmp_path / "whole", folder)


def test_a_clock_that_is_set_anew_changes_no_time(tmp_path, tiny_config, tiny_data, monkeypatch):
    """Back by a day, and forward by a year, at every look."""
    steps = itertools.cycle([-86_400.0, 3.2e7, float("-inf")])
    monkeypatch.setattr("time.time", lambda: next(steps))
    started = time.perf_counter()
    rows = train(tiny_config(), tmp_path / "run", tiny_data).epochs
    spent = time.perf_counter() - started
    seconds = [row["seconds"] for row in rows]
    assert 0 < seconds[0] <= seconds[1] <= spent
