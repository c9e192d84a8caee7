"""A folder of exported files: each written by the backend that can, checked, and described."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_sam import backends, converters, runtimes
from keras_sam.export import checking, graphs, processes
from keras_sam.exported.manifest import MANIFEST, MANIFEST_FORMAT, ModelFacts, other_files
from keras_sam.files import whole_folder
from keras_sam.framing import ImageFraming
from keras_sam.models import preset_models
from keras_sam.notices import notice
from keras_sam.preprocessing.converter import SAMImageConverter
from keras_sam.preprocessing.preprocessor import resizing_preprocessor

# Settings of an image converter that say how images are passed, and that a file does not have.
_OF_THE_INPUT = {"channel_order", "data_format", "value_range", "do_convert_rgb"}
# The backends that can write a format, the best first.
FORMATS = {
    "onnx": ("torch",),
    "openvino": ("torch",),
    "saved_model": ("tensorflow",),
    "litert": ("tensorflow",),
}
PRECISIONS = ("float32", "float16", "int8")
_STORED = {
    "onnx": PRECISIONS,
    "openvino": PRECISIONS[:2],
    "saved_model": PRECISIONS[:1],
    "litert": PRECISIONS[:2],
}


def export_model(
    model: Any,
    folder: str | os.PathLike,
    format: str = "onnx",
    *,
    image_input: bool | str = False,
    precision: str = "float32",
    opset: int = 20,
    multimask_output: bool | None = None,
    return_single_mask: bool = False,
    use_stability_score: bool = False,
    return_extra_metrics: bool = False,
) -> dict[str, Any]:
    """Writes a segmenter as files that run without Keras: image encoder and mask decoder.

    Every file is opened in its own runtime afterwards and compared with the segmenter. The folder
    appears when all is well, or not at all. A format that another backend writes is written by it,
    in a process of its own, if it is installed.

    * `image_encoder`: from `pixels`, float32 `(1, channels, H, W)`, normalised and padded with 0 as
      Meta's encoder takes them, to `image_embeddings` `(1, C, Eh, Ew)` and the encoder's other
      features by name.
    * `prompt_decoder`: from the features, and P prompts of N points in the model frame, `points`
      `(1, P, N, 2)`, `labels` int32 `(1, P, N)`, `mask_prompts` `(1, P, Lh, Lw)` and
      `mask_given` `(1, P)`, to `masks` `(1, P, K, Lh, Lw)` and `iou_pred` `(1, P, K)`. A box is
      two points with the labels 2 and 3; where there are points and no box, a point with label -1
      follows.
    * `mask_decoder`, in ONNX and OpenVINO: Meta's, by its names, shapes and meaning, for other
      programs that use SAM: from `image_embeddings`, `point_coords` `(1, N, 2)`, `point_labels`
      `(1, N)`, `mask_input` `(1, 1, Lh, Lw)`, `has_mask_input` `(1,)` and `orig_im_size` `(2,)` to
      `masks` `(1, K, H0, W0)`, `iou_predictions` `(1, K)` and `low_res_masks` `(1, K, Lh, Lw)`.

    Args:
        model: a `SAMImageSegmenter`, or what `from_preset` takes.
        folder: path of the folder to write. One that an earlier export wrote is replaced.
        format: `"onnx"`, `"openvino"`, `"saved_model"` or `"litert"`.
        image_input: bool. The encoder takes the image itself, `image`, uint8 `(H0, W0, channels)`,
            and scales, normalises and pads it. `"float32"` likewise with an image of that dtype, as
            AnyLabeling and samexporter pass it. Only for ONNX and OpenVINO.
        precision: `"float32"`; `"float16"` or `"int8"`, in which the weights are stored: half or a
            quarter of the size. Numbers are computed in float32 all the same, whatever the model's
            dtype policy. int8 only in ONNX, a
            SavedModel only in float32.
        opset: int, ONNX's operator set, at least 18.
        multimask_output: optional bool. Which masks `prompt_decoder` (of a SavedModel, `decode` and
            `segment`) makes: True the candidates for ambiguous prompts alone, False mask 0 alone;
            by default all of them, mask 0 first, of which the caller takes some.
        return_single_mask: bool. Meta's option of the same name: `mask_decoder` gives one mask,
            mask 0 for more than two points, the best of the others for fewer.
        use_stability_score: bool. Likewise: scores are the stability of the masks.
        return_extra_metrics: bool. Likewise: it also gives `stability_scores` and `areas`.

    Returns:
        Dict, the folder's `manifest.json`: the model's sizes and preprocessing, the files with
        their inputs, outputs and SHA-256, and how far each was off when it was checked.

    Raises:
        ValueError: if an argument is not usable.
        ImportError: if what the format needs is not installed; the message says how to install it.
        RuntimeError: if a file gives other results than the segmenter.
        OSError: if the folder cannot be written, or holds other files.

    Example:

    ```python
    manifest = keras_sam.export.export_model(tiny_segmenter, "exported")
    manifest["files"]["image_encoder.onnx"]["inputs"]  # {"pixels": [1, 3, H, W]}
    ```
    """
    _check_choice("format", format, tuple(FORMATS))
    _check_choice("precision", precision, PRECISIONS)
    check_opset(opset)
    if image_input not in (True, False, "uint8", "float32"):
        raise ValueError(
            "`image_input` must be True, False, or the image's dtype, 'uint8' or 'float32'. "
            f"Received: image_input={image_input!r}."
        )
    image_input = True if image_input == "uint8" else image_input
    is_onnx = format in ("onnx", "openvino")
    if image_input and not is_onnx:
        raise ValueError(
            "`image_input` is possible with the formats 'onnx' and 'openvino'. "
            f"Received: format={format!r}."
        )
    if precision not in _STORED[format]:
        raise ValueError(
            f"`precision` must be one of {_STORED[format]} for format={format!r}. "
            f"Received: precision={precision!r}."
        )
    if multimask_output not in (None, True, False):
        raise ValueError(
            "`multimask_output` must be True, False, or None for all masks. "
            f"Received: multimask_output={multimask_output!r}."
        )
    settings = {
        "image_input": image_input,
        "precision": precision,
        "opset": opset,
        "multimask_output": multimask_output,
        "return_single_mask": return_single_mask,
        "use_stability_score": use_stability_score,
        "return_extra_metrics": return_extra_metrics,
    }
    if backends.NAME not in FORMATS[format]:
        task = {"folder": os.path.abspath(folder), "format": format, **settings}
        processes.run_with(FORMATS[format], format, model, export_model, task)
        return json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    if others := other_files(folder):
        raise FileExistsError(
            f"`{folder}` holds other files, such as {others[0]!r}, and writing would replace them. "
            "Choose a new folder."
        )
    segmenter = in_float32(_loaded(model))
    if image_input:
        _check_scaling(segmenter)
    with whole_folder(folder, replaceable=MANIFEST) as temporary:
        files = _WRITERS[format](segmenter, temporary, settings)
        manifest = {
            "format": MANIFEST_FORMAT,
            **_plain(_facts(segmenter, format, settings)),
            "files": {name: _described(temporary, name, about) for name, about in files.items()},
        }
        text = json.dumps(manifest, indent=2)
        (temporary / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def _loaded(model):
    if not isinstance(model, (str, os.PathLike)):
        return model
    from keras_sam.models.sam_image_segmenter import SAMImageSegmenter

    return SAMImageSegmenter.from_preset(model)


def in_float32(segmenter: Any) -> Any:
    """The segmenter, or one with its weights that computes in float32, as the files do."""
    backbone = segmenter.backbone
    if all(getattr(backbone, name).compute_dtype == "float32" for name in converters.PARTS):
        return segmenter
    made = type(backbone).from_loaded_preset(preset_models.in_memory(backbone), "float32")
    return type(segmenter)(
        made,
        segmenter.preprocessor,
        mask_threshold=segmenter.mask_threshold,
        generator_settings=segmenter.generator_settings,
        dtype="float32",
    )


def check_float32(encoder: Any) -> None:
    """Raises unless an image encoder computes in float32, as the files do."""
    if encoder.compute_dtype != "float32":
        raise ValueError(
            "An image encoder alone is exported in float32. Received: one that computes in "
            f"{encoder.compute_dtype}. Load it with `from_preset(..., dtype='float32')`."
        )


def _check_scaling(segmenter):
    """Raises where images are not brought to the frame as the graphs do it."""
    framings = (segmenter.preprocessor, segmenter.default_preprocessor(segmenter.backbone))
    own, usual = (getattr(x, "image_converter", None) for x in framings)
    if not isinstance(own, ImageFraming):
        return
    own, usual = own.settings(), usual.settings()
    others = {name for name in own if own[name] != usual[name]} - _OF_THE_INPUT
    if others:
        raise ValueError(
            "`image_input` needs images that are scaled and padded as by the model's default "
            f"preprocessor. Received: an image converter with other {sorted(others)}. Export "
            "without `image_input`."
        )


def check_opset(opset: int) -> None:
    """Raises unless the operator set has what the graphs need."""
    if opset < 18:
        raise ValueError(
            f"`opset` must be at least 18, which the encoder's steps need. Received: opset={opset}."
        )


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={value!r}.")


# --- formats ---


def _write_onnx(segmenter, folder, settings):
    import_onnx()
    from keras_sam.export import onnx_graphs

    files = {}
    for name, make, check in _onnx_parts(segmenter, settings):
        path = folder / f"{name}.onnx"
        files.update({file: {} for file in onnx_graphs.save(make(), path)})
        run = runtimes.OnnxRuntime(path)
        files[path.name] = {
            "inputs": run.inputs, "outputs": run.outputs, "differences": check(run)
        }  # fmt: skip
    return files


def _write_openvino(segmenter, folder, settings):
    import_onnx()
    files = {}
    for name, make, check in _onnx_parts(segmenter, settings, "float32"):
        path = folder / f"{name}.xml"
        half = settings["precision"] == "float16"
        about = save_openvino(make(), path, half)
        files[path.name] = {**about, "differences": check(runtimes.OpenVino(path))}
        files[f"{name}.bin"] = {}
    return files


def save_openvino(model: Any, path: Path, half: bool = False) -> dict[str, Any]:
    """Writes an ONNX model as OpenVINO's IR; returns its inputs and outputs."""
    try:
        import openvino
    except ImportError as error:
        raise ImportError(
            'Exporting to openvino needs it: pip install "keras-sam[openvino,torch,export]"'
        ) from error
    from keras_sam.export import onnx_graphs

    # On Windows, files that a runtime has mapped cannot be removed yet.
    with tempfile.TemporaryDirectory(prefix="keras_sam_", ignore_cleanup_errors=True) as place:
        between = Path(place) / "model.onnx"
        onnx_graphs.save(model, between)
        converted = openvino.convert_model(between)
        _keep_names(converted.inputs, model.graph.input)
        _keep_names(converted.outputs, model.graph.output)
        openvino.save_model(converted, os.fspath(path), compress_to_fp16=half)
    return {
        "inputs": {x.get_any_name(): str(x.partial_shape) for x in converted.inputs},
        "outputs": [x.get_any_name() for x in converted.outputs],
    }


def _keep_names(ports, named):
    """Where a step does nothing, OpenVINO gives a tensor the names of both of its ends."""
    for port, value in zip(ports, named, strict=True):
        port.get_tensor().set_names({value.name})


def _onnx_parts(segmenter, settings, stored_in=None):
    """For each file its name, a function that makes the ONNX model, and one that checks it.

    `stored_in` is the precision of the ONNX model's weights, where it is not the settings'.
    """
    from keras_sam.export import onnx_graphs, onnx_steps

    opset, precision = settings["opset"], settings["precision"]
    plan = _plan(segmenter)

    def stored(model):
        return onnx_graphs.with_stored_weights(model, stored_in or precision)

    def encoder():
        model = onnx_graphs.trace(graphs.ImageEncoderGraph(segmenter), opset)
        if dtype := settings["image_input"]:
            of = "uint8" if dtype is True else dtype
            model = onnx_steps.with_image_input(model, plan, opset, of)
        return stored(model)

    yield (
        "image_encoder",
        encoder,
        lambda run: checking.check_encoder(run, segmenter, settings["image_input"], precision),
    )
    graph = graphs.PromptDecoderGraph(segmenter, settings["multimask_output"])
    all_masks = onnx_graphs.trace(graphs.PromptDecoderGraph(segmenter), opset)
    some_masks = all_masks
    if graph.multimask_output is not None:
        some_masks = onnx_graphs.trace(graph, opset)
    yield (
        "prompt_decoder",
        lambda: stored(copy.deepcopy(some_masks)),
        lambda run: checking.check_decoder(run, graph, segmenter, precision),
    )
    names = ("return_single_mask", "use_stability_score", "return_extra_metrics")
    options = {name: settings[name] for name in names}

    def metas():
        threshold = segmenter.mask_threshold
        return stored(
            onnx_steps.as_metas_decoder(all_masks, plan, opset, mask_threshold=threshold, **options)
        )

    yield "mask_decoder", metas, lambda run: checking.check_metas(run, segmenter, settings)


def import_onnx() -> None:
    """Raises an ImportError with the remedy unless everything is there to write ONNX files."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            raise ImportError(
                f'Exporting to ONNX needs {name}: pip install "keras-sam[torch,export]"'
            ) from error


def _write_saved_model(segmenter, folder, settings):
    from keras_sam.export import tensorflow_graphs

    return tensorflow_graphs.write_saved_model(segmenter, folder, settings)


def _write_litert(segmenter, folder, settings):
    from keras_sam.export import tensorflow_graphs

    return tensorflow_graphs.write_litert(segmenter, folder, settings)


_WRITERS: dict[str, Callable] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "saved_model": _write_saved_model,
    "litert": _write_litert,
}


# --- the manifest ---


def _plan(segmenter):
    mean, std = graphs.pixel_statistics(segmenter)
    converter = resizing_preprocessor(segmenter).image_converter
    return {
        "frame": tuple(segmenter.image_shape[:2]),
        "stretch": bool(getattr(converter, "stretch", False)),
        "mean": mean.tolist(),
        "std": std.tolist(),
    }


def _facts(segmenter, format, settings):
    from keras_sam import __version__

    plan = _plan(segmenter)
    return {
        "keras_sam": __version__,
        "runtime": format,
        "settings": settings,
        "model": model_facts(segmenter),
        "preprocessing": {
            "pixel_mean": plan["mean"],
            "pixel_std": plan["std"],
            "stretch": plan["stretch"],
            "resample": "bilinear, antialiased",
            "padding": "right and bottom, 0 after normalisation",
            "image_converter": _image_settings(segmenter),
        },
    }


def model_facts(segmenter: Any) -> dict[str, Any]:
    """What the manifest says of a model: `ModelFacts.of`, with the features that its files have."""
    facts, features = ModelFacts.of(segmenter), graphs.feature_shapes(segmenter)
    if set(features) != set(facts["features"]):  # they depend on some of the decoder's weights
        weights = segmenter.mask_decoder.feature_weights()
        arrays = [keras.ops.convert_to_numpy(v.value).tobytes() for v in weights]
        fingerprint = b"".join([facts["fingerprint"].encode(), *arrays])
        facts["fingerprint"] = hashlib.blake2b(fingerprint, digest_size=16).hexdigest()
    return {**facts, "features": {name: list(shape) for name, shape in features.items()}}


def _image_settings(segmenter):
    """The arguments of its image converter; a class of the user's own is not written."""
    converter = resizing_preprocessor(segmenter).image_converter
    if type(converter) is not SAMImageConverter:
        notice(
            "Exported files have no code of yours: where they are used, images are scaled and "
            f"padded by a `SAMImageConverter`, not by a {type(converter).__name__}."
        )
    if not isinstance(converter, ImageFraming):
        converter = segmenter.default_preprocessor(segmenter.backbone).image_converter
    return converter.settings()


def _described(folder, name, about):
    path = folder / name
    if path.is_dir():
        parts = sorted(p for p in path.rglob("*") if p.is_file())
        digest = hashlib.sha256()
        for part in parts:
            digest.update(str(part.relative_to(path)).encode())
            digest.update(part.read_bytes())
        size, sha256 = sum(p.stat().st_size for p in parts), digest.hexdigest()
    else:
        size = path.stat().st_size
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {**_plain(about), "bytes": size, "sha256": sha256}


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
