"""Photographs with masks that nobody drew, which `sam_tiny_demo` is trained on beside drawn scenes.

    python -m tools.demo_photographs PHOTOGRAPHS PREPARED [--pictures FOLDER]

A mask is a region of a hierarchical segmentation: boundaries are where small neighbourhoods differ
more than they vary, the watershed's basins between them are joined weakest boundary first, and a
region counts that lasts: its outline is strong, and what it was joined of is alike. Pictures with
a transparent ground are cut-outs, whose masks are exact; they are pasted over photographs, with
shadows. Regions are computed once, a few seconds for a picture, and kept in PREPARED.

PHOTOGRAPHS is a folder with pictures, at any depth; none of them is in the repository. It was
tried with these, from Debian 12, their licences in each package's copyright file:

    gcompris-qt-data            225 photographs and paintings, WebP inside its *.rcc; public domain,
                                CC0, CC BY, CC BY-SA
    tuxpaint-stamps-default     406 cut-outs, those outside its folders of cartoons; GPL-2
    mate-backgrounds, palapeli-data, plasma-workspace-wallpapers, lomiri-wallpapers-16.04,
    gnome-backgrounds           42 photographs; GPL-2+, CC0, GFDL, CC BY, CC BY-SA
    opencv-doc                  23 photographs; BSD-3-Clause, Apache-2.0

with the `stereo_motorcycle` of scikit-image's wheel. Those of it that stay the test are not among
them (coins, chelsea, astronaut, coffee, rocket). Of the masks that it finds, most would be called
objects or parts, the others pieces of grounds with a clear outline.
"""

import argparse
import functools
import heapq
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import label
from skimage.morphology import h_minima
from skimage.segmentation import watershed

from keras_sam.files import whole_file

SIDE = 512  # the longest of a scene, pixels
SMALLEST = 300  # pixels of the smallest object that is asked for
LARGEST = 0.75  # of the scene, the largest
PREPARED = 400  # the longest side that regions are computed at
MOST = 40  # regions of a photograph
_STRONG = 0.6  # a boundary that is as clear as any
_WEAK = 0.35  # a difference of neighbours that may be none
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Photographs:
    """Scenes of prepared photographs and cut-outs.

    Args:
        folder: what `prepare` wrote.
    """

    def __init__(self, folder):
        files = sorted(Path(folder).glob("*.npz"))
        self._photographs = [path for path in files if path.name.startswith("photograph")]
        self._cutouts = [path for path in files if path.name.startswith("cutout")]
        if not self._photographs or not self._cutouts:
            raise SystemExit(f"no prepared photographs and cut-outs in {folder}")

    def scene(self, seed):
        """One scene.

        Args:
            seed: int, or sequence of ints.

        Returns:
            uint8 image `(H0, W0, 3)`, sides up to `SIDE`, and uint8 masks `(M, H0, W0)`.
        """
        rng = np.random.default_rng(seed)
        while True:
            image, masks = self._ground(rng)
            if rng.random() < 0.55:
                image, masks = self._pasted(rng, image, masks)
            sizes = masks.sum(axis=(1, 2))
            masks = masks[(sizes >= SMALLEST) & (sizes <= LARGEST * masks[0].size)]
            if len(masks) >= 3:
                return _developed(rng, image), masks

    def _ground(self, rng):
        """A piece of a photograph, turned to either side, and its masks."""
        image, masks = _opened(self._photographs[rng.integers(len(self._photographs))])
        size = np.array(image.shape[:2])
        wanted = np.exp(rng.uniform(np.log(0.45), 0.0)) if rng.random() < 0.7 else 1.0
        part = np.maximum(size * np.minimum(wanted * rng.uniform(0.85, 1.18, 2), 1.0), 64).astype(
            int
        )
        part = np.minimum(part, size)
        top, left = rng.integers(0, size - part + 1)
        window = np.s_[top : top + part[0], left : left + part[1]]
        image, masks = image[window], masks[(slice(None), *window)]
        if rng.random() < 0.5:
            image, masks = image[:, ::-1], masks[:, :, ::-1]
        whole = tuple(int(n) for n in np.rint(part * SIDE / part.max()))[::-1]
        image = np.asarray(Image.fromarray(image).resize(whole, Image.Resampling.BICUBIC))
        masks = [Image.fromarray(m).resize(whole, Image.Resampling.NEAREST) for m in masks]
        return image.astype("float32"), np.stack([np.asarray(mask) for mask in masks])

    def _pasted(self, rng, image, masks):
        """Cut-outs over a scene, with their shadows, and the masks of what is still to be seen."""
        if rng.random() < 0.35:  # out of focus behind them
            image = _blurred(image, rng.uniform(1, 6))
        before = masks.sum(axis=(1, 2))
        pasted = []  # mask and area of each
        count = rng.integers(1, 4) if rng.random() < 0.5 else rng.integers(4, 13)
        same = rng.integers(len(self._cutouts)) if rng.random() < 0.2 else None
        for _ in range(count):
            number = rng.integers(len(self._cutouts)) if same is None else same
            pixels, alpha, parts = _turned(rng, *_opened(self._cutouts[number]), 260 / count**0.35)
            placed = _placed(rng, alpha, image.shape[:2])
            if placed is None:
                continue
            (y, x), inner = placed
            alpha, pixels = alpha[inner], pixels[inner] * rng.uniform(0.75, 1.15)
            h, w = alpha.shape
            if rng.random() < 0.6:
                image = _shadowed(rng, image, alpha, (y, x))
            window = np.s_[y : y + h, x : x + w]
            image[window] += alpha[..., None] * (pixels - image[window])
            covered = alpha > 0.5
            masks[(slice(None), *window)] *= ~covered
            for mask, _ in pasted:
                mask[window] *= ~covered
            for part in [covered, *parts[(slice(None), *inner)]]:
                mask = np.zeros(image.shape[:2], "uint8")
                mask[window] = part.astype(bool) & covered
                pasted.append((mask, np.count_nonzero(mask)))
        left = masks.sum(axis=(1, 2)) > 0.6 * before
        seen = [mask for mask, area in pasted if mask.sum() > 0.3 * area]
        # What is asked for are things rather than pieces of the ground.
        kept = np.flatnonzero(left)
        kept = rng.permutation(kept)[: max(3, len(seen))]
        return image, np.concatenate([masks[kept], *[mask[None] for mask in seen]])


@functools.lru_cache(maxsize=800)
def _stored(path):
    return path.read_bytes()


def _opened(path):
    """A prepared picture, uint8 `(H0, W0, 3)` or `(H0, W0, 4)`, and its masks `(M, H0, W0)`."""
    with np.load(io.BytesIO(_stored(path))) as file:
        image = np.asarray(Image.open(io.BytesIO(file["image"].tobytes())))
        masks = np.unpackbits(file["masks"], axis=-1, count=image.shape[1])
    return image, masks


def _turned(rng, image, parts, size):
    """A cut-out at some size and angle: colours, coverage 0..1 and the masks of its parts."""
    size = size * np.exp(rng.uniform(-1.2, 0.5))
    scale = min(size / max(image.shape[:2]), 2.2)
    whole = tuple(max(8, int(n * scale)) for n in image.shape[1::-1])
    angle = rng.normal(0, 12) if rng.random() < 0.7 else rng.uniform(0, 360)
    mirrored = rng.random() < 0.5

    def turn(picture, how):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else picture
        return np.asarray(picture.resize(whole, how).rotate(angle, how, expand=True))

    # Colours are multiplied by the coverage while they are scaled: no fringe of the ground.
    coverage = image[..., 3:].astype("float32") / 255
    channels = [*np.moveaxis(image[..., :3] * coverage, -1, 0), coverage[..., 0]]
    smooth = Image.Resampling.BILINEAR
    *colours, alpha = (turn(Image.fromarray(c.astype("float32")), smooth) for c in channels)
    parts = [turn(Image.fromarray(part), Image.Resampling.NEAREST) for part in parts]
    pixels = np.stack(colours, axis=-1) / np.maximum(alpha, 1e-3)[..., None]
    return pixels, alpha, np.stack(parts) if parts else np.zeros((0, *alpha.shape), "uint8")


def _placed(rng, alpha, size):
    """A random place for a cut-out: its corner in a scene, and the window of it that is inside."""
    high, wide = alpha.shape
    y, x = (
        int(rng.uniform(-0.3 * n, m - 0.7 * n)) for n, m in zip((high, wide), size, strict=True)
    )
    inner = np.s_[max(0, -y) : min(high, size[0] - y), max(0, -x) : min(wide, size[1] - x)]
    if alpha[inner].size == 0 or np.count_nonzero(alpha[inner] > 0.5) < SMALLEST:
        return None
    return (max(y, 0), max(x, 0)), inner


def _shadowed(rng, image, alpha, corner):
    (h, w), size = alpha.shape, image.shape[:2]
    reach = max(h, w)
    soft = max(1.0, rng.uniform(0.02, 0.12) * reach)
    dy, dx = (int(n) for n in rng.uniform(-0.1, 0.15, 2) * reach)
    whole = np.zeros(size, "float32")
    y0, x0 = max(corner[0] + dy, 0), max(corner[1] + dx, 0)
    y1, x1 = min(corner[0] + dy + h, size[0]), min(corner[1] + dx + w, size[1])
    if y1 <= y0 or x1 <= x0:
        return image
    top, left = y0 - corner[0] - dy, x0 - corner[1] - dx
    whole[y0:y1, x0:x1] = alpha[top : top + y1 - y0, left : left + x1 - x0]
    return image * (1 - rng.uniform(0.1, 0.6) * _blurred(whole, soft))[..., None]


def _blurred(values, radius):
    sizes = (2 * radius + 1,) * 2 + (1,) * (values.ndim - 2)
    return ndimage.uniform_filter(values, tuple(int(n) for n in sizes))


def _developed(rng, image):
    """The scene as another camera would have given it: light, tone, blur, noise, JPEG."""
    image = 255 * (np.clip(image, 0, 255) / 255) ** np.exp(rng.normal(0, 0.25))
    image = image * (1 + rng.normal(0, 0.06, 3))
    grey = image.mean(axis=-1, keepdims=True)
    image = grey + rng.uniform(0.0 if rng.random() < 0.1 else 0.6, 1.3) * (image - grey)
    if rng.random() < 0.3:
        image = _blurred(image, rng.uniform(1, 2))
    noise = rng.standard_normal((*image.shape[:2], rng.choice([1, 3])), "float32")
    image = np.clip(image + rng.uniform(0, 5) * noise, 0, 255).astype("uint8")
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(45, 96)))
        image = np.asarray(Image.open(buffer))
    return image


def prepare(source, folder):
    """Computes the regions of all pictures of a folder that have none yet, and keeps them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted(path for path in source.rglob("*") if path.suffix in _SUFFIXES)
    for number in np.random.default_rng(0).permutation(len(paths)):  # what is there is fair soon
        path = paths[number]
        picture = Image.open(path).convert("RGBA")
        pixels = np.asarray(picture)
        cutout = np.mean(pixels[..., 3] < 128) > 0.03
        target = folder / f"{'cutout' if cutout else 'photograph'}-{number:04d}.npz"
        if target.exists():
            continue
        if cutout:
            picture = picture.crop(picture.getchannel("A").getbbox())
        if not cutout or max(picture.size) > PREPARED:
            whole = [max(1, round(n * PREPARED / max(picture.size))) for n in picture.size]
            picture = picture.resize(whole, Image.Resampling.LANCZOS)
        if cutout:
            masks = _parts(np.asarray(picture))
        else:
            picture = picture.convert("RGB")
            masks = regions(np.asarray(picture))
            if len(masks) < 4:
                continue
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=95) if not cutout else picture.save(buffer, "PNG")
        image = np.frombuffer(buffer.getvalue(), "uint8")
        with whole_file(target) as file:
            np.savez(file, image=image, masks=np.packbits(masks, axis=-1))
        print(f"{target.name} {path.name}: {len(masks)} masks", flush=True)


def _parts(image):
    """What stands out within a cut-out of some size, masks `(M, H0, W0)`."""
    inside = image[..., 3] > 128
    none = np.zeros((0, *inside.shape), "uint8")
    if min(image.shape[:2]) < 120:
        return none
    ground = image[..., :3][inside].mean(axis=0)
    ground = np.where(ground > 127, ground - 100, ground + 100)
    alpha = image[..., 3:] / 255
    found = regions(np.uint8(image[..., :3] * alpha + ground * (1 - alpha)), 12)
    whole = np.count_nonzero(inside)
    areas = [np.count_nonzero(mask & inside) for mask in found]
    kept = [
        mask & inside
        for mask, area in zip(found, areas, strict=True)
        if area > 0.9 * mask.sum() and SMALLEST < area < 0.8 * whole
    ]
    return np.stack(kept).astype("uint8") if kept else none


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


def draw(image, masks, seed=0):
    """A scene with its masks, the largest below, each in a colour with a white outline."""
    rng = np.random.default_rng(seed)
    drawn = 0.6 * image
    for mask in sorted(masks.astype(bool), key=np.count_nonzero, reverse=True):
        drawn[mask] = 0.45 * drawn[mask] + 0.55 * rng.uniform(0, 255, 3)
        drawn[mask ^ ndimage.binary_erosion(mask)] = 255
    return np.concatenate([image, np.uint8(drawn)], axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=Path, help="a folder with pictures")
    parser.add_argument("prepared", type=Path, help="where their regions are kept")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw 24 scenes here")
    options = parser.parse_args()
    prepare(options.photographs, options.prepared)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        scenes = Photographs(options.prepared)
        for number in range(24):
            picture = draw(*scenes.scene((1, number)))
            Image.fromarray(picture).save(options.pictures / f"{number:02d}.png")


if __name__ == "__main__":
    main()
