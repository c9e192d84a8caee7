"""The one rule by which pixels become a mask, for the files of a folder and for arrays alike.

* Numbers that fill regions are a label map: 0 is the background, and in 8 bits 255 beside them is
  void. A label map of the single number 1 is the usual target of 0, 1 and 255.
* Two ends, dark and bright, with little between them are black and white, however soft the edges
  are: what is brighter than the middle is the object.
* Of colours, the background is black, or else the commonest one at the picture's rim, and every
  other colour is an object. Alpha counts where the colours say nothing.
* Anything else is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_sam.notices import notice

# The value of target pixels that count neither as object nor as background.
VOID = 255
VOID_LABEL = -1
# In 0..255: where the dark end stops, and where the bright end starts.
_DARK, _BRIGHT = 64, 192
# What is brighter is white that went through a lossy format, not a number of a label map.
_WHITE = 240


class MaskReading(NamedTuple):
    """A mask as it was read.

    Args:
        labels: int32 array `(H0, W0)`, 0 for the background and -1 for void.
        kind: `"labels"`, `"black and white"`, `"soft"` (black and white with values between) or
            `"alpha"`.
    """

    labels: np.ndarray
    kind: str

    @property
    def numbers(self) -> np.ndarray:
        """The labels that there are, ascending, without background and void."""
        return np.unique(self.labels[self.labels > 0])

    def target(self) -> np.ndarray:
        """All labels as one object: uint8 of 0, 1 and 255 for void."""
        return np.where(self.labels < 0, VOID, self.labels > 0).astype("uint8")

    def objects(self) -> np.ndarray:
        """An object per label, ascending: uint8 `(P, H0, W0)` of 0, 1 and 255 for void."""
        void = np.where(self.labels < 0, VOID, 0).astype("uint8")
        objects = [np.where(self.labels == label, np.uint8(1), void) for label in self.numbers]
        return np.stack(objects) if objects else np.zeros((0, *void.shape), "uint8")


def read_mask(
    pixels: np.ndarray, void: int | str | None = "auto", lossy: bool = False
) -> MaskReading:
    """Reads a mask by the rule of this module.

    Args:
        pixels: array `(H0, W0)` or `(H0, W0, C)` with grey, grey and alpha, RGB or RGBA. Floats
            are whole numbers, or within 0..1. In uint16, no number is void.
        void: the number that is void; `None` if none is; or `"auto"`.
        lossy: bool. Whether they come from a format that changes numbers, such as JPEG, which
            cannot hold a label map.

    Returns:
        A `MaskReading`.

    Raises:
        ValueError: if it is no mask by this rule.
    """
    if not (void is None or void == "auto" or isinstance(void, (int, np.integer))):
        raise ValueError(f'`void` must be a number, None or "auto". Received: {void!r}.')
    pixels = np.asarray(pixels)
    if pixels.size == 0:
        raise ValueError(f"A mask must have at least one pixel. Received: shape={pixels.shape}.")
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return _read_numbers(_whole_numbers(pixels), void, lossy)
    if pixels.ndim != 3 or pixels.shape[-1] > 4:
        raise ValueError(
            "A mask must have shape (H0, W0), or 1 to 4 channels in its last axis. "
            f"Received: shape={pixels.shape}."
        )
    pixels = _whole_numbers(pixels)
    if pixels.shape[-1] == 3:
        return _read_colours(pixels, void, lossy)
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    full = int(alpha.max())
    if alpha.min() == full:
        return read_mask(colours, void, lossy)
    over_black = (colours * (alpha[..., None] / full)).round().astype(pixels.dtype)
    if (over_black != over_black[0, 0]).any():
        try:
            reading = read_mask(over_black, void, lossy)
        except ValueError:  # a photograph that is cut out
            reading = None
        if reading is not None and reading.kind != "soft":
            return reading
    return _read_numbers(alpha, None, lossy)._replace(kind="alpha")


def tell_of(reading: MaskReading, name: str) -> None:
    """Says once what was chosen when a mask was read; `name` says which mask it was."""
    if reading.kind == "soft":
        notice(
            f"{name} is black and white with values between: what is brighter than the middle is "
            "the object.",
            "soft mask",
        )
    elif reading.kind == "alpha":
        notice(f"{name} is read from its alpha: its colours hold no mask.", "mask in alpha")
    inside = reading.labels > 0
    rim = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
    one_object = reading.labels.max() <= 1
    if one_object and inside.mean() > 0.9 and all(side.any() for side in rim):
        notice(
            f"The object of {name} covers {100 * inside.mean():.0f} % of it and touches all of its "
            "borders. What is bright is the object: a mask of black on white has to be inverted.",
            "inverted mask",
        )


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    """Values as unsigned integers of 8 bits, of 16 where they came so, or larger."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0:
            raise ValueError(
                "A mask of floats must be within 0..1 or 0..255. Received: "
                f"{values.min()}..{values.max()}. Threshold logits first: logits > 0."
            )
        if values.max() <= 1 and not np.isin(values, (0, 1)).all():
            values = values * 255
        values = np.rint(values).astype("int64")
    elif values.dtype.kind not in "bui" or values.min() < 0:
        raise ValueError(
            "A mask must be bool, or numbers from 0 on. Received: "
            f"dtype={values.dtype}, smallest={values.min()}."
        )
    if values.dtype == np.uint16:
        return values
    return values.astype("uint8" if values.max() <= 255 else "int64")


def _read_numbers(values: np.ndarray, void: int | str | None, lossy: bool) -> MaskReading:
    found, counts = np.unique(values, return_counts=True)
    if found[-1] <= 1 or not (void is None or isinstance(void, str)):
        return _as_labels(values, void)
    if values.dtype == np.uint16 and set(found.tolist()) <= {0, 65535}:
        return MaskReading((values > 0).astype("int32"), "black and white")
    eight_bits = values.dtype == np.uint8
    white = _WHITE if eight_bits else int(found[-1]) + 1
    numbers = (found > 0) & (found < white)
    if not numbers.any():
        return MaskReading((values >= 128).astype("int32"), "black and white")
    stands = _fill_regions(values, found)
    levels = found[stands]
    if set(found.tolist()) <= {0, 1, VOID}:  # an object of 1 may be as thin as a line
        stands |= _fill_regions(values, found, 2) | (20 * counts >= counts[-1])
    share = stands[numbers].mean()
    # Numbers may be lines where there is no white that they could be the edge of.
    few = found[-1] < white and len(found) <= 16
    is_map = not lossy and (share == 1 or few or (share >= 0.5 and 0 in levels))
    # Video has black at 16 and white at 235.
    if len(levels) == 2 and 0 < levels[0] < _DARK and _BRIGHT <= levels[1] < VOID:
        is_map = False
    if not is_map and (found[-1] >= _DARK or lossy):
        return MaskReading(_above_middle(values, found, counts), "soft")
    if eight_bits and void == "auto" and found[-1] == VOID:
        if found[numbers & stands][0] >= _DARK:
            raise ValueError(
                f"A mask of the values {', '.join(map(str, found[:8]))} does not say whether 255 "
                "is void. Pass `void=255`, or `void=None` if it is an object (`--void 255`, "
                "`--void none`)."
            )
        void = VOID
    return _as_labels(values, void)


def _as_labels(values: np.ndarray, void: int | str | None) -> MaskReading:
    labels = values.astype("int32")
    if isinstance(void, (int, np.integer)):
        labels[values == void] = VOID_LABEL
    return MaskReading(labels, "labels")


def _fill_regions(values: np.ndarray, found: np.ndarray, neighbours: int = 3) -> np.ndarray:
    """For each value, whether half of its pixels have so many neighbours of it, out of four."""
    same = np.zeros(values.shape, "uint8")
    down, right = values[1:] == values[:-1], values[:, 1:] == values[:, :-1]
    same[1:] += down
    same[:-1] += down
    same[:, 1:] += right
    same[:, :-1] += right
    index = np.searchsorted(found, values)
    inner = np.bincount(index[same >= neighbours], minlength=len(found))
    return 2 * inner >= np.bincount(index.reshape(-1), minlength=len(found))


def _above_middle(values: np.ndarray, found: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The object of a picture with two ends, int32."""
    scale = 1 if found[-1] <= 255 else found[-1] / 255
    dark, bright = counts[found < _DARK * scale].sum(), counts[found >= _BRIGHT * scale].sum()
    between = counts.sum() - dark - bright
    if between > 3 * bright or between > counts.sum() / 4:
        raise ValueError(
            "A mask must be black and white, or a label map whose numbers fill regions. Received: "
            f"{len(found)} values in {found[0]}..{found[-1]}, "
            f"{100 * between / counts.sum():.0f} % of the pixels neither dark nor bright. "
            "Threshold it first, or save the label map without loss, as PNG."
        )
    return (values >= 128 * scale).astype("int32")


def _read_colours(pixels: np.ndarray, void: int | str | None, lossy: bool) -> MaskReading:
    if (pixels == pixels[..., :1]).all():
        return _read_numbers(pixels[..., 0], void, lossy)
    codes = pixels.astype("int64") @ np.array([1 << 32, 1 << 16, 1])
    found, counts = np.unique(codes, return_counts=True)
    rim = np.concatenate([codes[0], codes[-1], codes[:, 0], codes[:, -1]])
    black = pixels.max(axis=-1) < 16
    if 100 * np.count_nonzero(black) >= black.size:
        ground = np.zeros(3, "int64")
    else:
        commonest = np.argmax(np.bincount(np.searchsorted(found, rim)))
        ground = pixels[codes == found[commonest]][0].astype("int64")
    stands = _fill_regions(codes, found)
    if not lossy and stands.mean() >= 0.5:
        labels = 1 + np.searchsorted(found, codes)
        labels[(pixels == ground).all(axis=-1)] = 0
        return MaskReading(labels.astype("int32"), "labels")
    # Colours with soft edges: black and white by the distance from the background.
    distance = np.abs(pixels.astype("int64") - ground).max(axis=-1)
    distance = distance * 255 // distance.max()
    values, counts = np.unique(distance, return_counts=True)
    return MaskReading(_above_middle(distance, values, counts), "soft")
