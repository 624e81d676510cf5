"""What queries say over a data set."""

import pytest
import torch
from scenes_explained import make_images, make_network

from detrlab.explain.queries import QueryUse, explained_share, query_use, spread


def use_of(centers):
    boxes = torch.cat([centers, torch.full_like(centers, 0.1)], dim=-1)
    return QueryUse(boxes, torch.ones(boxes.shape[:2]), torch.zeros(boxes.shape[:2]))


def test_what_is_collected_is_what_the_network_says():
    network, scoring = make_network("detr")
    images = make_images()
    use = query_use(network, scoring, [images, images, images], limit=3)
    assert use.boxes.shape == (3, 24, 4)
    with torch.no_grad():
        final = network(images).final
    assert torch.equal(use.boxes[1], final.boxes[1])
    assert torch.equal(use.boxes[2], final.boxes[0])
    probabilities = final.logits.softmax(-1)[..., :-1]
    torch.testing.assert_close(use.scores[:2], probabilities.amax(-1))
    assert torch.equal(use.labels[:2], probabilities.argmax(-1))


def test_queries_that_keep_to_their_place_explain_everything():
    places = torch.rand(1, 20, 2, generator=torch.Generator().manual_seed(0))
    assert explained_share(use_of(places.expand(50, -1, -1))) == pytest.approx(1.0)


def test_queries_that_go_anywhere_explain_nothing():
    places = torch.rand(400, 20, 2, generator=torch.Generator().manual_seed(0))
    assert explained_share(use_of(places)) < 0.01


def test_the_share_is_that_of_an_analysis_of_variance():
    places = torch.rand(6, 4, 2, generator=torch.Generator().manual_seed(1)).double()
    mean = places.mean((0, 1))
    whole = sum(float(((p - mean) ** 2).sum()) for image in places for p in image)
    between = sum(6 * float(((places[:, q].mean(0) - mean) ** 2).sum()) for q in range(4))
    assert explained_share(use_of(places)) == pytest.approx(between / whole)


def test_spread_is_the_distance_from_the_mean_place():
    centers = torch.tensor([[[0.2, 0.5]], [[0.4, 0.5]]])
    assert spread(use_of(centers)).tolist() == pytest.approx([0.1])
