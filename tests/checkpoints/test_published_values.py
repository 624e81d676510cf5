"""Published weights give published numbers; runs where the files (and the photograph) are."""

import os
from pathlib import Path

import pytest
import torch

from detrlab.checkpoints.published import cached, published, weights_folder
from detrlab.checkpoints.reading import read
from detrlab.structures import ImageBatch

# COCO val2017, 640 x 480, https://cocodataset.org: two cats on a sofa.
PHOTOGRAPH = "000000039769.jpg"
# The first three logits and all but the last number of the boxes, of the first three queries.
VALUES = {
    "detr": (
        [
            [-19.1194, -0.0893, -11.0154],
            [-17.3640, -1.8035, -14.0219],
            [-20.0461, -0.5837, -11.1060],
        ],
        [[0.4433, 0.5302, 0.8852], [0.5494, 0.2517, 0.0529], [0.4998, 0.5360, 0.9955]],
    ),
    "deformable-detr": (
        [[-9.6645, -4.3449, -5.8705], [-9.7035, -3.8504, -5.0724], [-10.5634, -5.3379, -7.5116]],
        [[0.8693, 0.2289, 0.2492], [0.3150, 0.5489, 0.5845], [0.5563, 0.7580, 0.8518]],
    ),
    "deformable-detr-single-scale": (
        [[-9.9051, -4.2541, -6.4852], [-9.6947, -4.0854, -6.8033], [-10.0665, -5.8470, -7.7003]],
        [[0.7292, 0.4991, 0.5532], [0.7959, 0.2426, 0.4236], [0.7582, 0.3518, 0.4451]],
    ),
    "deformable-detr-single-scale-dc5": (
        [[-8.9652, -4.1074, -5.6635], [-9.0596, -4.9447, -6.6075], [-10.1178, -4.5275, -6.2671]],
        [[0.7665, 0.4130, 0.4769], [0.8364, 0.1841, 0.3391], [0.6261, 0.3895, 0.7978]],
    ),
    "deformable-detr-refine": (
        [[-8.8895, -5.4187, -6.8153], [-8.4706, -6.1668, -7.6184], [-9.0042, -5.5359, -6.9141]],
        [[0.7828, 0.2208, 0.4323], [0.0892, 0.5996, 0.1319], [0.5524, 0.6389, 0.8914]],
    ),
    "deformable-detr-two-stage": (
        [[-6.7108, -4.3213, -6.3777], [-8.9014, -6.1799, -6.7240], [-6.9315, -4.4735, -6.2298]],
        [[0.2583, 0.5499, 0.4683], [0.7652, 0.9068, 0.4882], [0.5490, 0.2763, 0.0564]],
    ),
}


def needed(preset):
    """The file of published weights and the photograph; skips, saying what is missing."""
    entry = published(preset)
    path = cached(entry)
    if path is None:
        place = weights_folder() / entry.file
        pytest.skip(f"the published weights are not here: put {entry.url} at {place}")
    photograph = Path(os.environ.get("DETRLAB_COCO_PHOTO", weights_folder() / PHOTOGRAPH))
    if not photograph.is_file():
        pytest.skip(f"the photograph {PHOTOGRAPH} of COCO val2017 is not at {photograph}")
    return entry, path, photograph


@pytest.mark.slow
@pytest.mark.usefixtures("plain_ops")
@pytest.mark.parametrize("preset", VALUES)
def test_published_weights_give_published_numbers(preset):
    from detrlab.data import eval_transform
    from detrlab.data.images import decode

    entry, path, photograph = needed(preset)
    checkpoint = read(path, told=entry.config.to_dict()).checkpoint
    with photograph.open("rb") as file:
        pixels = eval_transform(checkpoint.preprocessing)(decode(file, str(photograph)))[None]
    assert pixels.shape == (1, 3, 800, 1066)
    with torch.no_grad():
        padding = torch.zeros(1, 800, 1066, dtype=torch.bool)
        found = checkpoint.build().eval()(ImageBatch(pixels, padding)).final
    logits, boxes = VALUES[preset]
    # Published with 2e-4, for an image that another library had resized.
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.logits[0, :3, :3], torch.tensor(logits), **close)
    torch.testing.assert_close(found.boxes[0, :3, :3], torch.tensor(boxes), **close)
