"""Runs in jobs: submitted once, followed, lost and found, cancelled; here and by (fake) SLURM."""

import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import fake_slurm
import psutil
import pytest
import torch

from compare_cases import definition, in_process, result, small_recipe
from detrlab.cli import main
from detrlab.cli.jobs import table
from detrlab.compare import collect, compare, submitted
from detrlab.compare import job as job_module
from detrlab.compare.job import Job, Mark
from detrlab.compare.runs import KilledError
from detrlab.compare.schedulers import SETTINGS, Live, Local, Slurm, Submitted, live, scheduler
from detrlab.compare.submitted import Jobs, State, cancel, read_record, write_record
from detrlab.errors import UserError
from detrlab.training.folder import RunConfig, RunFolder, locked

pytest.importorskip("submitit")

MODELS = ("detr", "deformable-detr", "deformable-detr-two-stage")


class Cluster:
    """A scheduler whose jobs are names in a set: nothing runs."""

    pause = grace = 0.0

    def __init__(self, per_run=True):
        self.per_run = per_run
        self.alive = {}
        self.submissions = []

    def submit(self, folder, needed, unfinished, others):
        assert folder.is_dir()
        assert {job.key for job in others} == self.alive.keys()
        names = [run.folder.name for run in (needed if self.per_run else unfinished)]
        groups = [(name,) for name in names] if self.per_run else [tuple(names)]
        new = []
        for group in groups:
            self.submissions.append(group)
            new.append(Submitted("slurm", str(len(self.submissions)), group, "here"))
            self.alive[new[-1].key] = Live(queued=True)
        return new

    def live(self, jobs):
        return {job.key: self.alive[job.key] for job in jobs if job.key in self.alive}


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()
    monkeypatch.setattr(submitted, "live", made.live)
    monkeypatch.setattr(submitted, "fate", lambda _: " (NODE_FAIL)")
    return made


@pytest.fixture
def planned(data, tmp_path):
    return definition(data, MODELS).runs(tmp_path / "out")


def finish(run):
    result(run.entrant, run.seed).save(run.folder)


def script(*steps):
    """A ``show`` that takes one step at each look and remembers the states."""
    looks = []

    def show(states):
        looks.append(states)
        if len(looks) <= len(steps):
            steps[len(looks) - 1](states)

    show.looks = looks
    return show


def test_a_run_is_queued_runs_and_ends(cluster, planned, tmp_path):
    one, two, three = planned

    def queue(_):
        cluster.alive |= {"slurm:1": Live(), "slurm:2": Live(queued=True, why="Priority")}

    def train(_):
        Mark("slurm:1").write(one.folder)
        finish(three)

    def end(_):
        finish(one)
        Mark("slurm:2", "no memory").write(two.folder)
        del cluster.alive["slurm:2"]

    show, said = script(queue, train, end), []
    failures = Jobs(cluster, show)(tmp_path / "out", planned, said.append)
    kinds = [[state.kind for state in states] for states in show.looks]
    assert kinds == [
        ["queued"] * 3,
        ["running", "queued", "queued"],
        ["running", "queued", "done"],
        ["done", "failed", "done"],
    ]
    assert show.looks[1][1].why == "Priority"
    assert [(each.entrant, each.reason) for each in failures] == [("deformable-detr", "no memory")]
    assert cluster.submissions == [(run.folder.name,) for run in planned]
    assert said == []


def test_the_same_command_attaches_and_tries_again_what_failed(cluster, planned, tmp_path):
    one, two, three = planned
    folder = tmp_path / "out"

    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Jobs(cluster, interrupt)(folder, planned, str)
    assert len(cluster.alive) == 3
    Mark("slurm:1", "a bad recipe").write(one.folder)
    del cluster.alive["slurm:1"]

    def end(_):
        for run in planned:
            finish(run)

    assert Jobs(cluster, script(end))(folder, planned, str) == ()
    assert cluster.submissions[3:] == [(one.folder.name,)], "the others' jobs still live"
    assert [job.runs[0] for job in read_record(folder / "jobs")] == [
        run.folder.name for run in (two, three, one)
    ]


def test_two_commands_submit_a_run_once(cluster, planned, tmp_path):
    folder = tmp_path / "out"

    def second(_):
        if len(cluster.submissions) == 3:
            Jobs(cluster, script(end))(folder, planned, str)

    def end(_):
        for run in planned:
            finish(run)

    Jobs(cluster, script(second))(folder, planned, str)
    assert len(cluster.submissions) == 3
    for run in planned:
        (run.folder / "result.json").unlink()
    cluster.alive.clear()
    with locked(folder / "jobs"):  # another command is submitting
        states = submitted._Watch(folder, planned, cluster, str).look()
    assert {state.kind for state in states} == {"queued"}
    assert len(cluster.submissions) == 3


@pytest.mark.parametrize("per_run", [True, False])
def test_a_lost_job_is_submitted_again_twice(cluster, planned, tmp_path, per_run):
    cluster.per_run = per_run
    said = []
    failures = Jobs(cluster, lambda _: cluster.alive.clear())(
        tmp_path / "out", planned[:1], said.append
    )
    assert len(cluster.submissions) == 3
    assert ["NODE_FAIL): submitted again" in line for line in said] == [True, True]
    assert "ended 3 times without a result (NODE_FAIL)" in failures[0].reason
    assert "3_0_log.err" in failures[0].reason


def test_a_run_of_a_lost_job_counts_once_where_another_job_has_it(cluster, planned, tmp_path):
    cluster.per_run = False
    said = []

    def lose(_):
        cluster.alive["slurm:9"] = Live()
        jobs = read_record(tmp_path / "out" / "jobs")
        write_record(tmp_path / "out" / "jobs", [*jobs, Submitted("slurm", "9", jobs[0].runs, "h")])
        Mark("slurm:1").write(planned[0].folder)
        del cluster.alive["slurm:1"]

    def end(_):
        finish(planned[0])

    Jobs(cluster, script(lose, str, str, end))(tmp_path / "out", planned[:1], said.append)
    assert len(cluster.submissions) == 2
    assert len(said) == 1


def test_a_scheduler_that_is_silent_for_a_while_loses_nothing(cluster, planned, monkeypatch):
    folder = planned[0].folder.parents[1]

    def busy(_):
        raise UserError("squeue failed: timed out")

    def end(_):
        finish(planned[0])

    def silence(_):
        monkeypatch.setattr(submitted, "live", busy)
        write_record(folder / "jobs", [])  # by another command, which knows more

    show = script(silence, str, end)
    assert Jobs(cluster, show)(folder, planned[:1], str) == ()
    assert len(cluster.submissions) == 1
    assert show.looks[1][0].kind == "queued"
    with pytest.raises(UserError, match="timed out"):
        Jobs(cluster, show)(folder, planned, str)


def test_cancelled_jobs_are_not_submitted_again(cluster, planned, tmp_path, monkeypatch):
    folder, ended, said = tmp_path / "out", [], []
    monkeypatch.setattr(submitted, "end", lambda job: ended.append(job.id))

    def stop(_):
        Mark("slurm:1").write(planned[0].folder)
        finish(planned[2])
        cancel(folder, said.append)
        cluster.alive.clear()

    failures = Jobs(cluster, script(stop))(folder, planned, str)
    assert ended == ["1", "2", "3"]
    assert planned[0].folder.name in said[0]
    assert "trained nothing" in said[2]
    assert [each.reason for each in failures] == ["ended by --cancel"] * 2
    cancel(folder, said.append)
    assert "no job" in said[-1]


def test_processes_of_another_machine_are_left_alone(tmp_path):
    folder, said = tmp_path / "out" / "jobs", []
    folder.mkdir(parents=True)
    there = Submitted("local", "1", ("a",), "elsewhere")
    mine = Submitted("local", str(os.getpid()), ("a",), socket.gethostname(), time.time())
    write_record(folder, [there, mine])
    cancel(tmp_path / "out", said.append)  # mine is not a process of submitit: not ended either
    assert "elsewhere" in said[0]
    assert read_record(folder) == (there,)


@pytest.mark.parametrize("change", [{"id": "--user=me"}, {"runs": ["../../x"]}, {"where": "x"}])
def test_a_damaged_record_is_refused(tmp_path, change):
    write_record(tmp_path, [Submitted("slurm", "1_2", ("a",), "h")])
    assert read_record(tmp_path)[0].id == "1_2"
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps([{**json.loads(path.read_text())[0], **change}]))
    with pytest.raises(UserError, match=r"jobs\.json is damaged"):
        read_record(tmp_path)


def test_progress_comes_from_the_files_of_the_run(planned, tmp_path, cluster):
    run = planned[0]
    folder = RunFolder(run.folder)
    run.folder.mkdir(parents=True)
    folder.save_config(RunConfig(model=run.model, train=run.train.over(10), data=run.data))
    row = {"epoch": 4, "seconds": 240.0, "ap": 0.1234}
    folder.metrics.write_text(json.dumps({"epochs": [row]}))
    watch = submitted._Watch(tmp_path / "out", [run], cluster, str)
    watch.look()
    cluster.alive["slurm:1"] = Live()
    (state,) = watch.look()
    line = "detr, seed 0: running, epoch 4/10, AP 12.3, ~6 min left"
    assert state.line() == line
    later = time.time() - 120
    os.utime(folder.metrics, (later, later))
    assert watch.look()[0].left == pytest.approx(4, abs=0.1)
    for damaged in ("{", "[]", '{"epochs": [{"epoch": 0, "seconds": 1, "ap": "high"}]}'):
        folder.metrics.write_text(damaged)
        assert watch.look()[0].line() == "detr, seed 0: running"
    (run.folder / "job.json").write_text('{"job": 3, "reason": ["x"]}')
    assert Mark.read(run.folder) is None


# --- the job ----------------------------------------------------------------------------


@pytest.fixture
def in_a_job(planned, monkeypatch):
    """Calls a job of the planned runs here; ``launch`` is replaced."""
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    monkeypatch.setenv("SUBMITIT_LOCAL_JOB_ID", "7")
    for run in planned:
        run.folder.mkdir(parents=True)
        run.write()

    def call(launch):
        monkeypatch.setattr(job_module, "launch", launch)
        job = Job([run.folder for run in planned], "cpu", {"OMP_NUM_THREADS": "3", "GONE": None})
        monkeypatch.setenv("GONE", "1")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        job()

    return call


def test_a_job_trains_what_is_free(in_a_job, planned):
    trained = []

    def launch(run, _, device):
        assert (device, os.environ["OMP_NUM_THREADS"]) == ("cpu", "3")
        assert "GONE" not in os.environ
        trained.append(run.entrant)
        if run.entrant == "deformable-detr":
            raise UserError("a bad recipe")
        finish(run)
        return run.result()

    with locked(planned[0].folder, "job.lock"):
        in_a_job(launch)
    assert trained == list(MODELS[1:])
    assert Mark.read(planned[1].folder) == Mark("local:7", "a bad recipe")
    in_a_job(launch)
    assert trained[2:] == [MODELS[0]], "what has failed is not tried again by itself"


def test_a_run_whose_process_is_killed_starts_again_twice(in_a_job, planned):
    trained = Counter()

    def launch(run, *_):
        trained[run.entrant] += 1
        if run.entrant == "detr" or trained[run.entrant] == 1:
            raise KilledError("its process was killed by signal 9")
        finish(run)
        return run.result()

    in_a_job(launch)
    assert trained == {"detr": 3, "deformable-detr": 2, "deformable-detr-two-stage": 2}
    assert "signal 9" in Mark.read(planned[0].folder).reason
    assert planned[1].result() is not None


def test_a_stopped_run_ends_the_job(in_a_job, planned):
    def launch(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_a_job(launch)
    assert Mark.read(planned[0].folder) == Mark("local:7"), "nothing has failed"


# --- the command line -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--launch local", "local:N"),
        ("--launch local:0", "local:N"),
        ("--launch slurm:3", "local:N"),
        ("--launch local:2 --launch-set gpus=1", "only --launch slurm has settings"),
        ("--launch-set gpus=1", "needs --launch slurm"),
        (
            "--launch slurm --launch-set partitoin=gpu",
            "did you mean 'partition'?; valid: partition,",
        ),
        ("--launch slurm --launch-set gpus=one", "gpus=VALUE with a whole number from 1"),
        ("--launch slurm --launch-set gpus=0", "gpus=VALUE with a whole number from 1"),
        ("--launch slurm --launch-set memory=inf", "memory=VALUE with a number of gigabytes"),
        ("--launch slurm --launch-set partition", "partition=VALUE with a word"),
        ("--launch local:2 --collect", "leave out --launch"),
    ],
)
def test_mistakes_are_one_clear_line(words, expected, capsys, tmp_path):
    assert main(["compare", "--output", str(tmp_path / "out"), *words.split()]) == 2
    message = capsys.readouterr().err.strip()
    assert expected in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_the_documentation_has_every_setting():
    page = Path(__file__).parents[2] / "docs" / "comparing.md"
    table = page.read_text(encoding="utf-8").partition("| `--launch-set` |")[2].partition("\n\n")[0]
    assert SETTINGS.keys() == {name for name in re.findall(r"`(\w+)`", table) if name != "sbatch"}


def test_without_submitit_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "submitit", None)
    assert main(["ladder", "--launch", "local:2"]) == 2
    assert "detrlab[cluster]" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["compare", "ladder", "ablate --vary num_queries=5,6"])
def test_cancel_without_jobs_says_so(verb, capsys, tmp_path):
    assert main([*verb.split(), "--output", str(tmp_path / "out"), "--cancel"]) == 0
    assert "no job" in capsys.readouterr().err


def test_the_table_fits_the_terminal_and_prints_no_control_characters(planned):
    from rich.console import Console

    evil = planned[0].model_copy(update={"entrant": "a\x1b[2Jb [red]"})
    states = [
        *(State(run, "done", 50, 50, 0.5, 12.0) for run in planned * 20),
        State(evil, "running", 12, 300, 0.123, 5.5, 130.0),
        *(State(evil, "queued", why="QOSMaxJobsPerUserLimit\x07") for _ in range(20)),
        State(evil, "failed", why="\x1b[31mno memory"),
    ]
    console = Console(width=80, height=24, record=True, file=io.StringIO())
    console.print(table(states, 20))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.isprintable() for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "20 queued, 1 running, 60 done, 1 failed" in text
    assert "12/300 12.3 5.5 ~130" in text
    assert "[red]" in text
    assert "\\x1b[31mno memory" in text
    assert len(lines) <= 24


def test_each_local_job_has_its_share_of_cores_and_a_gpu(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [Local(3)._environment(slot) for slot in range(3)]
    assert [each["OMP_NUM_THREADS"] for each in found] == ["2"] * 3
    assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert Local(16)._environment(1) == {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "GPU-7"}
    assert Local(2, "cuda:1")._environment(0)["CUDA_VISIBLE_DEVICES"] == "5,GPU-7"


# --- SLURM ------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    state = fake_slurm.install(tmp_path / "slurm")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{state.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(fake_slurm, "STATE", state)
    monkeypatch.setattr(Slurm, "pause", 0.4)
    monkeypatch.setattr(Slurm, "grace", 0.0)
    yield state
    for job, now in fake_slurm.jobs().items():
        if now in ("PENDING", "RUNNING"):
            fake_slurm.scancel(job)


def test_slurm_gets_the_settings_and_keeps_the_jobs(slurm, planned, tmp_path, capsys):
    (slurm / "hold").write_text("")
    folder = tmp_path / "out"
    settings = ("partition=gpu", "gpus=1", "minutes=600", "memory=16", "reservation=us")
    made = Slurm([*settings, "setup=source env.sh; ulimit -c 0", "python=container run python"])
    looks = []

    def interrupt(states):
        looks.append(states)
        raise KeyboardInterrupt

    for _ in range(2):  # the second command attaches
        with pytest.raises(KeyboardInterrupt):
            Jobs(made, interrupt)(folder, planned, str)
    assert sorted(path.name for path in slurm.glob("*.sbatch")) == ["101.sbatch"]
    text = (slurm / "101.sbatch").read_text()
    for line in (
        "#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=1", "#SBATCH --time=600",
        "#SBATCH --mem=16GB", "#SBATCH --reservation=us", "#SBATCH --requeue",
        "#SBATCH --job-name=detrlab-out", "#SBATCH --signal=USR2@90", "#SBATCH --array=0-2%3",
        "source env.sh; ulimit -c 0",
    ):  # fmt: skip
        assert line in text.splitlines()
    assert "container run python -u -m submitit" in text
    assert [state.why for state in looks[-1]] == ["Resources"] * 3
    assert [job.id for job in read_record(folder / "jobs")] == ["101_0", "101_1", "101_2"]
    assert not [path for path in folder.rglob("*") if path.is_symlink()], "can be collected"
    assert main(["compare", "--output", str(folder), "--cancel"]) == 0
    said = capsys.readouterr().err
    assert all(
        f"ended job 101_{i} of SLURM ({run.folder.name})" in said for i, run in enumerate(planned)
    )
    end = time.monotonic() + 20
    while set(fake_slurm.jobs().values()) != {"CANCELLED by 0"} and time.monotonic() < end:
        time.sleep(0.05)
    assert set(fake_slurm.jobs().values()) == {"CANCELLED by 0"}


def test_slurm_that_refuses_or_is_missing_is_one_line(slurm, planned, tmp_path):
    (slurm.parent / "sbatch").write_text("#!/bin/sh\necho 'invalid partition: x' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"SLURM did not take the jobs: .*invalid partition: x"):
        Jobs(Slurm())(tmp_path / "out", planned, str)
    (slurm.parent / "srun").unlink()
    with pytest.raises(UserError, match="srun"):
        Jobs(Slurm())(tmp_path / "out", planned, str)
    write_record(tmp_path / "out" / "jobs", [Submitted("slurm", "1", ("a",), "h")])
    (slurm.parent / "squeue").unlink()
    with pytest.raises(UserError, match="squeue is not on this machine"):
        Jobs(Slurm())(tmp_path / "out", planned, str)


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_preempted_job_goes_on_and_a_cancelled_one_saves(data, tmp_path):
    recipe = small_recipe(data, epochs=6)
    folder, done = tmp_path / "out", []

    def show(states):
        for state, index in zip(states, "01", strict=True):
            if state.kind == "running" and state.epoch and index not in done:
                done.append(index)
                if index == "0":  # what SLURM does before it takes the node
                    fake_slurm.send("101_0", signal.SIGUSR2)
                else:
                    fake_slurm.scancel("101_1")

    jobs = Jobs(Slurm(), show)
    found = compare(MODELS[:2], recipe=recipe, output=folder, launcher=jobs)
    assert len(done) == 2
    whole = compare(MODELS[:1], recipe=recipe, output=tmp_path / "whole", trainer=in_process)
    same(found.rows[0].runs, whole.rows[0].runs, found.folder, whole.folder)
    assert [failure.reason for failure in found.failures] == ["its job was cancelled"]
    for index, starts in (("0", 2), ("1", 1)):
        log = (folder / "jobs" / f"101_{index}_0_log.out").read_text()
        assert log.count("Starting with JobEnvironment") == starts
        assert log.count("stopped by SIGTERM: saved after step") == 1


def same(runs, others, folder, other_folder):
    """Assert that runs have the same numbers, to the bit."""
    assert len(runs) == len(others)
    for run, other in zip(runs, others, strict=True):
        assert (run.entrant, run.seed, run.metrics) == (other.entrant, other.seed, other.metrics)
        predictions = (folder / run.predictions, other_folder / other.predictions)
        assert predictions[0].read_bytes() == predictions[1].read_bytes()


# --- here ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_at_once_give_the_same_to_the_bit_though_processes_are_killed(
    data, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))
    recipe = small_recipe(data, epochs=3)
    killed, said, most = [], [], 0

    def show(states):
        nonlocal most
        running = [state for state in states if state.kind == "running"]
        most = max(most, len(running))
        for state in running:
            if len(killed) < 2 and state.epoch and state.run.folder not in killed:
                mark = Mark.read(state.run.folder)
                chain = psutil.Process(int(mark.job.partition(":")[2])).children(recursive=True)
                # First the process that trains a run; then the job of another run.
                chain[1 if not killed else 0].kill()
                killed.append(state.run.folder)

    monkeypatch.setattr(Local, "pause", 0.2)
    jobs = Jobs(scheduler("local:2"), show)
    both = {"recipe": recipe, "seeds": (0, 1)}
    found = compare(MODELS, **both, output=tmp_path / "jobs", launcher=jobs, report=said.append)
    assert most == len(killed) == 2
    assert len([line for line in said if "submitted again (1 of 2 times)" in line]) == 1
    logs = "".join(path.read_text() for path in (tmp_path / "jobs" / "jobs").glob("*.out"))
    assert logs.count("killed by signal 9") == 1
    whole = compare(MODELS, **both, output=tmp_path / "whole", trainer=in_process)
    assert not found.failures
    assert found.verdicts.sentences == whole.verdicts.sentences
    for row, other in zip(found.rows, whole.rows, strict=True):
        same(row.runs, other.runs, found.folder, whole.folder)
    collected = collect(tmp_path / "copy", [found.folder], report=str)
    assert [row.metrics for row in collected.rows] == [row.metrics for row in whole.rows]


def test_a_job_is_recognised_after_the_clock_was_set(monkeypatch):
    """Both the start of a process and that of the machine move with the clock."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "submitit.local._local"]
    with subprocess.Popen(command) as process:
        try:
            each = psutil.Process(process.pid)
            while "submitit.local._local" not in each.cmdline():
                time.sleep(0.01)  # it is still a copy of this process
            created, boot = each.create_time(), psutil.boot_time()
            host = socket.gethostname()
            job = Submitted("local", str(process.pid), ("a",), host, created - boot)
            other = replace(job, started=created - boot - 60)
            for step in (0.0, 3600.0, -86_400.0):
                changed = lambda _, step=step: created + step  # noqa: E731
                monkeypatch.setattr(psutil.Process, "create_time", changed)
                monkeypatch.setattr(psutil, "boot_time", lambda step=step: boot + step)
                assert list(live([job])) == [job.key]
                assert not live([other])
        finally:
            process.kill()


@pytest.mark.parametrize("step", [-1e9, 1e9])
def test_the_time_that_is_left_stays_a_time_when_the_clock_is_set(
    cluster, planned, tmp_path, monkeypatch, step
):
    run = planned[0]
    folder = RunFolder(run.folder)
    run.folder.mkdir(parents=True)
    folder.save_config(RunConfig(model=run.model, train=run.train, data=run.data))
    row = {"epoch": 1, "seconds": 60.0, "ap": None}
    folder.metrics.write_text(json.dumps({"epochs": [row]}))
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + step)
    state = submitted._Watch(tmp_path, [run], cluster, str)._so_far(run)
    assert 0 <= state.left <= run.train.epochs


def test_a_budget_of_minutes_survives_a_clock_that_is_set(data, tmp_path, monkeypatch):
    (run,) = definition(data, ["detr"], budget="minutes=0.01").runs(tmp_path)
    steps = itertools.cycle([-86_400.0, 3.2e7])
    monkeypatch.setattr("time.time", lambda: next(steps))
    found = in_process(run, str)
    assert len(found.epochs) >= 1
    assert 0 < found.cost.minutes < 5
