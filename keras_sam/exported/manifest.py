"""The manifest of an exported folder: what it says of its model, and whether the files are those
that it describes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.encode_decode import EMBEDDINGS
from keras_sam.framing import ImageFraming
from keras_sam.generator_settings import check_generator_settings
from keras_sam.geometry import size_pair
from keras_sam.outputs import best_index, take_masks
from keras_sam.runtimes import Runtime

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "keras_sam export 2"
_FAMILY = "keras_sam export "
_ENDINGS = {"onnx": (".onnx",), "openvino": (".xml", ".bin")}
_LARGEST_MANIFEST = 1 << 20  # bytes
ENCODER, DECODER = "image_encoder", "prompt_decoder"


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What the manifest of an export says of its model.

    `best_of_candidates` says that `multimask_output=True` gives the one candidate with the highest
    score instead of all; `stability` is the offset of the threshold and the least stability with
    which mask 0 is kept for `multimask_output=False`, if it may be another.
    """

    image_shape: tuple[int, int, int]
    mask_size: tuple[int, int]
    features: dict[str, tuple[int, int, int]]
    num_masks: int
    extra_outputs: tuple[str, ...]
    mask_threshold: float
    best_of_candidates: bool
    stability: tuple[float, float] | None
    largest_prompt_logit: float | None
    generator_settings: dict[str, Any]
    fingerprint: str
    pixel_mean: np.ndarray
    pixel_std: np.ndarray
    takes_images: bool
    precision: str  # of the stored weights

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> ModelFacts:
        """Reads a manifest; what is missing or of another kind raises a KeyError, TypeError or
        ValueError.
        """
        model, pixels = manifest["model"], manifest["preprocessing"]
        channels = _whole(model["image_shape"][2])
        mean, std = (np.asarray(pixels[f"pixel_{name}"], "float32") for name in ("mean", "std"))
        are_numbers = np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()
        if mean.shape != (channels,) or std.shape != (channels,) or not are_numbers:
            raise ValueError("`pixel_mean` and `pixel_std` need one number per channel")
        features = {str(k): tuple(map(_whole, v)) for k, v in model["features"].items()}
        if EMBEDDINGS not in features or any(len(shape) != 3 for shape in features.values()):
            raise ValueError(f"`features` must be shapes, and one of {EMBEDDINGS}")
        stability, limit = model["stability"], model["largest_prompt_logit"]
        if stability is not None:
            offset, least = stability
            stability = (_finite(offset), _finite(least))
        return cls(
            image_shape=(*size_pair(model["image_shape"][:2], "image_shape"), channels),
            mask_size=size_pair(model["mask_size"], "mask_size"),
            features=features,
            num_masks=_whole(model["num_masks"]),
            extra_outputs=tuple(map(str, model["extra_outputs"])),
            mask_threshold=_finite(model["mask_threshold"]),
            best_of_candidates=_choice(model["best_of_candidates"]),
            stability=stability,
            largest_prompt_logit=None if limit is None else _finite(limit),
            generator_settings=check_generator_settings(model["generator_settings"]),
            fingerprint=str(model["fingerprint"]),
            pixel_mean=mean,
            pixel_std=std,
            takes_images=bool(manifest["settings"]["image_input"]),
            precision=str(manifest["settings"]["precision"]),
        )

    @staticmethod
    def of(segmenter: Any) -> dict[str, Any]:
        """What `read` reads of a segmenter of Keras, ready for JSON."""
        decoder = segmenter.mask_decoder
        count = decoder.num_mask_tokens
        stability = None
        if count > 1 and getattr(decoder, "dynamic_multimask_via_stability", False):
            names = ("delta", "thresh")
            stability = [getattr(decoder, f"dynamic_multimask_stability_{n}") for n in names]
        return {
            "class": type(segmenter).__name__,
            "fingerprint": segmenter.encoder_fingerprint(),
            "image_shape": list(segmenter.image_shape),
            "mask_size": list(segmenter.mask_size),
            "features": {k: list(v) for k, v in segmenter.feature_shapes.items()},
            "num_masks": count,
            "extra_outputs": list(getattr(decoder, "extra_outputs", ())),
            "mask_threshold": segmenter.mask_threshold,
            "best_of_candidates": count > 2 and decoder.num_masks(True) == 1,
            "stability": stability,
            "largest_prompt_logit": segmenter.largest_prompt_logit,
            "generator_settings": dict(segmenter.generator_settings),
        }

    def choose(self, outputs: dict, multimask_output: bool | None) -> dict[str, np.ndarray]:
        """The masks that a decoder makes with this `multimask_output`, of all that there are."""
        masks, scores = outputs["masks"], outputs["iou_pred"]
        if multimask_output is None:
            return outputs
        if multimask_output and not self.best_of_candidates:
            return {**outputs, "masks": masks[:, :, 1:], "iou_pred": scores[..., 1:]}
        if multimask_output:
            index = 1 + best_index(scores[..., 1:])
        elif self.stability is None:
            index = np.zeros(scores.shape[:2], int)
        else:
            delta, least = self.stability
            inner, outer = (
                np.count_nonzero(masks[:, :, 0] > limit, axis=(-2, -1)) for limit in (delta, -delta)
            )
            ratio = np.float32(inner) / np.maximum(np.float32(outer), 1)
            is_stable = np.where(outer > 0, ratio, 1) >= np.float32(least)
            index = np.where(is_stable, 0, 1 + best_index(scores[..., 1:]))
        return {**outputs, **take_masks(masks, scores, index)}


def _whole(value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"a whole number must be in place of {value!r:.40}")
    return value


def _choice(value):
    if not isinstance(value, bool):
        raise ValueError(f"true or false must be in place of {value!r:.40}")
    return value


def _finite(value):
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"a number must be in place of {value!r:.40}")
    return float(value)


# --- reading a folder ---


def is_export(path: str | os.PathLike) -> bool:
    """Whether a folder is an export, of any version. Web pages and others have manifests, too."""
    return _files_of_export(path) is not None


def other_files(path: str | os.PathLike) -> list[str]:
    """Names of what a folder holds besides the files of an export, if there is such a folder."""
    known = _files_of_export(path)
    own = set() if known is None else {MANIFEST, *known}
    return sorted({*os.listdir(path)} - own) if os.path.isdir(path) else []


def _files_of_export(path):
    """What the manifest of an export says of its files; None if the folder is no export."""
    try:
        with open(os.path.join(path, MANIFEST), "rb") as file:
            manifest = json.loads(file.read(_LARGEST_MANIFEST))
        if not str(manifest["format"]).startswith(_FAMILY):
            return None
        files = manifest.get("files")
        return files if isinstance(files, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, a dict whose `format`, `runtime` and `files` are checked."""
    if not folder.is_dir():
        raise FileNotFoundError(
            "`folder` must be a folder that `keras-sam export` wrote. Received: "
            f"{str(folder)!r}, and there is no such folder."
        )
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"`folder` must be one that `keras-sam export` wrote, with a {MANIFEST}. Received: "
            f"{str(folder)!r}, which has none."
        )
    with open(path, "rb") as file:
        content = file.read(_LARGEST_MANIFEST)
    try:
        manifest = json.loads(content)
        version = str(manifest["format"])
        manifest["runtime"], manifest["files"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, error) from error
    if not version.startswith(_FAMILY):
        raise _damaged(folder, f"its format is {version!r:.40}")
    if version != MANIFEST_FORMAT:
        raise ValueError(
            f"The export in {str(folder)!r} is of another version, {version!r:.40}: this version "
            f"of keras_sam reads {MANIFEST_FORMAT!r}. Export the model again."
        )
    if manifest["runtime"] not in tuple(_ENDINGS):  # which a list may be compared with
        raise ValueError(
            "`folder` must hold ONNX or OpenVINO files. Received: an export as "
            f"{manifest['runtime']!r:.40} in {str(folder)!r}. Export the model with format='onnx'."
        )
    settings = manifest.get("settings")
    choice = settings.get("multimask_output") if isinstance(settings, dict) else None
    if choice is not None:
        raise ValueError(
            "`folder` must hold a decoder that makes all masks. Received: one that was exported "
            f"with multimask_output={choice!r:.40} in {str(folder)!r}. Export the model without."
        )
    return manifest


def read_facts(folder: Path, manifest: dict) -> tuple[ModelFacts, ImageFraming]:
    """What a manifest says of its model, and how images come to the model's frame."""
    try:
        model = ModelFacts.read(manifest)
        converter = ImageFraming(**manifest["preprocessing"]["image_converter"])
        if (*converter.pad_size, converter.num_channels) != model.image_shape:
            raise ValueError("`image_converter` makes images of another size than the model takes")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise _damaged(folder, error) from error
    return model, converter


def _damaged(folder, reason):
    if isinstance(reason, KeyError):
        reason = f"it has no entry {reason}"
    return ValueError(
        f"The {MANIFEST} in {str(folder)!r} is damaged or something else ({str(reason):.200}). "
        "Export the model again."
    )


def checked_file(folder: Path, manifest: dict, name: str) -> Path:
    """The path of a part, whose files are those that were exported."""
    paths = [folder / f"{name}{ending}" for ending in _ENDINGS[manifest["runtime"]]]
    if (beside := f"{paths[0].name}.data") in manifest["files"]:  # of the largest models
        paths.append(folder / beside)
    for path in paths:
        about = manifest["files"].get(path.name)
        if not isinstance(about, dict) or not path.is_file():
            where = "is missing" if isinstance(about, dict) else f"is not in its {MANIFEST}"
            raise FileNotFoundError(
                f"The export in {str(folder)!r} is incomplete: {path.name} {where}. Export the "
                "model again, or copy the whole folder."
            )
        size = path.stat().st_size
        if size != about.get("bytes"):
            raise ValueError(
                f"{path.name} in {str(folder)!r} was changed or cut short: it has {size} bytes, "
                f"and had {about.get('bytes')} when it was exported. Copy the folder or export the "
                "model again."
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != about.get("sha256"):
            raise ValueError(
                f"{path.name} in {str(folder)!r} was changed after the export: its SHA-256 is "
                f"{digest[:12]}..., and was {str(about.get('sha256')):.12}... when it was "
                "exported. Copy the folder or export the model again."
            )
    return paths[0]


def check_parts(
    paths: Sequence[Path], encoder: Runtime, decoder: Runtime, model: ModelFacts
) -> None:
    """Raises unless the files take and give what their manifest says of them."""
    h, w, channels = model.image_shape
    taken = (
        {"image": (None, None, channels)} if model.takes_images else {"pixels": (1, channels, h, w)}
    )
    features = {name: (1, c, eh, ew) for name, (eh, ew, c) in model.features.items()}
    any_prompts = {
        "points": (1, None, None, 2),
        "labels": (1, None, None),
        "mask_prompts": (1, None, *model.mask_size),
        "mask_given": (1, None),
    }
    made = ("masks", "iou_pred", *model.extra_outputs)
    for path, run, inputs, outputs in (
        (paths[0], encoder, taken, features),
        (paths[1], decoder, {**features, **any_prompts}, made),
    ):
        found = {
            name: tuple(n if isinstance(n, int) else None for n in shape)
            for name, shape in run.inputs.items()
        }
        # A tensor may have more names, which are not in the manifest.
        wrong = {name for name, shape in inputs.items() if found.get(name) != shape}
        wrong |= set(outputs) - set(run.outputs)
        if wrong:
            raise ValueError(
                f"{path.name} in {str(path.parent)!r} is of another model than its {MANIFEST} "
                f"describes: they differ in {', '.join(sorted(wrong))}. Export the model again."
            )
