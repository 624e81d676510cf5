"""Export a detector to one ONNX file and use it without PyTorch and without detrlab.

python examples/onnx_numpy.py photo.jpg

``detect`` needs onnxruntime and numpy only (Pillow reads the picture): copy it where you need it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def detect(file: Path, picture: Image.Image, threshold: float = 0.4) -> list[tuple]:
    """(name, score, box) of everything found, best first; boxes are xyxy in pixels."""
    session = onnxruntime.InferenceSession(str(file))
    told = json.loads(session.get_modelmeta().custom_metadata_map["detrlab"])
    if told["resize"] != "stretch":
        raise SystemExit(f"{file} keeps the proportions of pictures: resize them to {told['size']}")
    height, width = told["size"]
    small = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(small).transpose(2, 0, 1)[None]  # (1, 3, H, W) uint8
    sizes = np.array([picture.size], dtype=np.int64)  # (1, 2): width, height
    labels, boxes, scores = session.run(
        ["labels", "boxes", "scores"], {"images": pixels, "orig_target_sizes": sizes}
    )
    return [
        (told["classes"][label], float(score), [round(edge) for edge in box.tolist()])
        for label, box, score in zip(labels[0], boxes[0], scores[0], strict=True)
        if score >= threshold
    ]


if __name__ == "__main__":
    street = Path(__file__).with_name("street.jpg")
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", type=Path, nargs="?", default=street)
    parser.add_argument("--model", default="deimv2-femto", help="or the file of a run, or ONNX")
    parser.add_argument("--output", type=Path, default=Path("runs/examples/onnx"))
    options = parser.parse_args()

    file = Path(options.model)
    if file.suffix != ".onnx":
        from detrlab.cli import main

        if main(["export", options.model, "--output", str(options.output)]):
            raise SystemExit("the exported file was refused")
        (file,) = options.output.glob("*.onnx")
    for name, score, box in detect(file, ImageOps.exif_transpose(Image.open(options.picture))):
        print(f"{name} {score:.2f} at {box}")
