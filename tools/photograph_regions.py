"""Regions that stand out in a photograph: objects and their parts, as far as pixels alone tell.

Boundaries are where small neighbourhoods differ more than they vary. The watershed's basins between
them are joined, weakest boundary first, and a region counts whose outline is strong and closed.
"""

import heapq
import math

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import label
from skimage.morphology import h_minima
from skimage.segmentation import watershed

SMALLEST = 300  # pixels of the smallest region
LARGEST = 0.75  # of the photograph, the largest
MOST = 40  # regions of a photograph
_STRONG = 0.6  # a boundary that is as clear as any
_WEAK = 0.35  # a difference of neighbours that may be none


def boundaries(image):
    """How strong a boundary runs through each pixel, float32 `(H0, W0)`, 0..1.

    On both sides of a line through the pixel, at some distance, mean colours and texture are
    compared, as multiples of their deviation there: a step in a smooth wall counts more than one
    in grass. The strongest of eight directions counts, at three scales.
    """
    lab = rgb2lab(image).astype("float32")
    light = ndimage.gaussian_filter(lab[..., 0], 0.7)
    texture = 3 * np.minimum(np.hypot(*np.gradient(light)), 12)
    features = [lab[..., 0], 1.5 * lab[..., 1], 1.5 * lab[..., 2], texture]
    total = np.zeros(lab.shape[:2], "float32")
    for scale, noise, share in ((1.0, 9.0, 0.2), (2.0, 7.0, 0.3), (4.0, 6.0, 0.5)):
        means = [ndimage.gaussian_filter(f, scale) for f in features]
        squares = [ndimage.gaussian_filter(f * f, scale) for f in features]
        spreads = [np.maximum(s - m * m, 0) for s, m in zip(squares, means, strict=True)]
        strongest = np.zeros_like(total)
        for angle in np.arange(0, np.pi, np.pi / 8):
            step = np.rint(1.6 * scale * np.array([np.sin(angle), np.cos(angle)])).astype(int)
            strength = 0
            for mean, spread in zip(means, spreads, strict=True):
                noisy = noise**2 + _moved(spread, step) + _moved(spread, -step)
                strength = strength + np.square(_moved(mean, step) - _moved(mean, -step)) / noisy
            strongest = np.maximum(strongest, strength)
        total += share * np.sqrt(strongest)
    total *= total
    return np.minimum(total / (total + 1.5) / _STRONG, 1.0)


def _moved(values, step):
    """`values` moved by whole pixels, repeated at the borders."""
    (y, x), (h, w) = (int(n) for n in step), values.shape
    reach = max(abs(y), abs(x), 1)
    return np.pad(values, reach, mode="edge")[reach + y :, reach + x :][:h, :w]


def regions(image, most=MOST):
    """What stands out in a photograph, uint8 masks `(M, H0, W0)`, the clearest first."""
    strength = boundaries(image)
    smooth = ndimage.gaussian_filter(strength, 0.8)
    basins = watershed(smooth, label(h_minima(smooth, 0.025))) - 1
    lab = rgb2lab(image).astype("float32")
    low = np.stack([ndimage.zoom(c, 0.5, order=1) for c in np.moveaxis(lab, -1, 0)])
    count, found = int(basins.max()) + 1, []
    boxes = ndimage.find_objects(basins + 1)

    def add(mask, window):
        mask = _rounded(mask)
        clear = None if mask is None else _clear(mask, strength[window], low, window)
        if clear is not None:
            found.append((clear, len(found), mask, window))
        return clear is not None

    trees = (_Tree(basins, strength, lab, colourful) for colourful in (False, True))
    different = {frozenset(leaves): leaves for tree in trees for leaves in tree.lasting()}
    for leaves in different.values():
        window = _around(*(boxes[leaf] for leaf in leaves))
        inside = np.isin(np.arange(count), leaves)[basins[window]]
        if add(inside, window) and np.count_nonzero(inside) > 0.2 * basins.size:
            # What a ground leaves open is often one thing, of whatever colours.
            rest = np.ones(basins.shape, bool)
            rest[window] = ~found[-1][2]
            things = label(ndimage.binary_opening(rest, iterations=2), connectivity=1)
            for number, box in enumerate(ndimage.find_objects(things)):
                window = _around(box)
                add(things[window] == number + 1, window)
    kept = []
    for _, _, mask, window in sorted(found, reverse=True, key=lambda one: one[:2]):
        whole = np.zeros(basins.shape, bool)
        whole[window] = mask
        if len(kept) < most and all(_iou(whole, other) < 0.75 for other in kept):
            kept.append(whole)
    return np.stack(kept).astype("uint8") if kept else np.zeros((0, *basins.shape), "uint8")


def _around(*boxes):
    """The window of pixels around some boxes; its first pixel is one of the image at half size."""
    return tuple(
        slice(max(min(s.start for s in axis) // 2 * 2 - 16, 0), max(s.stop for s in axis) + 16)
        for axis in zip(*boxes, strict=True)
    )


def _clear(mask, strength, low, window):
    """How much of an object a region is, by its outline and its form; None if it is none.

    Along its outline, what lies just inside is compared with what lies just outside, as multiples
    of how much both vary: colours of the whole image `low`, at half its size.
    """
    area = np.count_nonzero(mask)
    half = mask[::2, ::2].astype("float32")
    colours = low[
        (
            slice(None),
            *(
                slice(s.start // 2, s.start // 2 + n)
                for s, n in zip(window, half.shape, strict=True)
            ),
        )
    ]
    half = half[: colours.shape[1], : colours.shape[2]]
    outline = (half > 0) & ~ndimage.binary_erosion(half > 0, border_value=1)
    sides = []
    for side in (half, 1 - half):
        weight = ndimage.gaussian_filter(side, 2.5)[outline] + 1e-3
        means = [ndimage.gaussian_filter(c * side, 2.5)[outline] / weight for c in colours]
        square = ndimage.gaussian_filter(np.square(colours).sum(axis=0) * side, 2.5)[outline]
        means = np.stack(means)
        sides.append((means, np.maximum(square / weight - np.square(means).sum(axis=0), 0)))
    (inner, spread), (outer, spreads) = sides
    gap = np.square(inner - outer).sum(axis=0)
    contrast = gap / (gap + 60 + 0.7 * (spread + spreads))
    weak = np.mean(contrast < 0.4)
    if weak > 0.16:
        return None
    y, x = np.nonzero(outline)
    filled = np.count_nonzero(half) / ((np.ptp(y) + 1) * (np.ptp(x) + 1))
    inside = strength[ndimage.binary_erosion(mask, iterations=4)]
    busy = inside.mean() if inside.size else 1.0
    size = np.log(area / SMALLEST)
    return contrast.mean() - 1.5 * weak - 0.3 * busy + 0.5 * filled + 0.08 * size


class _Tree:
    """Basins joined two by two, the most alike first: by their boundary, or by colour, too."""

    def __init__(self, basins, strength, lab, colourful):
        self.colourful = colourful
        flat, count = basins.ravel(), int(basins.max()) + 1
        self.total = flat.size
        self.areas = np.bincount(flat, minlength=count).astype(float).tolist()
        channels = [*np.moveaxis(lab, -1, 0), np.square(lab).sum(axis=-1), strength]
        sums = [np.bincount(flat, values.ravel(), count) for values in channels]
        means = np.stack(sums, axis=1) / np.array(self.areas)[:, None]
        self.colours = list(map(tuple, means[:, :4].tolist()))  # and the mean square
        self.inside = means[:, 4].tolist()  # how strong boundaries are in it
        self.leaves = [[number] for number in range(count)]
        self.edges = [{} for _ in range(count)]  # to neighbours: sums of strengths and of pixels
        for one, other, *sums in _borders(basins, strength):
            self.edges[one][other] = self.edges[other][one] = tuple(sums)
        self.outlines = {}  # of what was joined: mean difference from around, how much is weak
        self._join()

    def _difference(self, one, other):
        """Of two neighbours, 0..1."""
        total, length = self.edges[one][other]
        l1, a1, b1, square = self.colours[one]
        l2, a2, b2, squares = self.colours[other]
        gap = (l1 - l2) ** 2 + (a1 - a2) ** 2 + (b1 - b2) ** 2
        if not self.colourful:
            return 0.7 * total / length + 0.3 * gap / (gap + 600)
        spread = square - l1 * l1 - a1 * a1 - b1 * b1 + squares - l2 * l2 - a2 * a2 - b2 * b2
        return math.sqrt(total / length * gap / (gap + 100 + 0.7 * max(spread, 0.0)))

    def _cost(self, one, other):
        smaller = min(self.areas[one], self.areas[other]) / self.total
        return self._difference(one, other) * min(1.0, (smaller / 0.02) ** 0.2)

    def _join(self):
        pairs = [(a, b) for a, edges in enumerate(self.edges) for b in edges if a < b]
        queue = [(self._cost(a, b), a, b) for a, b in pairs]
        heapq.heapify(queue)
        while queue:
            _, a, b = heapq.heappop(queue)
            if a in self.outlines or b in self.outlines:
                continue
            for old in (a, b):
                if self.areas[old] >= SMALLEST:
                    lengths = [sums[1] for sums in self.edges[old].values()]
                    steps = np.array([self._difference(old, other) for other in self.edges[old]])
                    lengths = np.array(lengths) / np.sum(lengths)
                    self.outlines[old] = steps @ lengths, (steps < _WEAK) @ lengths
                else:
                    self.outlines[old] = 0.0, 1.0
            new, step, edges = len(self.areas), self._difference(a, b), {}
            for old in (a, b):
                for other, sums in self.edges[old].items():
                    if other not in (a, b):
                        before = edges.get(other, (0.0, 0))
                        edges[other] = (before[0] + sums[0], before[1] + sums[1])
                        del self.edges[other][old]
            areas = self.areas[a], self.areas[b]
            area = sum(areas)
            self.areas.append(area)
            pairs = zip(self.colours[a], self.colours[b], strict=True)
            self.colours.append(tuple((u * areas[0] + v * areas[1]) / area for u, v in pairs))
            self.leaves.append(self.leaves[a] + self.leaves[b])
            before = (self.inside[a] * areas[0] + self.inside[b] * areas[1]) / area
            share = min(1.0, 4 * min(areas) / area)  # a speck in a region says little about it
            self.inside.append(max(before, share * step + (1 - share) * before))
            self.edges.append(edges)
            for other, sums in edges.items():
                self.edges[other][new] = sums
                heapq.heappush(queue, (self._cost(new, other), new, other))

    def lasting(self, most=60):
        """The basins of each region that may be worth a mask, the clearest region first."""
        found = []
        for region, (outline, weak) in self.outlines.items():
            area = self.areas[region]
            if weak < 0.3 and SMALLEST <= area <= LARGEST * self.total:
                clear = outline - 0.5 * self.inside[region] + 0.1 * np.log(area / SMALLEST)
                found.append((clear, region))
        return [self.leaves[region] for _, region in sorted(found, reverse=True)[:most]]


def _borders(basins, strength):
    """Pairs of basins that touch: both, the sum of strengths along their border, its length."""
    count = int(basins.max()) + 1
    keys, values = [], []
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        a, b = basins[one], basins[other]
        apart = a != b
        keys.append(np.minimum(a, b)[apart].astype("int64") * count + np.maximum(a, b)[apart])
        values.append(np.maximum(strength[one], strength[other])[apart])
    keys, where = np.unique(np.concatenate(keys), return_inverse=True)
    sums = np.bincount(where, np.concatenate(values)), np.bincount(where)
    return zip(*(v.tolist() for v in (keys // count, keys % count, *sums)), strict=True)


def _rounded(mask):
    """A region without frays and small holes, or None if too little or a net is left."""
    mask = ndimage.uniform_filter(mask.astype("float32"), 5) > 0.5
    holes, count = label(~mask, return_num=True, connectivity=1)
    small = np.flatnonzero(np.bincount(holes.ravel(), minlength=count + 1) < 0.02 * mask.sum())
    mask = mask | np.isin(holes, small[small > 0])
    pieces = label(mask, connectivity=1)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    mask = pieces == sizes.argmax()
    area = np.count_nonzero(mask)
    if not SMALLEST <= area <= LARGEST * mask.size:
        return None
    inner = np.count_nonzero(ndimage.binary_erosion(mask, iterations=3, border_value=1))
    filled = np.count_nonzero(ndimage.binary_fill_holes(mask))
    return mask if inner > 0.35 * area and area > 0.6 * filled else None


def _iou(one, other):
    both = np.count_nonzero(one & other)
    return both / (np.count_nonzero(one) + np.count_nonzero(other) - both)
