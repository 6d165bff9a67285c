"""k-means with a weight for every number of every point."""

from __future__ import annotations

import torch

# Points per centroid that k-means++ looks at; its time grows with their number times the number of centroids.
_SEEDING_POINTS = 3


def kmeans(
    points: torch.Tensor, weights: torch.Tensor, num_centroids: int, generator: torch.Generator, iterations: int = 12
) -> torch.Tensor:
    """Centroids that minimise ``sum_n min_k sum_d w[n, d] (x[n, d] - c[k, d])^2``.

    Seeded by k-means++ (Arthur and Vassilvitskii 2007) on a random part of the points, then Lloyd's iterations. A
    centroid without points moves to the point that is served worst.

    Args:
        points: float32 ``[N, D]`` with N >= num_centroids.
        weights: ``[N, D]``, not negative.
        num_centroids: K.
        generator: source of all random draws.
        iterations: of Lloyd.

    Returns:
        ``[K, D]``.
    """
    assert len(points) >= num_centroids, "fewer points than centroids"
    centroids = _seeds(points, weights, num_centroids, generator)
    weighted = weights * points
    squares = (weighted * points).sum(dim=1)
    for _ in range(iterations):
        cost, nearest = _distances(weights, weighted, centroids).min(dim=1)
        total = torch.zeros_like(centroids).index_add_(0, nearest, weighted)
        mass = torch.zeros_like(centroids).index_add_(0, nearest, weights)
        centroids = torch.where(mass > 0, total / mass.clamp(min=1e-9), centroids)
        empty = (torch.bincount(nearest, minlength=num_centroids) == 0).nonzero()[:, 0]
        if len(empty):
            centroids[empty] = points[(cost + squares).topk(len(empty)).indices]
    return centroids


def nearest_centroids(points: torch.Tensor, weights: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Index of the centroid with the least weighted squared error.

    Args:
        points: ``[N, D]``.
        weights: ``[N, D]``.
        centroids: ``[K, D]``.

    Returns:
        int64 ``[N]``.
    """
    return _distances(weights, weights * points, centroids).argmin(dim=1)


def _distances(weights: torch.Tensor, weighted: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Weighted squared errors ``[N, K]``, less the part that no centroid changes."""
    return torch.addmm(weights @ centroids.square().T, weighted, centroids.T, alpha=-2.0)


def _seeds(points: torch.Tensor, weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++: each next seed is drawn in proportion to its squared distance from the seeds so far."""
    chosen = torch.randperm(len(points), generator=generator)[: _SEEDING_POINTS * count]
    points, weights = points[chosen], weights[chosen]
    seeds = torch.empty(count, points.shape[1])
    seeds[0] = points[0]
    distance = (weights * (points - seeds[0]).square()).sum(dim=1)
    for number in range(1, count):
        # the constant lets equal points be drawn when there is nothing else left
        index = torch.multinomial(distance.clamp(min=0.0) + 1e-9, 1, generator=generator)
        seeds[number] = points[index[0]]
        distance = torch.minimum(distance, (weights * (points - seeds[number]).square()).sum(dim=1))
    return seeds
