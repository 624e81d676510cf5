"""Where did the query of a detection look, layer by layer?

python examples/explain.py photo.jpg
"""

import argparse
from pathlib import Path

import detrlab
from detrlab.explain import Samples

parser = argparse.ArgumentParser()
parser.add_argument("picture", type=Path, nargs="?", default=Path(__file__).with_name("street.jpg"))
parser.add_argument("--model", default="deimv2-femto", help="or the file of a run")
parser.add_argument("--output", type=Path, default=Path("runs/examples/explain"))
options = parser.parse_args()

detector = detrlab.load(options.model)
explanation = detector.explain(options.picture)
best = explanation.detections()[0]
print(f"{detector.classes[best.label]} {best.score:.2f} is query {best.query}")

for layer, step in enumerate(explanation.steps(best.query, best.label)):
    look = explanation.look(best.query, layer)
    if isinstance(look, Samples):  # deformable attention: (heads, levels, points)
        strongest = look.locations.flatten(0, 2)[look.weights.flatten().argmax()]
        where = f"{look.weights.numel()} points, the strongest at"
    else:  # dense attention: a map over the whole picture
        weights = look.maps[0].mean(0)
        row, column = divmod(int(weights.argmax()), weights.shape[1])
        strongest = ((column + 0.5) / weights.shape[1], (row + 0.5) / weights.shape[0])
        where = f"{weights.numel()} cells, the strongest at"
    x, y = (float(each) for each in strongest)
    print(f"layer {layer + 1}: score {step.score:.2f}, {where} ({x:.2f}, {y:.2f}) of the picture")

for file in explanation.save(options.output):
    print(file)
