"""Fine-tune the packaged COCO detector on a data set, and use the result.

python examples/fine_tune.py --data path/to/data --epochs 24 --imgsz 512

Without --data it learns generated pictures of shapes, small and briefly: that takes a minute.
"""

import argparse
from pathlib import Path

import detrlab
from detrlab.data import open_data
from detrlab.recipes import recipe
from detrlab.training.loop import Options, plan, train

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="shapes-easy", help="COCO, YOLO or Pascal VOC")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--imgsz", type=int, default=96)
parser.add_argument("--output", type=Path, default=Path("runs/examples/fine-tune"))
options = parser.parse_args()

settings = recipe("photos").over(options.epochs)
settings = settings.change(
    data=settings.data.resized(options.imgsz).change(data=options.data, workers=0).model_dump()
)
data = open_data(options.data)
config = plan("deimv2-femto", settings, data)
outcome = train(
    config,
    options.output,
    data,
    Options(say=print, on_epoch=lambda row: print(f"epoch {row['epoch']}: AP {row['ap']:.3f}")),
)

detector = detrlab.load(outcome.folder.last)
picture = data.val.picture(0)
found = detector.predict(picture, threshold=detector.threshold)
print(f"{detector}: {len(found)} objects in the first validation image: {', '.join(found.names)}")
