"""The service on loopback: latency at 1 to 8 clients, memory over 2,000 requests, refusals.

    python benchmarks/serving.py --images ../shared/data/facemask/val2017

starts ``detrlab serve`` in an empty folder and sends it the photographs of a folder. Writes
docs/results/serving.json.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

RESULT = Path(__file__).resolve().parents[1] / "docs/results/serving.json"
CLIENTS = (1, 2, 4, 8)
ROUNDS = 5
MEGABYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--each", type=int, default=200, help="requests at each number of clients")
    parser.add_argument("--long", type=int, default=2000, help="requests while memory is watched")
    options = parser.parse_args()
    files = sorted(path for path in options.images.iterdir() if path.suffix == ".jpg")[:100]
    pictures = [path.read_bytes() for path in files]
    with serving() as (port, process, folder):
        before = set(folder.rglob("*"))  # torch makes an empty folder when it is imported
        requests_of(port, pictures[:5])  # warm
        latency = measured(port, pictures, options.each)
        memory = watched(port, pictures, process, options.long)
        crowd = dict(Counter(requests_of(port, pictures, clients=24, count=96)[0]))
        report = {
            "images": len(pictures),
            "cores": psutil.cpu_count(),
            "load_average_after": [round(each, 2) for each in psutil.getloadavg()],
            "torch": torch.__version__,
            "latency_ms": latency,
            "memory_mib": memory,
            "status_of_24_clients_at_once": {str(key): crowd[key] for key in sorted(crowd)},
            "refused": refusals(port),
            "files_written": sorted(str(path) for path in set(folder.rglob("*")) - before),
        }
    print(json.dumps(report, indent=1))
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


@contextlib.contextmanager
def serving() -> Iterator[tuple[int, psutil.Process, Path]]:
    """A service with the packaged detector, its process and the empty folder it works in."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        command = [sys.executable, "-m", "detrlab", "serve", "--port", "0"]
        environment = {**os.environ, "TMPDIR": str(folder)}
        with subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                line = process.stderr.readline()
                yield int(line.split(":")[2].split()[0]), psutil.Process(process.pid), folder
            finally:
                process.terminate()


def requests_of(
    port: int, pictures: list[bytes], clients: int = 1, count: int | None = None
) -> tuple[list[int], list[float]]:
    """Send pictures, each client one after the other; every status, and the seconds of each."""
    count = count or len(pictures)

    def client(number: int) -> list[tuple[int, float]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        answers = []
        mine = itertools.islice(itertools.cycle(pictures), number, None, clients)
        for picture in itertools.islice(mine, count // clients):
            started = time.perf_counter()
            connection.request("POST", "/predict", picture, {"content-type": "image/jpeg"})
            answer = connection.getresponse()
            answer.read()
            answers.append((answer.status, time.perf_counter() - started))
        connection.close()
        return answers

    with ThreadPoolExecutor(clients) as pool:
        every = list(itertools.chain.from_iterable(pool.map(client, range(clients))))
    return [status for status, _ in every], [seconds for _, seconds in every]


def measured(port: int, pictures: list[bytes], count: int) -> dict[str, dict[str, float]]:
    """By number of clients; these take turns, so that other work on the machine meets them all."""
    every: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    wall = dict.fromkeys(CLIENTS, 0.0)
    for _, clients in itertools.product(range(ROUNDS), CLIENTS):
        started = time.perf_counter()
        statuses, seconds = requests_of(port, pictures, clients, count // ROUNDS)
        wall[clients] += time.perf_counter() - started
        assert set(statuses) == {200}, Counter(statuses)
        every[clients] += seconds
    told = {}
    for clients, seconds in every.items():
        p50, p90, p99 = (1000 * np.percentile(seconds, [50, 90, 99])).round(1).tolist()
        rate = round(len(seconds) / wall[clients], 2)
        told[str(clients)] = {"p50": p50, "p90": p90, "p99": p99, "per_second": rate}
    return told


def watched(
    port: int, pictures: list[bytes], process: psutil.Process, count: int
) -> dict[str, object]:
    """Resident memory while requests come from two clients, every tenth of them."""
    seen = []
    for _ in range(10):
        statuses, _ = requests_of(port, pictures, clients=2, count=count // 10)
        assert set(statuses) == {200}
        seen.append(round(process.memory_info().rss / MEGABYTE, 1))
        print(seen, flush=True)
    growth = round(seen[-1] - seen[4], 1)
    return {"requests": count, "after_each_tenth": seen, "growth_in_second_half": growth}


def refusals(port: int) -> dict[str, list[object]]:
    """Status and sentence for bad uploads."""
    bad = {
        "empty": (b"", {}),
        "cut off": (b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00", {}),
        "text": (b"hello", {}),
        "json": (b"{}", {"content-type": "application/json"}),
        "30 MB": (b"x" * 30_000_000, {}),
    }
    told = {}
    for name, (body, headers) in bad.items():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        # A service may answer before it has read everything, and close the connection.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", "/predict", body, headers)
        answer = connection.getresponse()
        told[name] = [answer.status, json.loads(answer.read())["error"]]
        connection.close()
    return told


if __name__ == "__main__":
    main()
