"""The time before the first image: importing the package, and loading weights."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from benchmarks import models
from benchmarks.case import Case, Job, Side, need
from benchmarks.files import need_file
from benchmarks.sizes import meta_code
from benchmarks.worker import ROOT

PTH, SAFETENSORS = "sam.pth", "sam.safetensors"


def load(job: Job) -> Case:
    """From a file that the system has in memory to a model, beside reading the file's bytes."""
    sides = {
        "ours": ours,
        "the file's bytes": read_bytes,
        "Meta": meta,
        "transformers": transformers,
    }
    return Case(
        f"the {job.size} model from a file",
        {name: Side(partial(prepare, job)) for name, prepare in sides.items()},
        variants={PTH: 1, SAFETENSORS: 1},
    )


def ours(job, shared):
    import keras_sam

    load = keras_sam.SAMImageSegmenter.from_preset  # by now Keras is imported, too

    def run(path):
        return weights(load(path).count_params())

    return {name: partial(run, need_file(job, name)) for name in (PTH, SAFETENSORS)}


def read_bytes(job, shared):
    def run(path):
        return weights(len(Path(path).read_bytes()) // 4)

    return {name: partial(run, need_file(job, name)) for name in (PTH, SAFETENSORS)}


def meta(job, shared):
    meta_code()
    return {PTH: lambda: weights(_torch_weights(models.meta(job)))}


def transformers(job, shared):
    need("torch", "transformers")
    from transformers import SamModel  # noqa: F401 - which takes seconds

    return {SAFETENSORS: lambda: weights(_torch_weights(models.transformers(job, "float32")))}


def _torch_weights(model):
    return sum(values.numel() for values in model.state_dict().values())


def weights(count):
    return {"million weights": round(count / 1e6, 1)}


# Timed inside: what it takes to start Python does not count.
IMPORT = """
import json, time
{before}
began, worked = time.perf_counter(), time.process_time()
import {module}
spent = {{"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}}
print(json.dumps(spent))
"""


def imports(job: Job) -> Case:
    """In a fresh process each time."""
    codes = {
        "keras_sam, after keras": IMPORT.format(before="import keras", module="keras_sam"),
        "keras": IMPORT.format(before="", module="keras"),
    }
    sides = {name: Side(partial(import_in_fresh_process, code)) for name, code in codes.items()}
    return Case("the import", sides, warmups=0 if job.quick else 1)


def import_in_fresh_process(code, shared):
    need("keras")

    def run():
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        )
        # The memory is that of a process which only waits.
        return {"measured": {**json.loads(done.stdout.splitlines()[-1]), "peak": None}}

    return run
