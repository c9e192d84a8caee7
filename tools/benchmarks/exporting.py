"""The files of `keras_sam.export` beside Meta's model as ONNX, each in the same runtime."""

from functools import partial

from benchmarks import models
from benchmarks.case import Case, Job, Side, need
from benchmarks.decoding import embedding
from benchmarks.encoding import facts
from benchmarks.files import need_file

CLICKS = 64


def export_encoder(job: Job) -> Case:
    """One image, normalised and padded, to its embedding."""
    files = {"ours": "exported/image_encoder.onnx", "Meta's": "encoder.onnx"}
    sides = {}
    # ONNX Runtime keeps what a run needed for the next one.
    for who, file in files.items():
        side = Side(partial(encode, job, models.onnxruntime_program, file), restart=True)
        sides[f"{who} in ONNX Runtime, float32"] = side
    for precision in models.PRECISIONS:
        for who, file in files.items():
            load = partial(models.openvino_program, precision=precision)
            sides[f"{who} in OpenVINO, {precision}"] = Side(partial(encode, job, load, file))
    side = models.SIZES[job.size].side
    about = f"one image of {side} x {side} through the exported {job.size} encoder"
    return Case(about, sides, repeats=3)


def encode(job, load, file, shared):
    program, pixels = load(_path(job, file)), models.pixel_values(job)
    return lambda: facts(program(pixels)[0])


def export_decoder(job: Job) -> Case:
    """Clicks one at a time, to all masks in the photograph's size; ours also all at once."""
    sides = {}
    runtimes = {
        "ONNX Runtime": models.onnxruntime_program,
        "OpenVINO": partial(models.openvino_program, precision="float32"),
    }
    for name, load in runtimes.items():
        for who, file in {"ours": "exported/mask_decoder.onnx", "Meta's": "decoder.onnx"}.items():
            sides[f"{who} in {name}"] = Side(partial(decode, job, load, file))
        sides[f"ours in {name}, {CLICKS} at once, without the photograph's size"] = Side(
            partial(decode_at_once, job, load)
        )
    height, width = models.photo_size(job)
    about = f"{CLICKS} clicks in a photograph of {height} x {width}, by the exported decoder"
    return Case(about, sides, repeats=3, variants={"": CLICKS}, unit="ms per click")


def decode(job, load, file, shared):
    import numpy as np

    program = load(_path(job, file))
    side = models.SIZES[job.size].side
    size = np.float32(models.photo_size(job))
    rest = (np.zeros((1, 1, side // 4, side // 4), "float32"), np.zeros(1, "float32"), size)
    labels = np.float32([[1, -1]])
    embeddings, clicks = embedding(job), _clicks(job)

    def run():
        found = 0.0
        for click in clicks:
            points = np.stack([click, np.zeros_like(click)])[None]
            masks, scores, low = program(embeddings, points, labels, *rest)
            found += float(low.std())
        return {"deviation": found / len(clicks)}

    return run


def decode_at_once(job, load, shared):
    import numpy as np

    program = load(_path(job, "exported/prompt_decoder.onnx"))
    side = models.SIZES[job.size].side
    clicks = _clicks(job)
    points = np.stack([clicks, np.zeros_like(clicks)], axis=1)[None]
    labels = np.tile(np.int32([1, -1]), (1, len(clicks), 1))
    rest = (
        np.zeros((1, len(clicks), side // 4, side // 4), "float32"),
        np.zeros((1, len(clicks)), "float32"),
    )
    embeddings = embedding(job)

    def run():
        masks = program(embeddings, points, labels, *rest)[0]
        return {"deviation": sum(float(low.std()) for low in masks[0]) / len(clicks)}

    return run


def export_predictor(job: Job) -> Case:
    """The predictor on exported files, beside the same predictor on our model in Keras."""
    sides = {}
    for runtime in ("openvino", "onnxruntime"):
        sides[f"exported, in {runtime}"] = Side(partial(predict_exported, job, runtime))
    in_keras = Side(partial(predict_in_keras, job), models.precision_of("float32"))
    sides[f"Keras on {job.backend}"] = in_keras
    height, width = models.photo_size(job)
    about = f"a photograph of {height} x {width}: `set_image`, and three masks of a click"
    return Case(about, sides, repeats=3, variants={"set_image": 1, "click": 1})


def predict_exported(job, runtime, shared):
    need(runtime)
    import keras_sam

    exported = keras_sam.ExportedSegmenter.load(need_file(job, "exported"), runtime=runtime)
    return _predictor_runs(job, exported)


def predict_in_keras(job, shared):
    return _predictor_runs(job, models.ours(job, "float32"))


def _predictor_runs(job, segmenter):
    import keras_sam

    predictor, photo = keras_sam.SAMPredictor(segmenter), models.photograph(job)

    def encode():
        predictor.set_image(photo)
        return {"result": float(predictor.image_embeddings.max())}

    def click():
        height, width = photo.shape[:2]
        masks = predictor.predict(points=[[width // 2, 3 * height // 5]], labels=[1])[0]
        return {"result": int(masks.sum())}

    return {"set_image": encode, "click": click}


def _clicks(job):
    """In the model's frame, float32 `(CLICKS, 2)`."""
    import numpy as np

    side = models.SIZES[job.size].side
    return np.random.default_rng(1).uniform(0, side, (CLICKS, 2)).astype("float32")


def _path(job, file):
    folder, _, name = file.partition("/")
    path = need_file(job, folder)
    return f"{path}/{name}" if name else path
