"""Masks for tests: every kind that has broken a mask tool before, in odd sizes."""

import numpy as np

SIZES = [(1, 1), (1, 9), (11, 1), (2, 2), (7, 9), (13, 64), (64, 13), (65, 8), (33, 127), (40, 128)]


def mask_stacks(count, seed=0):
    """Yields `count` stacks `(M, h, w)`: noise, blobs, stripes, full, empty, single pixels."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        h, w = SIZES[number % len(SIZES)] if number % 3 else rng.integers(1, 50, 2)
        noise = rng.random((int(rng.integers(1, 5)), h, w))
        kind = number % 6
        if kind == 0:
            yield noise < rng.choice([0, 1])  # empty or full
        elif kind == 1:
            yield noise < rng.choice([0.03, 0.5, 0.97])
        elif kind == 2:
            yield blobs(noise)
        elif kind == 3:
            yield np.maximum.accumulate(noise < 0.1, axis=rng.integers(1, 3))  # to the edge
        elif kind == 4:
            single = np.zeros(noise.shape, bool)
            single[:, rng.integers(h), rng.integers(w)] = True
            yield single
        else:
            yield np.indices((h, w)).sum(axis=0)[None] % 2 == 0  # corners touch, edges do not


def blobs(noise, passes=4):
    """Smooth shapes with holes and islands."""
    smooth = noise - noise.mean(axis=(1, 2), keepdims=True)
    for _ in range(passes):
        padded = np.pad(smooth, ((0, 0), (1, 1), (1, 1)), mode="edge")
        h, w = smooth.shape[1:]
        smooth = sum(padded[:, y : y + h, x : x + w] for y in range(3) for x in range(3)) / 9
    return smooth > 0
