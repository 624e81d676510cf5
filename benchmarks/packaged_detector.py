"""Put published COCO weights of a small detector into the package.

    python benchmarks/packaged_detector.py FILE.safetensors --model deimv2-femto

FILE holds DEIMv2's weights in the authors' training layout, with the statistics of the batch
norms (docs/weights.md says where they come from). Writes
``src/detrlab/assets/MODEL-coco.safetensors``.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file

from detrlab.checkpoints import coco, native, official
from detrlab.checkpoints.rules import translate_strictly
from detrlab.checkpoints.weights import ASSETS
from detrlab.presets import build_network, model_config

SOURCE = {
    "weights": "DEIMv2 by Intellindust AI Lab, trained on COCO 2017",
    "repository": "https://github.com/Intellindust-AI-Lab/DEIMv2",
    "licence": "Apache-2.0",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--model", default="deimv2-femto")
    options = parser.parse_args()
    ids, classes = zip(*sorted(coco.BY_ID.items()), strict=True)
    config = model_config(options.model, len(classes))
    network = build_network(config)
    layout = official.layout(config)
    state = network.state_dict()
    state |= translate_strictly(load_file(options.file), layout, state)
    network.load_state_dict(state)  # also casts
    path = native.save(
        ASSETS / f"{options.model}-coco",
        network,
        config,
        classes,
        ids,
        config.preprocessing(),
        provenance=SOURCE | {"file": options.file.name},
    )
    print(f"wrote {path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
