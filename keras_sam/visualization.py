"""Pictures of masks, points, boxes and scores on a photograph.

`overlay` and `candidates` return arrays and need no plotting library; the
`show` functions put the same pictures into a Matplotlib figure.
"""

import io
import os

import numpy as np
from PIL import Image

from keras_sam import drawing
from keras_sam.drawing import mask_colors
from keras_sam.files import whole_file
from keras_sam.images import load_image
from keras_sam.mask_generator.records import MaskRecords
from keras_sam.masks import decode_rle
from keras_sam.prompts.nested import to_numpy


class Picture(np.ndarray):
    """A uint8 `(H0, W0, 3)` array that a notebook shows as a picture.

    Everything else about it is NumPy's; `np.asarray(picture)` is a plain array.
    """

    def save(self, path, **options) -> None:
        """Saves the picture to `path`, whole or not at all, in the format of its file ending.

        Args:
            path: file to write, or an open file with `format=`.
            **options: what pillow's `Image.save` takes for the format, such as `quality=90`.

        Raises:
            ValueError: if the ending is of no format that pillow writes.
            OSError: if the file cannot be written.
        """
        image = Image.fromarray(np.asarray(self))
        if hasattr(path, "write"):
            image.save(path, **options)
            return
        ending = os.path.splitext(path)[1].lower()
        kind = options.pop("format", None) or Image.registered_extensions().get(ending)
        if kind is None:
            raise ValueError(
                "`path` must end in a format that pillow writes, such as .png or .jpg. Received: "
                f"{os.fspath(path)!r}. Rename it, or pass `format=`."
            )
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        with whole_file(path) as file:
            file.write(buffer.getvalue())

    def _repr_png_(self):
        if self.dtype != np.uint8 or self.ndim != 3 or self.shape[-1] != 3 or not self.size:
            return None
        buffer = io.BytesIO()
        Image.fromarray(np.asarray(self)).save(buffer, "png")
        return buffer.getvalue()


def overlay(
    image,
    masks=None,
    *,
    points=None,
    labels=None,
    boxes=None,
    scores=None,
    colors=None,
    alpha: float = 0.45,
    outlines: bool = True,
    line_width: float | None = None,
) -> Picture:
    """Draws masks, points, boxes and scores on a photograph.

    Large masks are painted first, so that small ones stay visible. A mask's colour depends only on
    its index; to keep the colours in a selection, pass
    `colors=mask_colors(len(masks))[selected]`. Outlines, marks and boxes have a light and a dark
    edge, so that they stand out from any background.

    Args:
        image: the photograph: an array `(H0, W0, 3)`, uint8 or float, 0..255; a grey or RGBA one;
            a PIL image; or a path. It is not changed.
        masks: bool or 0/1 array `(H0, W0)`, `(K, H0, W0)` or `(P, K, H0, W0)`; or a list of such
            arrays, of RLE dicts, or of the mask generator's records. None draws no mask.
        points: float `(..., 2)`, x y in pixels of the photograph.
        labels: int, one per point: 1 is drawn as a green star, 0 as a red disc, each pair of
            2 and 3 (corners of a box) as a box, -1 and -10 not at all. Defaults to all 1.
        boxes: float `(..., 4)` or `(..., 2, 2)`, x1 y1 x2 y2 in pixels of the photograph. As many
            boxes as masks are drawn in the masks' colours.
        scores: float, one per mask, written above it.
        colors: 0..255 `(K, 3)`, or one triple for all. Defaults to `mask_colors`.
        alpha: float in 0..1. How strongly masks are tinted; 0 leaves the outlines alone.
        outlines: bool. Whether masks are outlined.
        line_width: float, pixels. Defaults to a 600th of the photograph's longer
            side, at least 1.5.

    Returns:
        `Picture`, uint8 `(H0, W0, 3)`.

    Raises:
        ValueError: if an argument has another shape than these, a mask is not binary or not of the
            photograph's size, a number is not finite, or a list of masks is empty.

    Example:

    ```python
    masks, scores, _ = predictor.predict(points=[[500, 375]], labels=[1])
    best = scores.argmax()
    picture = overlay(image, masks[best], points=[[500, 375]], scores=scores[best])
    picture.save("overlay.png")
    ```
    """
    canvas = _read_image(image)
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must be between 0 and 1. Received: {alpha}.")
    if line_width is None:
        line_width = max(1.5, max(canvas.shape) / 600)
    if not line_width > 0:
        raise ValueError(
            f"`line_width` must be a positive number of pixels. Received: {line_width}."
        )
    patches = _read_masks(masks, canvas.shape[:2])
    points, labels = _read_points(points, labels)
    boxes = _read_boxes(boxes)
    scores = _read_scores(scores, len(patches))
    colors = _read_colors(colors, max(len(patches), len(boxes)))

    for index in sorted(range(len(patches)), key=lambda index: -patches[index].area):
        stroke = line_width if outlines else 0
        drawing.paint_mask(canvas, patches[index], colors[index], alpha, stroke)
    corners = zip(points[labels == 2], points[labels == 3], strict=False)
    for first, second in corners:
        drawing.paint_box(canvas, np.concatenate([first, second]), drawing.LIGHT, line_width)
    for index, box in enumerate(boxes):
        color = colors[index] if len(boxes) == len(patches) else drawing.LIGHT
        drawing.paint_box(canvas, box, color, line_width)
    for paint, label in ((drawing.paint_disc, 0), (drawing.paint_star, 1)):
        for x, y in points[labels == label]:
            paint(canvas, x, y, line_width)
    taken = []
    for patch, score, color in zip(patches, scores, colors, strict=False):
        if patch.area:
            drawing.paint_text(canvas, f"{score:.2f}", patch.crown, color, line_width, taken)
    return canvas.view(Picture)


def candidates(image, masks, scores=None, *, gap: int | None = None, **options) -> Picture:
    """Puts the masks of one prompt side by side, each on its own copy of the photograph.

    Args:
        image: as for `overlay`.
        masks: as for `overlay`; each makes one picture.
        scores: float, one per mask.
        gap: int. White pixels between two pictures. Defaults to a 100th of the width.
        **options: `points`, `boxes` and everything else that `overlay` takes.

    Returns:
        `Picture`, uint8 `(H0, K * W0 + (K - 1) * gap, 3)`.
    """
    pictures = _draw_each(image, masks, scores, options)
    gap = max(4, pictures[0].shape[1] // 100) if gap is None else gap
    spacer = np.full((pictures[0].shape[0], gap, 3), 255, "uint8")
    row = [part for picture in pictures for part in (spacer, picture)][1:]
    return np.concatenate(row, axis=1).view(Picture)


def show(image, masks=None, *, title: str | None = None, ax=None, figsize=None, **options):
    """Shows `overlay(image, masks, **options)` in a Matplotlib figure.

    In a notebook the figure appears below the cell; elsewhere it opens in a window, if there is
    a display.

    Args:
        image: as for `overlay`.
        masks: as for `overlay`.
        title: str. Written above the picture.
        ax: Matplotlib axes to draw into. Defaults to those of a new figure.
        figsize: pair of floats, inches. Defaults to `(10, 10 * H0 / W0)`.
        **options: everything else that `overlay` takes.

    Returns:
        The Matplotlib axes.

    Raises:
        ImportError: if Matplotlib is not installed.
    """
    picture = overlay(image, masks, **options)
    return _show_row([picture], [title], None if ax is None else [ax], figsize)[0]


def show_candidates(image, masks, scores=None, *, figsize=None, **options):
    """Shows the masks of one prompt side by side, and marks the one with the highest score.

    Args:
        image: as for `overlay`.
        masks: as for `overlay`; each makes one picture.
        scores: float, one per mask, written above the pictures.
        figsize: pair of floats, inches. Defaults to 5 inches a picture.
        **options: `points`, `boxes` and everything else that `overlay` takes.

    Returns:
        List of the Matplotlib axes.
    """
    pictures = _draw_each(image, masks, None, options)
    scores = _read_scores(scores, len(pictures))
    titles = [f"mask {index}" for index in range(len(pictures))]
    if len(scores):
        titles = [f"{title}: {score:.3f}" for title, score in zip(titles, scores, strict=True)]
        titles[int(np.argmax(scores))] += " (best)"
    return _show_row(pictures, titles, None, figsize)


def show_everything(image, records, *, figsize=None, **options):
    """Shows a photograph beside all of its masks.

    Args:
        image: as for `overlay`.
        records: list of the mask generator's records, or any masks that `overlay` takes.
        figsize: pair of floats, inches. Defaults to 8 inches a picture.
        **options: everything else that `overlay` takes.

    Returns:
        List of the two Matplotlib axes.
    """
    photograph = _read_image(image)
    count = len(_read_masks(records, photograph.shape[:2]))
    pictures = [photograph, overlay(photograph, records, **options)]
    return _show_row(pictures, ["photograph", f"{count} masks"], None, figsize)


def _draw_each(image, masks, scores, options):
    """One overlay per mask, all in the first colour, because they show the same object."""
    photograph = _read_image(image)
    patches = _read_masks(masks, photograph.shape[:2])
    if not patches:
        raise ValueError("`masks` must hold at least one mask. Received: None.")
    scores = _read_scores(scores, len(patches))
    return [
        overlay(photograph, [patch], scores=scores[index : index + 1] or None, **options)
        for index, patch in enumerate(patches)
    ]


def _show_row(pictures, titles, axes, figsize):
    try:
        import matplotlib
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "`keras_sam.visualization.show` needs Matplotlib. Install it with: "
            'pip install "keras_sam[plot]". `keras_sam.visualization.overlay` does without.'
        ) from error
    own_figure = axes is None
    if own_figure:
        height, width = pictures[0].shape[:2]
        inches = {1: 10, 2: 8}.get(len(pictures), 5)
        figsize = figsize or (inches * len(pictures), inches * height / width + 0.4)
        figure, axes = pyplot.subplots(
            1, len(pictures), figsize=figsize, squeeze=False, layout="constrained"
        )
        axes = list(axes[0])
    for ax, picture, title in zip(axes, pictures, titles, strict=True):
        ax.imshow(np.asarray(picture))
        ax.set_axis_off()
        if title:
            ax.set_title(title)
    # Notebooks are interactive and show the figure themselves; without a display nothing can.
    has_window = own_figure and figure.canvas.required_interactive_framework is not None
    if has_window and not matplotlib.is_interactive():
        pyplot.show()
    return axes


def _read_image(image):
    """A photograph in any accepted form as a new uint8 (H0, W0, 3) array."""
    pixels = np.clip(np.rint(load_image(image)), 0, 255)
    return np.array(pixels, "uint8")


def _read_masks(masks, size):
    """Masks in any accepted form as a list of patches."""
    if masks is None or (isinstance(masks, MaskRecords) and not masks):
        return []  # the mask generator found none; any other empty list is a mistake
    if isinstance(masks, dict):
        masks = [masks]
    if isinstance(masks, (list, tuple)):
        if not masks:
            raise ValueError(
                "`masks` is an empty list: there is nothing to draw. Pass None to draw the "
                "photograph without masks."
            )
        first = masks[0]
        if isinstance(first, (dict, drawing.Patch)) or np.ndim(first) > 1:
            named = [(f"masks[{index}]", mask) for index, mask in enumerate(masks)]
            return [patch for name, mask in named for patch in _read_mask(name, mask, size)]
    return _read_mask("masks", masks, size)


def _read_mask(name, mask, size):
    if isinstance(mask, drawing.Patch):
        return [mask]
    if isinstance(mask, dict):
        mask = mask.get("segmentation", mask)
    if isinstance(mask, dict):
        mask = decode_rle(mask)
    mask = to_numpy(mask)
    if not 2 <= mask.ndim <= 4 or mask.shape[-2:] != size:
        raise ValueError(
            f"`{name}` must have the photograph's height and width, (..., {size[0]}, {size[1]}). "
            f"Received: shape={mask.shape}. Logits of the model's size go through "
            "`keras_sam.restore_masks` first."
        )
    mask = mask.reshape(-1, *size)  # (K, H0, W0)
    if not len(mask):
        raise ValueError(f"`{name}` must hold at least one mask. Received: shape={mask.shape}.")
    return [drawing.Patch.of(_binary(name, part)) for part in mask]


def _binary(name, mask):
    if mask.dtype == bool:
        return mask
    if not np.isfinite(mask).all():
        raise ValueError(f"`{name}` must be binary. Received: NaN or infinity.")
    top = mask.max()
    if top not in (0, 1, 255) or not ((mask == 0) | (mask == top)).all():
        raise ValueError(
            f"`{name}` must be binary: bool, or 0 and 1, or 0 and 255. Received: values from "
            f"{mask.min()} to {top}. Turn logits into a mask with `logits > 0`."
        )
    return mask != 0


def _read_points(points, labels):
    if points is None:
        if labels is not None:
            raise ValueError("`labels` came without `points`: each label belongs to a point.")
        return np.zeros((0, 2)), np.zeros(0, int)
    points = to_numpy(points)
    if points.ndim < 1 or points.shape[-1] != 2:
        raise ValueError(
            "`points` must have shape (..., 2), x y in pixels of the photograph. "
            f"Received: shape={points.shape}."
        )
    points = points.reshape(-1, 2)
    labels = np.ones(len(points), int) if labels is None else to_numpy(labels).reshape(-1)
    if len(labels) != len(points):
        raise ValueError(
            "`labels` must hold one label per point. "
            f"Received: {len(labels)} labels for {len(points)} points."
        )
    if not np.isin(labels, (-10, -1, 0, 1, 2, 3)).all():
        raise ValueError(
            "`labels` must be 1 (foreground), 0 (background), 2 and 3 (corners of a box), "
            f"-1 or -10 (nothing). Received: {labels.tolist()}."
        )
    _check_finite("points", points[labels >= 0])
    return points.astype("float64"), labels


def _read_boxes(boxes):
    if boxes is None:
        return np.zeros((0, 4))
    boxes = to_numpy(boxes)
    if boxes.shape[-1:] != (4,) and boxes.shape[-2:] != (2, 2):
        raise ValueError(
            "`boxes` must have shape (..., 4) or (..., 2, 2), x1 y1 x2 y2 in pixels of the "
            f"photograph. Received: shape={boxes.shape}."
        )
    boxes = boxes.reshape(-1, 4).astype("float64")
    _check_finite("boxes", boxes)
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(
            "`boxes` must be x1 y1 x2 y2 with x1 <= x2 and y1 <= y2. "
            f"Received: {boxes[(boxes[:, 2:] < boxes[:, :2]).any(axis=1)][0].tolist()}."
        )
    return boxes


def _read_scores(scores, count):
    if scores is None:
        return []
    scores = to_numpy(scores).reshape(-1)
    if len(scores) != count:
        raise ValueError(
            f"`scores` must hold one number per mask. Received: {len(scores)} scores for "
            f"{count} masks."
        )
    _check_finite("scores", scores)
    return [float(score) for score in scores]


def _read_colors(colors, count):
    if colors is None:
        return mask_colors(count)
    colors = to_numpy(colors)
    if colors.ndim == 1:
        colors = np.broadcast_to(colors, (count, *colors.shape))
    if colors.ndim != 2 or colors.shape[-1] != 3 or len(colors) < count:
        raise ValueError(
            f"`colors` must be one RGB triple, 0..255, or one for each of the {count} masks. "
            f"Received: shape={colors.shape}."
        )
    _check_finite("colors", colors)
    return np.clip(colors, 0, 255).astype("uint8")


def _check_finite(name, values):
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must hold finite numbers. Received: NaN or infinity.")
