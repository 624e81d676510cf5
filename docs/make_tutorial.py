"""Run the commands of docs/tutorial.md and make its pictures.

    python docs/make_tutorial.py BCCD [--work FOLDER]

BCCD is the data set as published (Pascal VOC). A hundred of its images become ``my-photos``, the
others ``later``. Each output is printed and kept in FOLDER; a command is not run again if neither
it nor any command before it has changed.
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

COMMANDS = re.compile(r"```\n(detrlab .*?)```\n", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bccd", type=Path)
    parser.add_argument("--work", type=Path, help="working folder; a new one by default")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="tutorial-"))
    lay_out(options.bccd.resolve(), work)
    history = hashlib.sha256()
    for command in COMMANDS.findall(PAGE.read_text(encoding="utf-8")):
        history.update(command.encode())
        print(f"$ {command}{output_of(command, work, history.hexdigest()[:12])}")
    pictures(work)
    print(f"working folder: {work}")


def lay_out(bccd: Path, work: Path) -> None:
    """Write ``my-photos`` and ``later``: images with their XML files beside them."""
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
    """The output of a command, from an earlier run if nothing has changed since."""
    kept = work / "outputs" / f"{key}.txt"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
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


def pictures(work: Path) -> None:
    """Save the pictures of the page at a small size."""
    (predicted,) = (work / "runs" / "predict").glob("*.jpg")
    save(Image.open(predicted), "tutorial-predict")
    hard = Image.open(work / "runs" / "eval" / "hard_images.jpg")
    width, height = hard.size
    # A legend above four rows of three images: take the first two images of two rows.
    save(hard.crop((0, 0, round(width * 0.664), round(height * 0.505))), "tutorial-hard")
    objects = Image.open(work / "runs" / "explain" / "objects.png")
    width, height = objects.size
    # The image and its legend, without the title above and the bars on the right, which begin
    # after the first blank column in the right part.
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
