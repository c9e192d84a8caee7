"""Photographs with masks that nobody drew, which `sam_tiny_demo` is trained on beside drawn scenes.

    python -m tools.demo_photographs PHOTOGRAPHS PREPARED [--pictures FOLDER]

A mask is a region that stands out (`tools/photograph_regions.py`), which takes a second or two a
picture and is kept in PREPARED. Pictures with a transparent ground are cut-outs, whose masks are
exact. They are pasted over photographs, with shadows, and so are the clearest regions of other
photographs.

PHOTOGRAPHS is a folder with pictures, at any depth; none of them is in the repository. Weights that
ship under this project's licence are trained on pictures that may be used for anything, or with
their author's name (public domain, CC0, CC BY, BSD, Apache-2.0):

    gcompris-qt-data 3.1       53 photographs, those of its categories, and of animals of the world,
                               that its copyright file says are free, and 27 cut-outs of fish
    opencv-doc 4.6             22 photographs among its samples
    lomiri-wallpapers-16.04    9 photographs that are CC0 or CC BY
    scikit-learn               its two, CC BY

from Debian 12 and PyPI. scikit-image's are not among them: they stay the test (coins, chelsea,
astronaut, coffee, rocket). Of the masks that it finds, most would be called objects or parts, the
others pieces of grounds with a clear outline.
"""

import argparse
import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from keras_sam.files import whole_file
from tools.photograph_regions import LARGEST, SMALLEST, regions

SIDE = 512  # the longest of a scene, pixels
PREPARED = 400  # the longest side that regions are computed at
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

    def _cutout(self, rng):
        """Something to paste, uint8 `(H0, W0, 4)`, and the masks of its parts.

        Half of it are regions: the clearest of a photograph, which do not end at its borders.
        """
        while rng.random() < 0.5:
            image, masks = _opened(self._photographs[rng.integers(len(self._photographs))])
            inside = np.pad(masks[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1))).astype(bool)
            whole = [n for n in range(len(masks)) if (inside[n] == masks[n]).all()][:4]
            if not whole:
                continue
            mask = inside[rng.choice(whole)]
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            # Pixels at the outline are half of the ground.
            alpha = ndimage.gaussian_filter(
                255 * ndimage.binary_erosion(mask).astype("float32"), 0.7
            )
            cutout = np.concatenate([image, alpha[..., None].astype("uint8")], axis=-1)[window]
            return cutout, np.zeros((0, *cutout.shape[:2]), "uint8")
        return _opened(self._cutouts[rng.integers(len(self._cutouts))])

    def _pasted(self, rng, image, masks):
        """Cut-outs over a scene, with their shadows, and the masks of what is still to be seen."""
        if rng.random() < 0.35:  # out of focus behind them
            image = _blurred(image, rng.uniform(1, 6))
        before = masks.sum(axis=(1, 2))
        pasted = []  # mask and area of each
        count = rng.integers(1, 4) if rng.random() < 0.5 else rng.integers(4, 13)
        same = self._cutout(rng) if rng.random() < 0.2 else None
        for _ in range(count):
            cutout = same or self._cutout(rng)
            pixels, alpha, parts = _turned(rng, *cutout, 260 / count**0.35)
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
