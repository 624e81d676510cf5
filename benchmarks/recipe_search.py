"""Search for a recipe for little data: one change at a time.

    python benchmarks/recipe_search.py --data facemask --output runs/recipe-search --jobs 8

Each variation is one ``detrlab train``; the same command resumes interrupted ones. The table
at the end compares all at the last epoch that each of them has reached.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

ROUNDS = Path(__file__).with_name("recipe_search.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", default="first", help="which list of recipe_search.yaml")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="stop all after so long (they can go on)")
    parser.add_argument("--only", nargs="+", help="some of the variations")
    parser.add_argument("--collect", action="store_true", help="train nothing, write the table")
    options = parser.parse_args()
    plan = yaml.safe_load(ROUNDS.read_text())[options.round]
    names = options.only or list(plan["variations"])
    options.output.mkdir(parents=True, exist_ok=True)
    if not options.collect:
        train_all(plan, names, options)
    write_table(plan, names, options)


def train_all(plan: dict, names: list[str], options: argparse.Namespace) -> None:
    waiting, running = list(names), {}
    end = time.monotonic() + 60 * options.minutes if options.minutes else None
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            running[name] = start(plan, name, options)
        time.sleep(0.5)
        for name, process in list(running.items()):
            if process.poll() is not None:
                print(f"{name}: ended with {process.returncode}", flush=True)
                del running[name]
        if end and time.monotonic() > end:
            for process in running.values():
                process.send_signal(signal.SIGTERM)  # it saves and exits
            for process in running.values():
                process.wait()
            return


def start(plan: dict, name: str, options: argparse.Namespace) -> subprocess.Popen:
    folder = options.output / name
    settings = {**plan["common"], **(plan["variations"][name] or {})}
    command = [sys.executable, "-m", "detrlab", "train", "--recipe", plan["recipe"]]
    command += ["--model", plan["model"], "--data", options.data, "--output", str(folder)]
    command += ["--workers", str(options.workers), "--device", options.device, "--no-preflight"]
    command += ["--set", *(f"{key}={json.dumps(value)}" for key, value in settings.items())]
    if (folder / "config.yaml").exists():
        command.append("--resume")
    log = (options.output / f"{name}.log").open("a")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def write_table(plan: dict, names: list[str], options: argparse.Namespace) -> None:
    runs = {}
    for name in names:
        file = options.output / name / "metrics.json"
        if file.exists():
            runs[name] = json.loads(file.read_text())["epochs"]
    if not runs:
        print("no run has finished an epoch yet")
        return
    epoch = min(len(rows) for rows in runs.values())
    table = {
        name: {
            "settings": plan["variations"][name] or {},
            "epochs": len(rows),
            "at_common_epoch": {key: rows[epoch - 1][key] for key in KEYS},
            "at_last_epoch": {key: rows[-1][key] for key in KEYS},
            "curve": [row["ap"] for row in rows],
        }
        for name, rows in runs.items()
    }
    report = {**{k: plan[k] for k in ("recipe", "model", "common")}, "epoch": epoch, "runs": table}
    (options.output / "search.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{'variation':24} {'epochs':>6} {'AP':>6} {'AP50':>6} {'small':>6}   at epoch {epoch}")
    for name, row in sorted(table.items(), key=lambda item: -item[1]["at_common_epoch"]["ap"]):
        at = row["at_common_epoch"]
        last = row["at_last_epoch"]
        print(
            f"{name:24} {row['epochs']:6} {at['ap']:6.3f} {at['ap50']:6.3f} {at['ap_small']:6.3f}"
            f"   last {last['ap']:.3f} {last['ap50']:.3f}, {last['seconds']:.0f} s"
        )


KEYS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "seconds")


if __name__ == "__main__":
    main()
