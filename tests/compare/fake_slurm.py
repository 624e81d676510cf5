"""SLURM's commands as far as jobs need them, on this machine: ``fake_slurm.py COMMAND ...``.

``install`` makes a folder of commands for the PATH. Its subfolder ``state`` holds for each job
its state, the process group of its step, and whether it is to be cancelled or requeued. While
there is a file ``hold``, jobs stay pending. A signal reaches all processes of a step, as SLURM's
do, and a cancelled job is killed after ``KILL_WAIT`` seconds.
"""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
KILL_WAIT = 6.0
STATE = Path(os.environ.get("FAKE_SLURM", "."))


def install(folder):
    """Make the commands; returns the folder of states."""
    (folder / "state").mkdir(parents=True)
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{__file__}" {name} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder / "state"


def write(job, suffix, text=""):
    path = STATE / f"{job}.{suffix}"
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


def jobs():
    return {path.stem: path.read_text() for path in sorted(STATE.glob("*.job"))}


def sbatch(script):
    text = Path(script).read_text()
    number = str(101 + len(list(STATE.glob("*.sbatch"))))
    (STATE / f"{number}.sbatch").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    names = [f"{number}_{i}" for i in range(int(array[1]) + 1)] if array else [number]
    for name in names:
        write(name, "job", "PENDING")
        subprocess.Popen(
            [sys.executable, "-S", __file__, "keep", name],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    print(f"Submitted batch job {number}")


def keep(job):
    """What slurmctld does for one job."""
    number, _, task = job.partition("_")
    environment = {**os.environ, "SLURM_JOB_ID": number, "SLURM_NTASKS": "1"}
    if task:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
    cancelled, requeued = STATE / f"{job}.cancel", STATE / f"{job}.requeue"
    state = "REQUEUED"
    while state == "REQUEUED":
        write(job, "job", "PENDING")
        while (STATE / "hold").exists() and not cancelled.exists():
            time.sleep(0.05)
        if cancelled.exists():
            state = "CANCELLED by 0"
            break
        write(job, "job", "RUNNING")
        with subprocess.Popen(["bash", STATE / f"{number}.sbatch"], env=environment) as process:
            end = None
            while process.poll() is None:
                if cancelled.exists():
                    end = end or time.monotonic() + KILL_WAIT
                    if time.monotonic() > end:
                        send(job, signal.SIGKILL)
                time.sleep(0.05)
        state = "COMPLETED" if process.returncode == 0 else "FAILED"
        if cancelled.exists():
            state = "CANCELLED by 0"
        elif requeued.exists():
            requeued.unlink()
            state = "REQUEUED"
    write(job, "job", state)


def send(job, number):
    """Signal every process of a job's step, but not the batch script."""
    os.killpg(int((STATE / f"{job}.group").read_text()), number)


def srun(*arguments):
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        job += "_" + os.environ["SLURM_ARRAY_TASK_ID"]
    options = {}
    rest = list(arguments)
    while rest[0].startswith("--"):
        name = rest.pop(0)
        if name in ("--output", "--error"):
            path = rest.pop(0).replace("%j", job).replace("%A_%a", job).replace("%t", "0")
            options[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.setsid()
    write(job, "group", str(os.getpid()))
    os.dup2(options["--output"], 1)
    os.dup2(options["--error"], 2)
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    os.execvp(rest[0], rest)


def squeue(*_):
    for job, state in jobs().items():
        if state in ("PENDING", "RUNNING"):
            print(f"{job}|{state}|{'Resources' if state == 'PENDING' else 'None'}")


def sacct(*arguments):
    print(jobs()[arguments[-1]])


def scancel(job):
    write(job, "cancel")
    if jobs()[job] == "RUNNING":
        send(job, signal.SIGTERM)


def scontrol(verb, job):
    assert verb == "requeue"
    write(job, "requeue")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
