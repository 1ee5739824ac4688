"""Attention rollout by its definition: a sum over paths."""

import itertools

import numpy as np


def path_sum(fused):
    """Sum the products of attention weights over all paths from output to input token, [n, n]."""
    n = fused[0].shape[0]
    layers = [a + np.eye(n) for a in fused]
    layers = [a / a.sum(1)[:, None] for a in layers]
    total = np.zeros((n, n))
    for path in itertools.product(range(n), repeat=len(layers) + 1):
        steps = zip(reversed(layers), itertools.pairwise(path), strict=True)
        total[path[0], path[-1]] += np.prod([layer[step] for layer, step in steps])
    return total
