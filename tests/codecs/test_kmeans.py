from __future__ import annotations

import torch

from bagpiper.codecs.kmeans import kmeans, nearest_centroids


def test_separate_groups_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [30.0, 30.0], [-20.0, 5.0]])
    points = centres.repeat(40, 1) + 0.1 * torch.randn(200, 2, generator=generator)
    found = kmeans(points, torch.ones_like(points), 5, generator)
    nearest = torch.cdist(centres, found).min(dim=1)
    assert nearest.values.max() < 0.1 and len(nearest.indices.unique()) == 5


def test_numbers_without_weight_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor([[0.0, 0.0], [5.0, 0.0]]).repeat(50, 1)
    points[:, 1] = 100.0 * torch.randn(100, generator=generator)
    weights = torch.tensor([1.0, 0.0]).expand(100, 2)
    found = kmeans(points, weights, 2, generator)
    assert sorted(found[:, 0].round(decimals=4).tolist()) == [0.0, 5.0]
    assert (nearest_centroids(points, weights, found).view(-1, 2).diff(dim=1) != 0).all()


def test_nearest_is_by_weighted_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    points, centroids = torch.randn(30, 6, generator=generator), torch.randn(9, 6, generator=generator)
    weights = torch.rand(30, 6, generator=generator)
    brute = (weights[:, None] * (points[:, None] - centroids) ** 2).sum(dim=2).argmin(dim=1)
    assert torch.equal(nearest_centroids(points, weights, centroids), brute)


def test_centroid_without_points_moves_to_the_worst_served() -> None:
    """Most points are equal, so seeds coincide; the two others must still get centroids of their own."""
    points = torch.zeros(50, 3)
    points[7], points[31] = 4.0, -9.0
    found = kmeans(points, torch.ones_like(points), 4, torch.Generator().manual_seed(0))
    nearest = torch.cdist(torch.tensor([[0.0] * 3, [4.0] * 3, [-9.0] * 3]), found).min(dim=1).values
    assert nearest.max() < 1e-5
