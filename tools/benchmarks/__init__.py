"""What `tools/benchmark.py` measures, by name: functions from a run's settings to a `Case`.

Nothing heavy is imported before a side of a case prepares itself, in its own process.
"""

from benchmarks.cluster import ray
from benchmarks.decoding import decoder
from benchmarks.encoding import encoder, hiera, huge, mobile
from benchmarks.exporting import export_decoder, export_encoder, export_predictor
from benchmarks.generation import everything, memory
from benchmarks.loading import imports, load
from benchmarks.neighbour import busy
from benchmarks.prediction import click, family
from benchmarks.quantizing import int8
from benchmarks.run_lengths import rle
from benchmarks.training import train

CASES = {
    "encoder": encoder,
    "hiera": hiera,
    "mobile": mobile,
    "decoder": decoder,
    "click": click,
    "family": family,
    "everything": everything,
    "memory": memory,
    "rle": rle,
    "load": load,
    "import": imports,
    "train": train,
    "huge": huge,
    "int8": int8,
    "busy": busy,
    "ray": ray,
    "export_encoder": export_encoder,
    "export_decoder": export_decoder,
    "export_predictor": export_predictor,
}
# They take minutes, and gigabytes or a preset of ours: they run only when they are named.
ON_REQUEST = (
    *("huge", "int8", "busy", "ray"),
    *("export_encoder", "export_decoder", "export_predictor"),
)
