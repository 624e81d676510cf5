"""Goes through docs/tutorial.md as a reader would and puts down what came back.

    python docs/make_tutorial.py BCCD [--work FOLDER]

Every block of commands that a block marked ``text`` follows is run, and that block gets its
output. BCCD is the data set as published (Pascal VOC); a hundred of its photographs become
``my-photos``, the others ``later``. A command that did not change since the last time, nor
any before it, is not run again where the same work folder is given.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

HERE = Path(__file__).resolve().parent
PAGE, PICTURES = HERE / "tutorial.md", HERE / "pictures"
PHOTOGRAPHS = 100
WIDTH = 640
FIRST, LAST = 10, 14
"""Lines of a long output that are shown."""

STEP = re.compile(r"```\n(?P<command>detrlab .*?)```\n\n```text\n(?P<output>.*?)```\n", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--work", type=Path, help="where to work; a new folder by default")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="tutorial-"))
    lay_out(options.bccd.resolve(), work)
    text = PAGE.read_text(encoding="utf-8")
    history = hashlib.sha256()

    def again(step: re.Match[str]) -> str:
        command = step["command"]
        history.update(command.encode())
        output = output_of(command, work, history.hexdigest()[:12])
        return f"```\n{command}```\n\n```text\n{shown(output)}```\n"

    PAGE.write_text(STEP.sub(again, text), encoding="utf-8")
    pictures(work)
    print(f"{PAGE} is written; worked in {work}")


def lay_out(bccd: Path, work: Path) -> None:
    """``my-photos`` and ``later``: photographs with their xml beside them."""
    stems = sorted(path.stem for path in (bccd / "Annotations").glob("*.xml"))
    random.Random(0).shuffle(stems)
    for name, part in (("my-photos", stems[:PHOTOGRAPHS]), ("later", stems[PHOTOGRAPHS:])):
        folder = work / name
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        for stem in part:
            shutil.copy(bccd / "Annotations" / f"{stem}.xml", folder)
            shutil.copy(bccd / "JPEGImages" / f"{stem}.jpg", folder)


def output_of(command: str, work: Path, key: str) -> str:
    """What a command says, from the last time if nothing has changed since."""
    kept = work / "outputs" / f"{key}.txt"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    print(command, flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=work,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode not in (0, 1):  # 1: check has found errors
        raise SystemExit(f"{command}{done.stdout}exit code {done.returncode}")
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(done.stdout, encoding="utf-8")
    return done.stdout


def shown(output: str) -> str:
    """The output, the middle of a long one left out."""
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    if len(lines) > FIRST + LAST + 3:
        lines = [*lines[:FIRST], "...", *lines[-LAST:]]
    return "\n".join(lines) + "\n"


def pictures(work: Path) -> None:
    """The pictures of the page, small."""
    (predicted,) = (work / "runs" / "predict").glob("*.jpg")
    save(Image.open(predicted), "tutorial-predict")
    hard = Image.open(work / "runs" / "eval" / "hard_images.jpg")
    width, height = hard.size
    # Three photographs in a row, four rows, under the legend: the first two of two rows.
    save(hard.crop((0, 0, round(width * 0.664), round(height * 0.505))), "tutorial-hard")
    objects = Image.open(work / "runs" / "explain" / "objects.png")
    width, height = objects.size
    # The photograph and its legend, without the title above and the bars beside them: those
    # begin behind the first blank column right of the photograph's own left half.
    below = objects.convert("RGB").crop((0, round(height * 0.06), width, height))
    blank = (np.asarray(below) == 255).all(axis=(0, 2))
    blank[: width // 4] = False
    left = below.crop((0, 0, int(blank.argmax()), below.height))
    inked = ImageChops.difference(left, Image.new("RGB", left.size, "white")).getbbox()
    save(left.crop(inked), "tutorial-explain")


def save(image: Image.Image, name: str) -> None:
    small = image.convert("RGB")
    small.thumbnail((WIDTH, WIDTH))
    small.save(PICTURES / f"{name}.jpg", quality=82)


if __name__ == "__main__":
    main()
