"""The 24 coins of scikit-image's photograph, outlined without any model."""

import functools

import numpy as np


@functools.cache
def coins():
    """The photograph and its coins.

    Grey levels that are surely ground or surely coin are flooded up the slopes between them
    (watershed), holes are filled, specks left out, and outlines smoothed.

    Returns:
        uint8 image `(303, 384, 3)`, and uint8 masks `(24, 303, 384)`.
    """
    from scipy import ndimage
    from skimage import data, filters, measure, morphology, segmentation

    grey = data.coins()
    markers = np.select([grey < 30, grey > 150], [1, 2])
    flooded = segmentation.watershed(filters.sobel(grey), markers) == 2
    solid = ndimage.binary_opening(ndimage.binary_fill_holes(flooded), morphology.disk(3))
    labels = measure.label(solid)
    masks = [labels == region.label for region in measure.regionprops(labels) if region.area > 400]
    return np.stack([grey] * 3, axis=-1), np.stack(masks).astype("uint8")
