"""A side's process: `Worker` starts one and asks it, `work` is what it runs."""

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.case import Case, Job, LeftOut

ROOT = Path(__file__).resolve().parent.parent.parent
ANSWER = "@@ "  # before a worker's answers, for libraries print, too


class SideFailed(Exception):
    """A side's process ended before it answered."""


class Worker:
    """A side's process, ready to be timed.

    Raises:
        LeftOut: if the side cannot run here.
        SideFailed: if it tried and failed; it has said on stderr why.
    """

    def __init__(self, job: Job, name: str, case: Case, side: str, shared: dict):
        asked = json.dumps({"case": name, "side": side, "job": dataclasses.asdict(job)})
        command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), "--worker", asked]
        variables = dict(case.sides[side].variables)
        paths = [variables.pop("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "KERAS_BACKEND": job.backend,
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "PYTHONUNBUFFERED": "1",
                # The sides share an accelerator's memory: none may take all of it at once.
                "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
                "TF_FORCE_GPU_ALLOW_GROWTH": "true",
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
                **variables,
            },
        )
        answer = self._ask(shared)
        if "left_out" in answer:
            self.stop()
            raise LeftOut(answer["left_out"])
        shared.update(answer["shared"])
        self.device = answer["device"]
        self.variants = answer["variants"]

    def repeat(self, variant: str) -> dict:
        return self._ask(variant)

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _ask(self, what) -> dict:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which reading finds out
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith(ANSWER):
                return json.loads(answer.removeprefix(ANSWER))
        code = self._process.wait()
        raise SideFailed(f"killed by signal {-code}" if code < 0 else f"exit code {code}")


class Prepared:
    """A side that is ready to be timed, in this process; `Worker` is one in another.

    Raises:
        LeftOut: if the side cannot run here.
    """

    def __init__(self, case: Case, side: str, shared: dict):
        runs = case.sides[side].prepare(shared)
        self._runs = runs if isinstance(runs, dict) else {"": runs}
        give_memory_back()
        model = resident_bytes()
        self._first = {name: warm_up(run, case.warmups) for name, run in self._runs.items()}
        self._before = {"model": model, "preparing": peak_bytes()}
        self.device = device()
        self.variants = list(self._runs)

    def repeat(self, variant: str) -> dict:
        return {**self._before, "first": self._first[variant], **measure(self._runs[variant])}

    def stop(self) -> None:
        self._runs.clear()


def work(side: str, case: Case) -> None:
    """Prepares a side, then answers each line of stdin with one repetition."""
    sys.path.insert(0, str(ROOT))
    shared = json.loads(sys.stdin.readline())
    try:
        prepared = Prepared(case, side, shared)
    except LeftOut as reason:
        say({"left_out": str(reason)})
        return
    say({"shared": shared, "variants": prepared.variants, "device": prepared.device})
    for line in sys.stdin:
        say(prepared.repeat(json.loads(line)))


def warm_up(run, times) -> float | None:
    """Runs what is to be timed, and gives the seconds of the first run, which may compile."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return spent[0] if spent else None


def measure(run) -> dict:
    """One repetition: time, processor time of all threads, memory before it and at its peak."""
    give_memory_back()
    reset_peak()
    idle = resident_bytes()
    began, worked = time.perf_counter(), processor_seconds()
    facts = run()
    seconds, cpu_seconds = time.perf_counter() - began, processor_seconds() - worked
    found = {"seconds": seconds, "cpu_seconds": cpu_seconds, "idle": idle, "peak": peak_bytes()}
    return {**found, **facts.pop("measured", {}), "facts": facts}


def say(answer) -> None:
    print(ANSWER + json.dumps(answer), flush=True)


def processor_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def give_memory_back() -> None:
    """Frees what earlier repetitions left, and returns it to the system (glibc).

    Time and peak are then this repetition's alone: a model, which refers to itself, would
    otherwise wait for Python's collector until one of the next.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak() -> None:
    with contextlib.suppress(OSError):  # the preparation then counts
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int | None:
    return _status("VmHWM:")


def resident_bytes() -> int | None:
    return _status("VmRSS:")


def _status(name):
    """A line of this process's status in bytes; None where there is none (Linux has it)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return 1024 * int(status.split(name)[1].split()[0])


def device() -> str | None:
    """The accelerator that this process's libraries compute on, None for the processor."""
    torch, jax, tensorflow = map(sys.modules.get, ("torch", "jax", "tensorflow"))
    if jax is not None and jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    if tensorflow is not None and (found := tensorflow.config.list_physical_devices("GPU")):
        return tensorflow.config.experimental.get_device_details(found[0]).get("device_name", "GPU")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return None
