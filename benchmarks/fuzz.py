"""Mutate valid files of every kind that people give to detrlab, and see how each one ends.

    python benchmarks/fuzz.py --inputs 20000 --seed 0 --output docs/results/fuzz.md
    python benchmarks/fuzz.py --kinds COCO --input 123      # one input again, with its traceback

Each input must be accepted, repaired with a count, or refused in one printable line that names
the file, within 10 seconds of processor time and 2 GB. Nothing may be executed, and nothing
outside of the input's folder read or written: an audit hook watches the process that opens it,
and inotify a file that mutations point at. The process is started anew when an input ends it.

An input depends on its kind, the seed and its number only. Inputs that end otherwise are copied
to --findings.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import random
import re
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Self

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
SECONDS, GIGABYTES = 10.0, 2
MANY = 200
"""Broken inputs of a kind after which its others are not tried."""
VERDICTS = ("accepted", "repaired", "refused", "broken")


class Ending(NamedTuple):
    """How one input ended: the verdict, what was said about it, seconds, and its file."""

    verdict: str
    said: str
    seconds: float
    file: str


# The process that opens them ---------------------------------------------------------------------

RUNS = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile",
    "subprocess.Popen", "pty.spawn", "code.__new__", "socket.connect", "socket.sendto",
    "socket.getaddrinfo", "urllib.Request", "ctypes.dlopen", "webbrowser.open",
)  # fmt: skip
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move",
)  # fmt: skip


class Watch:
    """What Python is asked to do while an input is used, beyond what the input may ask for."""

    def __init__(self, home: Path) -> None:
        self.seen: list[str] = []
        self.active = False
        self._reads = tuple(
            os.path.realpath(each) for each in
            (home / "kinds", sys.prefix, sys.base_prefix, HERE.parent / "src", HERE,
             HERE.parent / "tests", *map(_place, ("torch", "numpy", "detrlab")),
             "/usr/lib", "/usr/share", "/lib", "/proc", "/sys", "/dev")
        )  # fmt: skip
        self._writes = tuple(
            os.path.realpath(home / each) for each in ("cache", "out", "here", "temporary")
        )
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in RUNS:
            if event == "socket.connect" and arguments[1][0] == "127.0.0.1":
                return  # the fuzzer's own client
            if event in ("socket.getaddrinfo", "ctypes.dlopen") and arguments[0] in (
                None,
                "127.0.0.1",
            ):
                return
            self._note(f"{event}{arguments!r}"[:200])
            raise PermissionError(f"{event} is not allowed while an input is used")
        if event == "open":
            path, _, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            self._path("writes" if writes else "reads", path)
        elif event in CHANGES:
            self._path(event, arguments[0])
        elif event in ("os.listdir", "os.scandir"):
            self._path("lists", arguments[0])

    def _path(self, what: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor that is open already
        text = os.path.realpath(os.fsdecode(path)) if b"\0" not in os.fsencode(path) else ""
        allowed = self._writes if what not in ("reads", "lists") else self._writes + self._reads
        if not text.startswith(allowed) and text != "/dev/null":
            self._note(f"{what} {text}")

    def _note(self, line: str) -> None:
        self.seen.append(line)

    def taken(self) -> list[str]:
        """What was seen since the last call."""
        found, self.seen = self.seen, []
        return found


def _place(package: str) -> str:
    from importlib.util import find_spec

    spec = find_spec(package)
    assert spec is not None
    return str(Path(str(spec.origin)).parent.parent)


class Decoys:
    """A file that inputs point at; inotify also sees what libraries open without Python."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "secret.png").write_bytes(b"secret")
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        path = os.fsencode(folder / "secret.png")
        assert libc.inotify_add_watch(self._descriptor, path, 0x20) > 0  # IN_OPEN

    def opened(self) -> bool:
        """Whether one was opened since the last call."""
        try:
            return bool(os.read(self._descriptor, 1 << 16))
        except BlockingIOError:
            return False


def child(home: Path, seed: int, kinds: str, trace: bool) -> None:
    """Answer each line of JSON, ``[kind, number]`` or ``[kind, file, what it replaces]``, with one.

    The answer says how that input ended.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries may print
    os.chdir(home / "here")
    import torch
    from fuzz_mutations import mutate

    known_kinds = import_module(kinds).KINDS

    torch.set_num_threads(1)
    decoys, watch = Decoys(home / "kinds" / "outside"), Watch(home)
    known: dict[str, set[str]] = {}
    for line in sys.stdin:
        name, what, *replaced = json.loads(line)
        kind, folder = known_kinds[name], home / "kinds" / name
        if not folder.exists():
            folder.mkdir()
            kind.build(folder)
        if name not in known:
            known[name] = _warmed_up(kind, folder, home)
            watch.taken(), decoys.opened()
        draw = random.Random(f"{name} {seed} {what}")
        file, form = draw.choice(sorted(kind.forms.items()))
        file = replaced[0] if replaced else file
        path = folder / file
        valid = path.read_bytes()
        data = Path(what).read_bytes() if replaced else mutate(valid, form, draw)
        (home / "current").write_bytes(data)
        path.write_bytes(data)
        before = _listing(home)
        started = time.process_time()
        try:
            with _limited_memory():
                watch.active = True
                ending = _used(kind, folder, path, home, known[name], trace)
        finally:
            watch.active = False
        seconds = time.process_time() - started  # the machine may have other things to do
        path.write_bytes(valid)
        _clear(home / "out")
        broken = watch.taken()
        broken += ["opened a file outside"] if decoys.opened() else []
        broken += ["left files behind"] if _listing(home) != before else []
        broken += [f"took {seconds:.1f} s"] if seconds > SECONDS else []
        if broken:
            ending = "broken", "; ".join(broken)[:500]
        answer = Ending(*ending, round(seconds, 3), file)._asdict()
        answers.write(json.dumps(answer | {"peak": _peak()}) + "\n")
        answers.flush()


def _warmed_up(kind: Any, folder: Path, home: Path) -> set[str]:
    """Use the valid files once, so that everything is imported; returns what was said."""
    said: set[str] = set()
    for file in kind.forms:
        said |= set(kind.use(folder, folder / file, home / "out"))
        _clear(home / "out")
    return said


def _used(
    kind: Any, folder: Path, path: Path, home: Path, known: set[str], trace: bool
) -> tuple[str, str]:
    from detrlab.errors import UserError

    try:
        notes = [note for note in kind.use(folder, path, home / "out") if note not in known]
    except UserError as error:
        text = str(error)
        if not text.isprintable():
            return "broken", f"not one printable line: {text!r}"[:500]
        if len(text) > 2000:
            return "broken", f"{len(text):,} characters: {text[:300]}"
        places = (path.name, path.parent.name, folder.name, str(home / "out"))
        settings = ("recipe '", "learning-rate group", "--freeze")
        if not any(part in text for part in places + settings):
            return "broken", f"names no file: {text}"[:500]
        return "refused", text
    except MemoryError:
        if trace:
            traceback.print_exc()
        return "broken", f"takes more than {GIGABYTES} GB"
    except Exception as error:
        if trace:
            traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)
        place = [frames[-1], *(each for each in frames if "detrlab" in each.filename)][-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        return "broken", f"{type(error).__name__} at {where}: {error}"[:500]
    return ("repaired", "; ".join(notes)[:500]) if notes else ("accepted", "")


class _limited_memory:  # noqa: N801 - used as a function
    """Address space for 2 GB more than are taken now."""

    def __enter__(self) -> None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (GIGABYTES << 30), resource.RLIM_INFINITY))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _peak() -> int:
    """Most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _listing(home: Path) -> list[str]:
    """What nobody may add to: the folders around the input's."""
    return sorted(
        str(path)
        for place in (home, home / "here", home / "kinds", home / "kinds" / "outside")
        for path in place.iterdir()
    )


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


# The process that asks ---------------------------------------------------------------------------


class Opener:
    """Runs inputs in a child, which it starts anew when one of them ends it."""

    def __init__(
        self, home: Path, seed: int, *, trace: bool = False, kinds: str = "fuzz_kinds"
    ) -> None:
        from fuzz_kinds import environment

        for name in ("kinds", "cache", "out", "here", "temporary"):
            (home / name).mkdir(parents=True, exist_ok=True)
        self.home = home
        self.seed = seed
        self.trace = trace
        self._kinds = kinds
        self.peak = 0
        self._environment = environment(home) | {"TMPDIR": str(home / "temporary")}
        self._child: subprocess.Popen[bytes] | None = None
        self._kind = ""

    def run(self, kind: str, what: int | Path, *replaced: str) -> Ending:
        """How an input ends: a mutation by its number, or a file in the place of a valid one."""
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, str(HERE / "fuzz.py"), "--child", str(self.home)]
            command += ["--seed", str(self.seed), *["--trace"] * self.trace, "--kinds", self._kinds]
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment
            )
            self._kind = ""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        words = [kind, str(Path(what).resolve()) if replaced else what, *replaced]
        self._child.stdin.write(f"{json.dumps(words)}\n".encode())
        self._child.stdin.flush()
        patience = 3 * SECONDS + (90 if kind != self._kind else 0)  # to import and to build
        self._kind = kind
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            ready = selector.select(patience)
        line = self._child.stdout.readline() if ready else b""
        if line:
            values = json.loads(line)
            self.peak = max(self.peak, values.pop("peak"))
            return Ending(**values)
        self._child.kill()
        code = self._child.wait()
        self._child = None
        shutil.rmtree(self.home / "kinds" / kind, ignore_errors=True)  # may hold the mutated file
        said = f"ended the process ({code})" if ready else f"took more than {patience:.0f} s"
        return Ending("broken", said, patience * (not ready), "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._child is not None:
            self._child.communicate()


class Tally(NamedTuple):
    """How the inputs of a kind ended.

    Attributes:
        counts: by verdict.
        slowest: seconds of processor time of an input.
        peak: most bytes of memory that the process has had, its libraries included.
        broken: a line for each broken input.
        refusals: messages without names and numbers, to be read by a person.
    """

    counts: Counter[str]
    slowest: float
    peak: int
    broken: list[str]
    refusals: Counter[str]


def shares(inputs: int, kinds: list[str]) -> dict[str, int]:
    """How many inputs each kind gets, by its weight."""
    from fuzz_kinds import KINDS

    total = sum(KINDS[name].weight for name in kinds)
    return {name: math.ceil(inputs * KINDS[name].weight / total) for name in kinds}


def tally(opener: Opener, name: str, inputs: int, findings: Path | None = None) -> Tally:
    """Run the first inputs of a kind; broken ones are copied to ``findings``."""
    counts: Counter[str] = Counter()
    refusals: Counter[str] = Counter()
    broken: list[str] = []
    slowest = 0.0
    for number in range(inputs):
        ending = opener.run(name, number)
        counts[ending.verdict] += 1
        slowest = max(slowest, ending.seconds)
        if ending.verdict == "broken":
            broken.append(f"{name} {number} {ending.file}: {ending.said}")
            print(broken[-1], flush=True)
            if findings is not None and (opener.home / "current").exists():
                findings.mkdir(parents=True, exist_ok=True)
                target = f"{name}-{number}-{Path(ending.file).name or 'unknown'}"
                shutil.copy(opener.home / "current", findings / target)
        elif ending.verdict == "refused":
            plain = re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|\d[\d,.]*", "_", ending.said)
            refusals[f"{name}: {plain[:150]}"] += 1
        if len(broken) == MANY:
            break
    return Tally(counts, slowest, opener.peak, broken, refusals)


def page(found: dict[str, Tally], command: str, minutes: float) -> str:
    """The result as Markdown."""
    rows = {name: [each.counts[verdict] for verdict in VERDICTS] for name, each in found.items()}
    rows["all"] = [sum(column) for column in zip(*rows.values(), strict=True)]
    slowest = {name: each.slowest for name, each in found.items()}
    slowest["all"] = max(slowest.values())
    peak = max(each.peak for each in found.values()) / 1e9
    lines = [
        "# Mutated inputs",
        "",
        f"`{command}`, {minutes:.0f} minutes on two busy cores.",
        "",
        "Each input is a valid file that was changed at random, and is opened as the commands open "
        f"it, within {SECONDS:.0f} seconds of processor time and {GIGABYTES} GB more than the "
        f"libraries take; with these the largest process took {peak:.1f} GB. *Broken* is "
        "everything but accepted, repaired with a count, or refused in one printable line that "
        "names the file or the setting: an exception, a crash, too much time or memory, anything "
        "run, anything read or written outside.",
        "",
        "How they ended",
        "",
        f"| kind | inputs | {' | '.join(VERDICTS)} | slowest, seconds |",
        "|---|---:|" + "---:|" * (len(VERDICTS) + 1),
        *(
            f"| {name} | {sum(row):,} | {' | '.join(f'{each:,}' for each in row)} | "
            f"{slowest[name]:.1f} |"
            for name, row in rows.items()
        ),
        "",
        *(f"* broken: `{line}`" for each in found.values() for line in each.broken),
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default="")
    parser.add_argument("--jobs", type=int, default=2, help="kinds that are tried at the same time")
    parser.add_argument("--input", type=int, help="only this one, with its traceback")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--findings", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--trace", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.seed, options.kinds, options.trace)
        return 0
    from fuzz_kinds import KINDS

    kinds = options.kinds.split(",") if options.kinds else list(KINDS)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        if options.input is not None:
            with Opener(Path(home) / "home", options.seed, trace=True) as opener:
                print(opener.run(kinds[0], options.input))
            return 0

        def of(name: str, inputs: int) -> Tally:
            with Opener(Path(home) / name, options.seed) as opener:
                return tally(opener, name, inputs, options.findings)

        wanted = shares(options.inputs, kinds)
        with ThreadPoolExecutor(options.jobs) as pool:
            found = dict(zip(wanted, pool.map(of, wanted, wanted.values()), strict=True))
    if options.findings is not None:
        options.findings.mkdir(parents=True, exist_ok=True)
        listed = sorted(line for each in found.values() for line in each.refusals.items())
        text = "\n".join(f"{count:6} {message}" for message, count in listed)
        (options.findings / "refusals.txt").write_text(text)
    command = f"python benchmarks/fuzz.py --inputs {options.inputs} --seed {options.seed}"
    text = page(found, command, (time.perf_counter() - started) / 60)
    print(text)
    if options.output is not None:
        options.output.write_text(text)
    return 1 if any(each.broken for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
