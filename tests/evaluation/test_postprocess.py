import pytest
import torch

from detrlab.evaluation.postprocess import decode, detections
from detrlab.scoring import SigmoidScoring, SoftmaxScoring
from detrlab.structures import Predictions


def predictions(num_logits, queries=30, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, queries, num_logits, generator=generator) * 3
    return Predictions(logits, torch.rand(batch, queries, 4, generator=generator))


SIZES = ((480, 640), (100, 333))


def naive(predictions, sizes, rows):
    """Spec in words, one image at a time: ``rows(logits)`` gives (score, label, query)."""
    for logits, boxes, (height, width) in zip(*predictions[:2], sizes, strict=True):
        found = sorted(rows(logits.double()), reverse=True)[:100]
        yield [
            (
                score,
                label,
                query,
                (boxes[query][0] - boxes[query][2] / 2) * width,
                (boxes[query][1] - boxes[query][3] / 2) * height,
                (boxes[query][0] + boxes[query][2] / 2) * width,
                (boxes[query][1] + boxes[query][3] / 2) * height,
            )
            for score, label, query in found
        ]


def softmax_rows(logits):
    for query, row in enumerate(logits.softmax(-1)):
        yield float(row[:-1].max()), int(row[:-1].argmax()), query


def sigmoid_rows(logits):
    for query, row in enumerate(logits.sigmoid()):
        for label, score in enumerate(row):
            yield float(score), label, query


@pytest.mark.parametrize(
    ("scoring", "num_logits", "rows", "count"),
    [(SoftmaxScoring(), 6, softmax_rows, 30), (SigmoidScoring(), 5, sigmoid_rows, 100)],
)
def test_decoding_follows_the_originals_in_words(scoring, num_logits, rows, count):
    given = predictions(num_logits)
    decoded = decode(given, scoring, SIZES)
    assert decoded.boxes.shape == (2, count, 4)
    for image, expected in enumerate(naive(given, SIZES, rows)):
        for k, (score, label, query, *box) in enumerate(expected):
            assert decoded.scores[image, k] == pytest.approx(score, rel=1e-5)
            assert (decoded.labels[image, k], decoded.queries[image, k]) == (label, query)
            torch.testing.assert_close(decoded.boxes[image, k], torch.stack(box))


def test_few_candidates_are_no_error_and_boxes_over_the_edge_stay():
    decoded = decode(predictions(2, queries=3), SigmoidScoring(), SIZES)
    assert decoded.scores.shape == (2, 6)
    boxes = torch.tensor([[[0.0, 0.5, 0.4, 1.2]]])
    decoded = decode(Predictions(torch.zeros(1, 1, 1), boxes), SigmoidScoring(), SIZES[:1])
    torch.testing.assert_close(decoded.boxes[0, 0], torch.tensor([-128.0, -48.0, 128.0, 528.0]))


def test_half_precision_is_read_in_single():
    given = predictions(5)
    halves = Predictions(given.logits.bfloat16(), given.boxes.bfloat16())
    decoded = decode(halves, SigmoidScoring(), SIZES)
    again = decode(Predictions(*(p.float() for p in halves[:2])), SigmoidScoring(), SIZES)
    assert decoded.boxes.dtype == torch.float32
    torch.testing.assert_close(decoded, again, rtol=0, atol=0)


def test_detections_carry_names_and_ids():
    decoded = decode(predictions(3), SoftmaxScoring(), SIZES, limit=4)
    found = detections(decoded, 1, ("mask", "glove"), (7, 3), SIZES[1], image_id="a.jpg")
    assert len(found) == 4
    assert [row["category_id"] for row in found.to_coco()] == [
        {"mask": 7, "glove": 3}[name] for name in found.names
    ]
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
