"""Find objects in a picture and draw them.

python examples/predict.py photo.jpg
"""

import argparse
from pathlib import Path

import detrlab

parser = argparse.ArgumentParser()
parser.add_argument("picture", type=Path, nargs="?", default=Path(__file__).with_name("street.jpg"))
parser.add_argument("--model", default="deimv2-femto", help="or the file of a run")
parser.add_argument("--output", type=Path, default=Path("runs/examples/predict"))
options = parser.parse_args()

detector = detrlab.load(options.model)
found = detector.predict(options.picture, threshold=0.4)
for name, score, box in zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True):
    x1, y1, x2, y2 = (round(edge) for edge in box)
    print(f"{name} {score:.2f}: from ({x1}, {y1}) to ({x2}, {y2})")

options.output.mkdir(parents=True, exist_ok=True)
drawn = options.output / f"{options.picture.stem}.jpg"
found.save(drawn)
print(drawn)
