"""Exported models behind the interface of a segmenter, without Keras and without its backends."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_sam.encode_decode import EncodesAndDecodes, with_prompt_info
from keras_sam.exported.manifest import (
    DECODER,
    ENCODER,
    ModelFacts,
    check_parts,
    checked_file,
    read_facts,
    read_manifest,
)
from keras_sam.framing import ImageFraming
from keras_sam.outputs import check_choice
from keras_sam.prompts import Prompts
from keras_sam.prompts.canonical import chunks
from keras_sam.runtimes import OnnxRuntime, OpenVino, Runtime

_RUNTIMES = ("onnxruntime", "openvino")
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # and OpenVINO's names


class ExportedSegmenter(EncodesAndDecodes):
    """A model that was exported, in ONNX Runtime or OpenVINO: for predictor and mask generator.

    It needs neither Keras nor one of its backends, and imports neither. `encode` and `decode` are
    those of `SAMImageSegmenter`, with the same numbers. It cannot be trained.

    `ExportedSegmenter.load(folder)` makes one. Threads may share it.

    Args:
        model: `ModelFacts`, what the manifest says of the model.
        image_converter: `ImageFraming`, how images come to the model's frame.
        encoder: the image encoder in its runtime.
        decoder: the prompt decoder in its runtime.
        runtime: str, the runtime's name.
        computes_in: str, the precision of its numbers; `model.precision` is that of the weights.
        files_hash: optional str, a hash of all files of the export.

    Example:

    ```python
    keras_sam.export.export_model(tiny_segmenter, "exported")
    exported = keras_sam.ExportedSegmenter.load("exported")
    predictor = keras_sam.SAMPredictor(exported)
    predictor.set_image(image)
    masks, scores, logits = predictor.predict(points=[[45, 30]], labels=[1])
    ```
    """

    prompt_chunk = 8

    def __init__(
        self,
        model: ModelFacts,
        image_converter: ImageFraming,
        encoder: Runtime,
        decoder: Runtime,
        runtime: str = "onnxruntime",
        computes_in: str = "float32",
        files_hash: str | None = None,
    ):
        self.image_shape = model.image_shape
        self.mask_size = model.mask_size
        self.feature_shapes = model.features
        self.num_mask_tokens = model.num_masks
        self.mask_threshold = model.mask_threshold
        self.largest_prompt_logit = model.largest_prompt_logit
        self.generator_settings = model.generator_settings
        self.preprocessor = ExportedPreprocessor(image_converter, model.mask_size)
        self.runtime = runtime
        self.precision = model.precision
        self.computes_in, self.files_hash = computes_in, files_hash
        self._fingerprint = model.fingerprint
        self._programs = _Programs(model, encoder, decoder)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        *,
        runtime: str | None = None,
        providers: Sequence[Any] | None = None,
        precision: str = "float32",
        threads: int = 0,
    ) -> ExportedSegmenter:
        """Loads a folder that `keras-sam export` or `export_model` wrote as ONNX or OpenVINO files.

        Every file is compared with its hash in the manifest first.

        Args:
            folder: path of the folder.
            runtime: optional `"onnxruntime"` or `"openvino"`, which runs ONNX files, too. Defaults
                to the one that the files were written for.
            providers: optional sequence of ONNX Runtime's execution providers, the preferred first:
                names such as `"CUDAExecutionProvider"`, `"CoreMLExecutionProvider"` or
                `"DmlExecutionProvider"`, or pairs of a name and a dict of its options. Defaults to
                the processor.
            precision: `"float32"` or, in OpenVINO, `"bfloat16"`: what is computed in.
            threads: int. Threads of an operation; 0 is the runtime's own choice.

        Returns:
            An `ExportedSegmenter`.

        Raises:
            FileNotFoundError: if the folder, its manifest or a file is missing.
            ValueError: if the folder is of another version, damaged or changed since it was
                exported, an argument is not usable, or the runtime cannot run the files.
            ImportError: if the runtime is not installed; the message says how to install it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        format = manifest["runtime"]
        if runtime not in (None, *_RUNTIMES):
            raise ValueError(f"`runtime` must be one of {_RUNTIMES}. Received: {runtime!r}.")
        runtime = runtime or ("openvino" if format == "openvino" else "onnxruntime")
        if format == "openvino" and runtime != "openvino":
            raise ValueError(
                "`runtime` must be 'openvino' for OpenVINO's files. Received: "
                f"runtime={runtime!r} for {str(folder)!r}. Export the model with format='onnx'."
            )
        if precision not in _PRECISIONS or (precision != "float32" and runtime != "openvino"):
            raise ValueError(
                "`precision` must be 'float32', or 'bfloat16' in OpenVINO. Received: "
                f"precision={precision!r}, runtime={runtime!r}."
            )
        if providers is not None and runtime != "onnxruntime":
            raise ValueError(
                "`providers` are ONNX Runtime's. Received: "
                f"providers={providers!r:.80}, runtime={runtime!r}."
            )
        model, converter = read_facts(folder, manifest)
        paths = [checked_file(folder, manifest, name) for name in (ENCODER, DECODER)]
        if runtime == "openvino":
            options = {"precision": _PRECISIONS[precision], "threads": threads}
            encoder = OpenVino(paths[0], **options)
            decoder = OpenVino(paths[1], **options, fixed_shapes=True)
        else:
            options = {"providers": providers, "threads": threads}
            encoder, decoder = (OnnxRuntime(path, **options) for path in paths)
        check_parts(paths, encoder, decoder, model)
        if read_manifest(folder) != manifest:
            raise ValueError(
                f"The export in {str(folder)!r} was replaced meanwhile. Load it again."
            )
        if model.takes_images:
            converter.pad_value = math.nan  # which says where an image ends
        hashes = sorted((name, about["sha256"]) for name, about in manifest["files"].items())
        files_hash = hashlib.blake2b(repr(hashes).encode(), digest_size=16).hexdigest()
        return cls(model, converter, encoder, decoder, runtime, precision, files_hash)

    def predicting_preprocessor(self, preprocessor: Any = None) -> Any:
        """The preprocessor for images of any size: the given one if it fits, or its own."""
        if preprocessor is None:
            return self.preprocessor
        converter = preprocessor.image_converter
        made = (*converter.pad_size, converter.num_channels)
        if made != self.image_shape:
            raise ValueError(
                f"`preprocessor` must make images {self.image_shape} for this model. Received: "
                f"images {made}. Give its converter `size` and `num_channels`."
            )
        return preprocessor

    def encoder_fingerprint(self) -> str:
        """The hash of the model's image encoder, see `ViTDetBackbone.fingerprint`."""
        return self._fingerprint

    def progress_bar(self, total: int, unit: str) -> Callable[[int], Any]:
        """Shows how many of `total` units are done, on stderr; what is returned advances it."""
        done = 0

        def advance(units: int) -> None:
            nonlocal done
            done += units
            sys.stderr.write(f"\r{unit} {done}/{total}" + ("\n" if done >= total else ""))
            sys.stderr.flush()

        return advance


@dataclasses.dataclass(frozen=True)
class ExportedPreprocessor:
    """What an exported model has in place of a `SAMImageSegmenterPreprocessor`."""

    image_converter: ImageFraming
    mask_size: tuple[int, int]


# --- running ---


class _Programs:
    """`models.programs.Programs` of exported files: arrays are channels first in there."""

    def __init__(self, model, encoder, decoder):
        self._model, self._encoder, self._decoder = model, encoder, decoder

    def encode(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Images `(B, H, W, channels)` to the encoder's features by name."""
        encoded = [self._encode_one(image) for image in np.asarray(images, "float32")]
        return {name: np.concatenate([x[name] for x in encoded]) for name in self._model.features}

    def _encode_one(self, image):
        if self._model.takes_images:
            # What is scaled already needs no scaling, and the encoder itself pads it.
            height, width = (
                np.count_nonzero(~np.isnan(x)) for x in (image[:, 0, 0], image[0, :, 0])
            )
            image = np.rint(image[:height, :width])
            inputs = {"image": np.clip(image, 0, 255).astype("uint8")}
        else:
            pixels = (image - self._model.pixel_mean) / self._model.pixel_std
            inputs = {"pixels": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}
        outputs = self._encoder(inputs)
        # Views: the decoder gets them back without a copy.
        return {name: outputs[name].transpose(0, 2, 3, 1) for name in self._model.features}

    def decode(
        self,
        features: dict[str, np.ndarray],
        prompts: Prompts,
        chunk: int,
        multimask_output: bool | None = None,
    ) -> dict[str, np.ndarray]:
        """As `models.programs.Programs.decode`."""
        check_choice(multimask_output, self._model.num_masks)
        if not prompts.num_sets:
            return self._decode_nothing(prompts, multimask_output)
        of_images = []
        for i in range(len(prompts.labels)):
            image = {
                name: np.ascontiguousarray(x[i : i + 1].transpose(0, 3, 1, 2))
                for name, x in features.items()
            }
            parts = [
                self._model.choose(self._decode_some(image, part, i, sets), multimask_output)
                for sets, part in chunks(prompts, chunk, self._decoder.fixed_shapes)
            ]
            of_images.append(_joined(parts, axis=1))
        return with_prompt_info(_joined(of_images, axis=0), prompts)

    def _decode_some(self, image, prompts, i, sets):
        """The outputs for a chunk of prompt sets, without its padding."""
        count = prompts.labels.shape[1]
        masks = np.zeros((1, count, *self._model.mask_size), "float32")
        given = np.zeros((1, count), "float32")
        zeros = ("mask_prompts", "mask_given")
        if prompts.mask_given.shape[1]:
            masks[0], given[0] = prompts.masks[i, ..., 0], prompts.mask_given[i]
            zeros = ()
        outputs = self._decoder(
            {
                **image,
                "points": np.asarray(prompts.points[i : i + 1], "float32"),
                "labels": np.asarray(prompts.labels[i : i + 1], "int32"),
                "mask_prompts": masks,
                "mask_given": given,
            },
            zeros,
        )
        names = ("masks", "iou_pred", *self._model.extra_outputs)
        return {name: outputs[name][:, : sets.stop - sets.start] for name in names}

    def _decode_nothing(self, prompts, multimask_output):
        shape = prompts.labels.shape[:2]
        outputs = {
            "masks": np.zeros((*shape, self._model.num_masks, *self._model.mask_size), "float32"),
            "iou_pred": np.zeros((*shape, self._model.num_masks), "float32"),
            **{name: np.zeros(shape, "float32") for name in self._model.extra_outputs},
        }
        return with_prompt_info(self._model.choose(outputs, multimask_output), prompts)

    def inspect(self, *_: Any, **__: Any) -> dict:
        raise ValueError(
            "`return_hidden_states` and `return_attentions` need the model in Keras: exported "
            "files have its features alone."
        )

    def inspect_decoder(self, *_: Any, **__: Any) -> dict:
        raise ValueError(
            "`attention_similarity`, `target_embedding` and `return_attentions` need the model in "
            "Keras: exported files have no such inputs and outputs."
        )


def _joined(parts, axis):
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}
