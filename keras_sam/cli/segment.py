"""`keras-sam segment`: masks of the objects that prompts point at, for one photograph."""

import argparse
import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_sam.cli import model, options
from keras_sam.cli.errors import CommandError, bad_input
from keras_sam.cli.output import (
    add_overwrite_option,
    check_nothing_is_lost,
    check_output_folder,
    format_table,
    output_files,
)
from keras_sam.cli.progress import Progress
from keras_sam.cli.prompt_files import ObjectPrompt, prompts_from_options, read_prompts
from keras_sam.images import shown_pixels

HELP = "segment objects in a photograph from points, boxes and masks"
DESCRIPTION = """\
Segments the objects that the prompts point at.

All --point of a call, a single --box and a --mask describe one object together. Several --box
are one object each. For more, put the prompts into a file (--prompts):

  prompts.json   [{"name": "wheel", "points": [[560, 740], [900, 500]], "labels": [1, 0]},
                  {"name": "truck", "box": [80, 280, 1712, 858], "mask": "rough.png"}]
  prompts.csv    object,x,y,label,x1,y1,x2,y2
                 wheel,560,740,1,,,,
                 wheel,900,500,0,,,,
                 truck,,,,80,280,1712,858

Coordinates are pixels of the photograph as a viewer shows it, x to the right and y down.

Writes into --out, all files or none; an earlier PHOTO.json stays unless --overwrite is given:
  PHOTO_mask_N.png     each mask, white on black, in the photograph's size
  PHOTO_overlay.png    the best mask of each object, the points and boxes
  PHOTO_candidates.png the masks of one ambiguous object side by side
  PHOTO.json           prompts, scores (predicted IoU), areas and boxes of all masks"""

EXAMPLES = """\
examples:
  keras-sam segment truck.jpg --model sam_base_sa1b --point 1000,600 --out masks
  keras-sam segment truck.jpg --model sam_vit_b_01ec64.pth --box 80,280,1712,858 \\
      --point 560,740,0 --out masks"""

# Backends by the time that one photograph takes from a cold start: the first two compile nothing,
# or little.
_ORDER = ("torch", "openvino", "jax", "tensorflow")
_PIXELS_AT_ONCE = 1 << 28  # of full-size masks that one call may return, at a byte per pixel


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "photo", type=options.photograph, metavar="PHOTO", help="the picture to segment"
    )
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--point",
        type=options.point,
        action=options.Repeated,
        default=(),
        metavar="X,Y[,LABEL]",
        help="a point of the object, or with label 0 of the background; repeatable",
    )
    prompts.add_argument(
        "--box",
        type=options.box,
        action=options.Repeated,
        default=(),
        metavar="X1,Y1,X2,Y2",
        help="a box around the object; several boxes are several objects",
    )
    prompts.add_argument(
        "--mask",
        type=Path,
        metavar="FILE",
        help="a rough mask to refine: a black and white picture of the photograph's size, or "
        ".npy logits",
    )
    prompts.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a .json or .csv file of many objects"
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the results"
    )
    results.add_argument(
        "--multimask",
        action=argparse.BooleanOptionalAction,
        help="write three candidates per object, or the one mask for unambiguous prompts "
        "(default: three for a lone point, otherwise one)",
    )
    add_overwrite_option(results)
    options.add_model_options(parser, runs_exports=True)


def run(args: argparse.Namespace) -> int:
    """Checks what can be checked without the model, loads it, and writes the results."""
    objects = _read_objects(args)
    photo = _read_photograph(args.photo)
    masks = {prompt.mask: _read_mask(prompt.mask, photo.shape[:2]) for prompt in objects}
    check_output_folder(args.out)
    names = (f"{args.photo.stem}{end}" for end in (".json", "_overlay.png", "_mask_0.png"))
    check_nothing_is_lost((args.out / name for name in names), args.overwrite)
    progress = Progress(args.quiet)
    model.say_limits(args.model, progress)
    with model.open_any_segmenter(args, progress, _ORDER) as segmenter:
        from keras_sam.predictor import SAMPredictor

        predictor = SAMPredictor(segmenter)
        with progress.step(f"Encoding {args.photo.name}"), bad_input():
            takes_rgb = segmenter.image_shape[-1] == 3
            predictor.set_image(photo if takes_rgb else args.photo, channel_order="rgb")
            pixels = shown_pixels(photo, predictor.preprocessor.image_converter.value_range)
        with output_files(args.out) as files:
            with progress.step("Segmenting"), bad_input():
                results = _segment(predictor, objects, masks, args)
            with progress.step("Writing"):
                described = {**model.describe(args, segmenter), "seconds": progress.seconds}
                document = _write(args.photo, described, pixels, objects, results, files)
    _print_results(args, document)
    return 0


def _read_objects(args):
    if args.prompts is None:
        return prompts_from_options(args.point, args.box, args.mask)
    if args.point or args.box or args.mask:
        raise CommandError("--prompts cannot be combined with --point, --box or --mask")
    return read_prompts(args.prompts)


def _read_photograph(path):
    """The values in the file. Which of them become 0..255 is the model's setting."""
    from keras_sam.images import load_image

    if path.is_dir():
        raise CommandError(f"{path} is a folder, not a photograph")
    with bad_input():
        return load_image(path, value_range=None)


def _read_mask(path, size):
    """A mask prompt as a bool array of the photograph's size, or as float logits, or None."""
    if path is None:
        return None
    try:
        if path.suffix.lower() == ".npy":
            logits = np.load(path, allow_pickle=False)
            logits = logits.squeeze().astype("float32")
            if logits.ndim != 2 or not np.isfinite(logits).all():
                raise ValueError(
                    f"logits must be finite numbers of shape (L, L). Received: {logits.shape}"
                )
            return logits
        from keras_sam.annotations.mask_files import read_mask_file
        from keras_sam.masks.reading import tell_of

        reading = read_mask_file(path)
    except (OSError, ValueError, EOFError) as error:
        raise CommandError(f"mask {path}: {error}") from error
    mask = reading.labels > 0
    if len(reading.numbers) > 1:
        raise CommandError(
            f"mask {path}: must be black, with one other colour for the object. Received: "
            f"{len(reading.numbers)} numbers or colours"
        )
    tell_of(reading, str(path))
    if mask.shape != size:
        raise CommandError(
            f"mask {path}: must have the photograph's size, {size[1]} x {size[0]}. Received: "
            f"{mask.shape[1]} x {mask.shape[0]}"
        )
    return mask


def _segment(predictor, objects, masks, args):
    """Decodes the prompts, those of the same kind together. Returns the masks of each object."""
    groups: dict[tuple, list[int]] = {}
    for index, prompt in enumerate(objects):
        mask = masks[prompt.mask]
        multimask = _is_lone_click(prompt) if args.multimask is None else args.multimask
        frame = None if mask is None else (mask.dtype, mask.shape)
        kind = (len(prompt.points), prompt.box is None, frame, multimask)
        groups.setdefault(kind, []).append(index)
    height, width = predictor.original_sizes[0]
    results: list[list[dict]] = [[] for _ in objects]
    for (*_, multimask), members in groups.items():
        step = max(1, _PIXELS_AT_ONCE // (height * width * (3 if multimask else 1)))
        for first in range(0, len(members), step):
            chunk = members[first : first + step]
            chunk_masks, scores, _ = predictor.predict(
                **_prompt_arrays(predictor, [objects[index] for index in chunk], masks),
                multimask_output=multimask,
            )
            if scores.ndim == 1:  # a lone mask is one object, without an axis of objects
                chunk_masks, scores = chunk_masks[None], scores[None]
            if not np.isfinite(scores).all():
                raise CommandError("the model returned NaN: try --dtype float32", code=1)
            for index, *result in zip(chunk, chunk_masks, scores, strict=True):
                results[index] = _pack(*result)
    return results


def _is_lone_click(prompt):
    from keras_sam.prompts import read

    given = {"points": [point[:2] for point in prompt.points], "boxes": prompt.box}
    given["labels"] = [label for _, _, label in prompt.points]
    return prompt.mask is None and bool(read(given).lone_click.all())


def _prompt_arrays(predictor, prompts: list[ObjectPrompt], masks):
    """Prompts of the same kind as the arrays of one call, objects along the first axis."""
    from keras_sam.prompts import mask_to_logits

    arrays = {}
    if prompts[0].points:
        points = np.array([prompt.points for prompt in prompts], "float64")  # (P, N, 3)
        arrays.update(points=points[..., :2], labels=points[..., 2].astype("int32"))
    if prompts[0].box:
        arrays["boxes"] = np.array([prompt.box for prompt in prompts], "float64")  # (P, 4)
    if prompts[0].mask:
        logits = np.stack([masks[prompt.mask] for prompt in prompts])  # (P, H0, W0) or (P, L, L)
        if logits.dtype == bool:
            frame = predictor.segmenter.image_shape[:2]
            logits = mask_to_logits(logits, frame, predictor.segmenter.mask_size)[..., 0]
        arrays["masks"] = logits
    return arrays


def _pack(masks, scores):
    """What is kept of an object's masks, so that the full-size arrays can be freed."""
    from keras_sam.geometry import xyxy_to_xywh
    from keras_sam.masks import encode_rle, mask_to_box

    best = int(np.argmax(scores))
    return [
        {
            "score": round(float(score), 6),
            "best": index == best,
            "area": int(np.count_nonzero(mask)),
            "bbox": xyxy_to_xywh(mask_to_box(mask, inclusive=False)).tolist(),
            "rle": encode_rle(mask),
            "png": _png(mask.astype("uint8") * 255),
        }
        for index, (mask, score) in enumerate(zip(masks, scores, strict=True))
    ]


def _write(photo, described, pixels, objects, results, files):
    """Writes the masks, the pictures and the JSON file. Returns what the JSON file holds."""
    stem = photo.stem
    entries, numbers = [], itertools.count()
    for prompt, masks in zip(objects, results, strict=True):
        rows = []
        for mask in masks:
            file = files.write(f"{stem}_mask_{next(numbers)}.png", mask["png"])
            about = {name: mask[name] for name in ("score", "best", "area", "bbox")}
            rows.append({"file": file.name, **about})
        entries.append(
            {
                "name": prompt.name,
                "points": [list(point[:2]) for point in prompt.points],
                "labels": [point[2] for point in prompt.points],
                "box": list(prompt.box) if prompt.box else None,
                "mask": str(prompt.mask) if prompt.mask else None,
                "masks": rows,
            }
        )
    document = {
        "photo": photo.name,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        **described,
        "objects": entries,
        **_draw(stem, pixels, objects, results, files),
    }
    files.write(f"{stem}.json", json.dumps(document, indent=2, allow_nan=False).encode())
    return document


def _draw(stem, pixels, objects, results, files):
    from keras_sam import visualization

    points = [point for prompt in objects for point in prompt.points]
    marks = {
        "points": [point[:2] for point in points] or None,
        "labels": [point[2] for point in points] or None,
        "boxes": [prompt.box for prompt in objects if prompt.box] or None,
    }

    def png(drawing):
        draw, masks = drawing
        scores = [mask["score"] for mask in masks]
        return _png(draw(pixels, [mask["rle"] for mask in masks], scores=scores, **marks))

    best = [mask for masks in results for mask in masks if mask["best"]]
    drawings = {"overlay": (visualization.overlay, best)}
    if len(results) == 1 and len(results[0]) > 1:
        drawings["candidates"] = (visualization.candidates, results[0])
    with ThreadPoolExecutor() as pool:
        pngs = list(pool.map(png, drawings.values()))
    return {
        kind: files.write(f"{stem}_{kind}.png", data).name
        for kind, data in zip(drawings, pngs, strict=True)
    }


def _png(array):
    from PIL import Image

    buffer = io.BytesIO()
    # Level 6, the default, takes three to four times as long, for files a tenth smaller.
    Image.fromarray(np.asarray(array)).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def _print_results(args, document):
    rows = [
        (entry["name"], f"{mask['score']:.3f}", mask["area"], args.out / mask["file"])
        for entry in document["objects"]
        for mask in entry["masks"]
    ]
    print(format_table(("object", "score", "area", "mask"), rows))
    for kind in ("overlay", "candidates"):
        if kind in document:
            print(f"{kind}: {args.out / document[kind]}")
