"""Exact and near duplicates among images: perceptual hashes, verified on thumbnails.

The hash is that of pHash: the signs of the lowest 8 x 8 frequencies of a 32 x 32 grey thumbnail,
relative to their median (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash
Functions"). Similar hashes alone are no evidence: digits of one class have them too. A pair of
images is reported if their thumbnails agree as well, which finds 99 % of copies that were
compressed again or resized, and few of those that were cropped.
"""

from collections.abc import Iterator

import numpy as np

SIDE = 32  # of a thumbnail, in pixels; smaller images have too little detail to be compared
MOST_BITS = 5  # of 64 in which the hashes of near duplicates differ
LEAST_CORRELATION = 0.97  # of the thumbnails of near duplicates
# The same if most of either image is a plain background, or it is blurred: other strokes on the
# same background, or other shapes of so few details, correlate highly.
LEAST_ON_PLAIN = 0.995
LEAST_DETAIL = 0.03  # fraction of the variance in frequencies that the hash leaves out
LEAST_STD = 8.0  # levels; a flatter thumbnail, as of a blank page, resembles too many others
_BANDS = MOST_BITS + 1  # hashes that differ in MOST_BITS bits agree in one band at least
_CHUNK = 65_536  # images or pairs at a time


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hash thumbnails, uint8 [n, SIDE, SIDE], to 64 bits: uint64 [n]."""
    hashes = np.empty(len(thumbnails), np.uint64)
    for start in range(0, len(thumbnails), 1024):
        lowest = _lowest_frequencies(thumbnails[start : start + 1024])
        bits = lowest > np.median(lowest[:, 1:], axis=1, keepdims=True)
        packed = np.packbits(bits, axis=1)
        hashes[start : start + 1024] = packed.view(">u8")[:, 0]
    return hashes


def _lowest_frequencies(thumbnails):
    """Compute the lowest 64 coefficients of the orthonormal cosine transform, float32 [n, 64]."""
    angles = np.pi / SIDE * np.outer(np.arange(8), np.arange(SIDE) + 0.5)
    cosines = (np.cos(angles) * np.sqrt(2 / SIDE)).astype(np.float32)
    cosines[0] /= np.sqrt(np.float32(2))
    lowest = cosines @ thumbnails.astype(np.float32) @ cosines.T
    return lowest.reshape(len(thumbnails), 64)


def exact_pairs(digests: np.ndarray) -> np.ndarray:
    """Pair each image with the first one of the same digest: int [m, 2], the first one first."""
    _, firsts, groups = np.unique(digests, return_index=True, return_inverse=True)
    first = firsts[groups]
    rows = np.flatnonzero(first != np.arange(len(digests)))
    return np.stack([first[rows], rows], axis=1)


def near_pairs(thumbnails: np.ndarray) -> np.ndarray:
    """Find the pairs of near duplicates among thumbnails: int [m, 2], sorted."""
    pixels = thumbnails.reshape(len(thumbnails), SIDE * SIDE)
    parts = (pixels[i : i + 1024] for i in range(0, len(pixels), 1024))  # copied as float64
    stds = [np.empty(0), *(part.std(axis=1) for part in parts)]
    rows = np.flatnonzero(np.concatenate(stds) >= LEAST_STD)
    hashes = perceptual_hashes(thumbnails[rows])
    found = [np.empty((0, 2), int)]
    for pairs in _similar_pairs(hashes):
        pairs = rows[pairs]
        plain = _are_plain(pixels[pairs[:, 0]]) | _are_plain(pixels[pairs[:, 1]])
        blurred = _are_blurred(pixels[pairs[:, 0]]) | _are_blurred(pixels[pairs[:, 1]])
        least = np.where(plain | blurred, LEAST_ON_PLAIN, LEAST_CORRELATION)
        found.append(pairs[_correlations(pixels, pairs) >= least])
    return np.unique(np.concatenate(found), axis=0)


def _similar_pairs(hashes) -> Iterator[np.ndarray]:
    """Yield all pairs whose hashes differ in at most MOST_BITS bits, some of them repeatedly."""
    for bits in np.array_split(np.arange(64, dtype=np.uint64), _BANDS):
        mask = np.bitwise_or.reduce(np.left_shift(np.uint64(1), bits))
        order = np.argsort(hashes & mask, kind="stable")
        band = (hashes & mask)[order]
        starts, distance = np.arange(len(band)), 0
        while len(starts):  # images whose band agrees with that of the image `distance` further
            distance += 1
            starts = starts[starts + distance < len(band)]
            starts = starts[band[starts] == band[starts + distance]]
            ones, others = order[starts], order[starts + distance]
            near = np.bitwise_count(hashes[ones] ^ hashes[others]) <= MOST_BITS
            pairs = np.sort(np.stack([ones[near], others[near]], axis=1), axis=1)
            for start in range(0, len(pairs), _CHUNK):
                yield pairs[start : start + _CHUNK]


def _are_plain(pixels):
    """Whether half of the pixels [m, SIDE * SIDE] or more are in one of 16 ranges of levels."""
    ranges = [(pixels // 16 == i).mean(1) for i in range(16)]
    return np.max(ranges, axis=0) >= 0.5


def _are_blurred(pixels):
    """Whether the lowest frequencies have nearly all of the variance of pixels [m, SIDE * SIDE]."""
    lowest = _lowest_frequencies(pixels.reshape(-1, SIDE, SIDE))
    explained = np.sum(lowest[:, 1:].astype(np.float64) ** 2, axis=1)
    return explained >= (1 - LEAST_DETAIL) * SIDE**2 * pixels.astype(np.float64).var(axis=1)


def _correlations(pixels, pairs):
    """Correlate the thumbnails of each pair: float [m]."""
    ones, others = (pixels[pairs[:, i]].astype(np.float32) for i in range(2))
    ones -= ones.mean(1, keepdims=True)
    others -= others.mean(1, keepdims=True)
    scale = np.sqrt(np.einsum("np,np->n", ones, ones) * np.einsum("np,np->n", others, others))
    return np.einsum("np,np->n", ones, others) / np.maximum(scale, 1e-6)
