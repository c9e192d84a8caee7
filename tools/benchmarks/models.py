"""The models of all sides, with the same random weights, and their inputs."""

import functools

from benchmarks.case import LeftOut, need
from benchmarks.files import need_file
from benchmarks.sizes import PIXEL_MEAN, PIXEL_STD, SIZES, random_meta

PHOTO = (1200, 1800)
QUICK_PHOTO = (150, 225)
PRECISIONS = ("float32", "bfloat16")


def photo_size(job):
    return QUICK_PHOTO if job.quick else PHOTO


def photograph(job):
    from tests.tiny import photograph

    return photograph(photo_size(job))


def frames(job):
    """Images that fill the model's frame, float32 `(B, H, W, 3)`, 0..255."""
    import numpy as np

    side = SIZES[job.size].side
    return np.random.default_rng(0).uniform(0, 255, (job.batch, side, side, 3)).astype("float32")


def pixel_values(job):
    """The same as all but ours are given them: float32 `(B, 3, H, W)`, normalised."""
    import numpy as np

    mean, std = np.float32(PIXEL_MEAN), np.float32(PIXEL_STD)
    return np.ascontiguousarray(((frames(job) - mean) / std).transpose(0, 3, 1, 2))


# --- ours ---


def ours(job, precision=None, file="sam.pth", **settings):
    """Our segmenter, on the backend of this process.

    OpenVINO gets its precision from `precision_of`, all others by their dtype policy.
    """
    import keras_sam

    dtype = None if job.backend == "openvino" else precision
    path = need_file(job, file)
    return keras_sam.SAMImageSegmenter.from_preset(path, dtype=dtype, **settings)


def precision_of(precision):
    """The environment variables of a side of ours that computes in this format."""
    return {"KERAS_SAM_OPENVINO_PRECISION": precision}


# --- Meta's code and its ONNX files ---


def meta(job, side=None):
    """Meta's model with the weights of the file, as far as they fit the frame."""
    model = random_meta(job.size, side)
    import torch

    state = torch.load(need_file(job, "sam.pth"), weights_only=True)
    own = model.state_dict()
    # Tables of positions start at zero and stay so in the file: nothing is lost.
    model.load_state_dict({k: v if v.shape == own[k].shape else own[k] for k, v in state.items()})
    return model.eval().to(torch_device())


def torch_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def openvino_program(path, precision):
    """A function from arrays to arrays: an ONNX file that OpenVINO has compiled."""
    need("openvino")
    import numpy as np
    import openvino

    hint = {"float32": "f32", "bfloat16": "bf16"}[precision]
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(*arrays):
        request.infer(list(arrays), share_inputs=True)
        return [np.array(output.data) for output in request.output_tensors]

    return run


def onnxruntime_program(path):
    """The same in ONNX Runtime."""
    need("onnxruntime")
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays)))


# --- transformers and KerasHub ---


def transformers(job, precision):
    """`SamModel` with scaled-dot-product attention and the weights of the file."""
    need("torch", "transformers")
    path = need_file(job, "transformers")
    import torch
    from transformers import SamModel

    settings = {"dtype": getattr(torch, precision), "attn_implementation": "sdpa"}
    return SamModel.from_pretrained(path, **settings).eval().to(torch_device())


def keras_hub_encoder(job, precision):
    """KerasHub's image encoder, with random weights."""
    import keras

    if keras.backend.backend() == "openvino":
        import openvino

        # Keras compiles without a hint, which is bfloat16 wherever the processor has it.
        hint = {"INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision]}
        openvino.compile_model = functools.partial(openvino.compile_model, config=hint)
        precision = "float32"
    try:
        import keras_hub
    except ImportError as error:
        raise LeftOut(f"{job.keras_hub} has no keras_hub that can be imported: {error}") from None
    # Its layers do not hear of the model's own `dtype`.
    keras.config.set_dtype_policy(precision)
    sizes = SIZES[job.size]
    return keras_hub.models.ViTDetBackbone(
        hidden_size=sizes.width,
        num_layers=sizes.depth,
        intermediate_dim=4 * sizes.width,
        num_heads=sizes.heads,
        global_attention_layer_indices=list(sizes.whole),
        image_shape=(sizes.side, sizes.side, 3),
        patch_size=sizes.patch,
        window_size=sizes.window,
    )
