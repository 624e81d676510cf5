"""What queries predict over a data set."""

import pytest
import torch

from detrlab.explain.query_use import QueryUse, explained_share


def share_of(centers):
    boxes = torch.cat([centers, torch.full_like(centers, 0.1)], dim=-1)
    return explained_share(QueryUse(boxes, torch.ones(boxes.shape[:2])))


def test_the_share_is_that_of_an_analysis_of_variance():
    places = torch.rand(6, 4, 2, generator=torch.Generator().manual_seed(1)).double()
    mean = places.mean((0, 1))
    whole = sum(float(((p - mean) ** 2).sum()) for image in places for p in image)
    between = sum(6 * float(((places[:, q].mean(0) - mean) ** 2).sum()) for q in range(4))
    assert share_of(places) == pytest.approx(between / whole)
    # Queries that keep to their place explain all of it, queries that go anywhere none.
    assert share_of(places[:1].expand(50, -1, -1)) == pytest.approx(1.0)
    anywhere = torch.rand(400, 20, 2, generator=torch.Generator().manual_seed(0))
    assert share_of(anywhere) < 0.01
