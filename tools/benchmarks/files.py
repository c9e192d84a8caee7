"""Checkpoints and ONNX files of one model with random weights, written when they are needed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.case import need
from benchmarks.sizes import SIZES, meta_code, random_meta

TOOLS = Path(__file__).resolve().parent.parent
PROMPTS = (1, 8, 64)  # of the decoder
# Below opset 17 there is no LayerNormalization, which runtimes have kernels for.
OPSET = 17


def need_file(job, name: str) -> str:
    """The path of a file of the run's model.

    Args:
        job: a `Job`.
        name: str. "sam.pth", as Meta's code saves it; "sam.safetensors", the same in that format;
            "transformers", a folder; "encoder.onnx"; "decoders", a folder with an ONNX file for
            each number of prompts; "sam2", a folder of ours with the tiny SAM 2.1;
            "sam2_transformers", the same for transformers; "mobile", "mobile.safetensors" and "hq",
            ours and MobileSAM's own of MobileSAM, and ours of SAM-HQ; "exported", the
            ONNX files of `keras_sam.export`, and "decoder.onnx", that of Meta's exporter.

    Raises:
        LeftOut: if something that writes it is not installed.
    """
    path = Path(job.folder) / job.size / name
    if not path.exists():
        need("torch", "segment_anything", *(["onnx"] if WRITERS[name] in EXPORTS else []))
        before = {"sam2_transformers": "sam2", "mobile.safetensors": "mobile"}.get(name, "sam.pth")
        if name != "sam.pth":
            need_file(job, before)
        write_apart(path, job)
    return str(path)


def write_apart(path: Path, job) -> None:
    """In a process of its own: a side that is measured must not hold what this takes."""
    words = [str(path), job.size, str(job.batch)]
    paths = [str(TOOLS.parent), os.environ.get("PYTHONPATH", "")]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.files", *words],
        check=True,
        cwd=TOOLS,
        stdout=sys.stderr,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def write(path: Path, size: str, batch: int) -> None:
    part = path.with_name(f"part-{path.name}")  # the name tells writers the format
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.name](part, path.parent / "sam.pth", size, batch)
    part.rename(path)


def write_checkpoint(path, _, size, batch):
    meta_code()
    import torch

    torch.manual_seed(0)
    torch.save(random_meta(size).state_dict(), path)


def write_safetensors(path, source, size, batch):
    import keras_sam

    keras_sam.presets.convert_checkpoint(str(source), str(path), "meta")


def write_transformers(path, source, size, batch):
    import keras_sam

    keras_sam.presets.convert_checkpoint(str(source), str(path), "transformers")


def write_sam2(path, _, size, batch):
    import keras_sam

    small = {"image_shape": (96, 96), "window_sizes": (4, 2, 6, 3)} if size == "quick" else {}
    model = keras_sam.SAM2ImageSegmenter.from_preset(
        "sam2.1_hiera_tiny", load_weights=False, **small
    )
    model.save_to_preset(path)


def write_sam2_transformers(path, source, size, batch):
    import keras_sam

    source = source.with_name("sam2")
    keras_sam.presets.convert_checkpoint(str(source), str(path), "transformers")


def write_mobile(path, _, size, batch):
    import keras_sam

    small = {"image_shape": (96, 96)} if size == "quick" else {}
    model = keras_sam.SAMImageSegmenter.from_preset("mobile_sam", load_weights=False, **small)
    model.save_to_preset(path)


def write_mobile_safetensors(path, source, size, batch):
    import keras_sam

    keras_sam.presets.convert_checkpoint(str(source.with_name("mobile")), str(path), "meta")


def write_hq(path, _, size, batch):
    import keras_sam

    small = {"image_shape": (96, 96)} if size == "quick" else {}
    name = "sam_hq_tiny" if size == "quick" else f"sam_hq_{size}"
    model = keras_sam.SAMHQImageSegmenter.from_preset(name, load_weights=False, **small)
    model.save_to_preset(path)


def write_encoder(path, source, size, batch):
    import torch

    model, sizes = _meta(source, size)
    pixels = torch.zeros((batch, 3, sizes.side, sizes.side))
    _export(model.image_encoder, (pixels,), path)


def write_decoders(path, source, size, batch):
    """Prompt encoder and mask decoder, without the way from the logits to the photograph."""
    import torch

    model, sizes = _meta(source, size)
    from segment_anything.utils.onnx import SamOnnxModel

    class Decoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sam = SamOnnxModel(model, return_single_mask=False)

        def forward(self, embeddings, points, labels):
            prompt_encoder = self.sam.model.prompt_encoder
            masks, scores = self.sam.mask_decoder.predict_masks(
                image_embeddings=embeddings,
                image_pe=prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=self.sam._embed_points(points, labels),
                dense_prompt_embeddings=prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1),
            )
            return masks[:, 1:], scores[:, 1:]

    path.mkdir()
    grid = sizes.side // sizes.patch
    for count in PROMPTS:
        points = torch.zeros((count, 2, 2))  # the click, and the padding that Meta's code adds
        labels = torch.tensor([[1.0, -1.0]]).repeat(count, 1)
        embeddings = torch.zeros((1, 256, grid, grid))
        _export(Decoder(), (embeddings, points, labels), path / f"{count}.onnx")


def write_decoder(path, source, size, batch):
    """Meta's decoder as its own exporter writes it, for any number of points."""
    import torch

    model, sizes = _meta(source, size)
    from segment_anything.utils.onnx import SamOnnxModel

    grid = sizes.side // sizes.patch
    inputs = {
        "image_embeddings": torch.zeros((1, 256, grid, grid)),
        "point_coords": torch.zeros((1, 5, 2)),
        "point_labels": torch.ones((1, 5)),
        "mask_input": torch.zeros((1, 1, 4 * grid, 4 * grid)),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([1500.0, 2250.0]),
    }
    with torch.no_grad():
        torch.onnx.export(
            SamOnnxModel(model, return_single_mask=False),
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
            opset_version=OPSET,
            dynamo=False,
        )


def write_exported(path, source, size, batch):
    import keras_sam

    keras_sam.export.export_model(str(source), path, "onnx")


def _meta(source, size):
    model = random_meta(size)
    import torch

    model.load_state_dict(torch.load(source, weights_only=True))
    return model.eval(), SIZES[size]


def _export(model, inputs, path):
    import torch

    names = [f"input_{i}" for i in range(len(inputs))]
    with torch.no_grad():
        # The exporter that needs nothing but onnx; the other one asks for onnxscript.
        torch.onnx.export(
            model, inputs, str(path), input_names=names, opset_version=OPSET, dynamo=False
        )


WRITERS = {
    "sam.pth": write_checkpoint,
    "sam.safetensors": write_safetensors,
    "transformers": write_transformers,
    "sam2": write_sam2,
    "sam2_transformers": write_sam2_transformers,
    "mobile": write_mobile,
    "mobile.safetensors": write_mobile_safetensors,
    "hq": write_hq,
    "encoder.onnx": write_encoder,
    "decoders": write_decoders,
    "decoder.onnx": write_decoder,
    "exported": write_exported,
}
EXPORTS = (write_encoder, write_decoders, write_decoder, write_exported)

if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
