"""A cluster to work on: one that is there, or one on this machine that ends with the run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCAL = "local"
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 40  # of a command of Ray, which takes seconds to start
_ATTEMPTS = 4  # Ray gives its own processes 15 s, which a busy machine may need
_OBJECT_STORE = 512 << 20
# Of a cluster of this machine; a process holds the lock in its folder as long as it runs.
_FOLDER = "raysam"
_LOCK = "keras_sam.lock"
# For workers that are to compute on processors: Ray hides GPUs from nobody who asks for none.
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu"}
_ROOT = Path(__file__).resolve().parent.parent.parent


class ClusterError(RuntimeError):
    """There is no cluster, or it cannot do what is asked; the message is one sentence."""


def import_ray() -> Any:
    """The package Ray, or an ImportError that says how to install it."""
    try:
        import pyarrow  # noqa: F401
        import ray
    except ImportError as error:
        raise ImportError(
            f'Ray and pyarrow are needed ({error}): pip install "keras-sam[ray]"'
        ) from error
    return ray


def runtime_env(
    threads: int = 1, backend: str | None = None, gpus: float | None = None
) -> dict[str, Any]:
    """Ray's `runtime_env` for workers that are as this process.

    They run Keras on the same backend, find this package where it is a checkout (which must then
    be on all machines, under the same path), and each takes no more threads than it has
    processors.

    Args:
        threads: int. Processors of a worker, its `num_cpus`.
        backend: optional str. Defaults to `KERAS_BACKEND` of this process.
        gpus: optional float. GPUs of a worker, its `num_gpus`. With 0 it computes on processors,
            also where Ray shows it GPUs, as recent versions do. By default it takes what it sees.

    Returns:
        A dict for `runtime_env=` of `ray.init`, of an actor or of `map_batches`.

    Example:

    ```python
    sorted(keras_sam.ray.runtime_env()["env_vars"])[0]  # 'KERAS_BACKEND'
    ```
    """
    count = str(threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
    variables = dict.fromkeys((*names, "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), count)
    variables["TF_CPP_MIN_LOG_LEVEL"] = "3"
    backend = backend or os.environ.get("KERAS_BACKEND")
    if backend:
        variables["KERAS_BACKEND"] = backend
    if gpus == 0:
        variables |= _NO_GPU
    passed = ("KERAS_", "XLA_", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "TF_FORCE_GPU_ALLOW_GROWTH")
    for name, value in os.environ.items():
        # The device of this process is not that of workers on other machines.
        if name.startswith(passed) and name not in _NO_GPU:
            variables.setdefault(name, value)
    if (_ROOT / "pyproject.toml").is_file():  # a checkout
        paths = [str(_ROOT), os.environ.get("PYTHONPATH")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return {"env_vars": variables}


@contextlib.contextmanager
def connected(address: str, processors: int | None = None) -> Iterator[Any]:
    """Connects to a cluster, or starts one here, and yields the package Ray.

    A process that is connected already stays so.

    Args:
        address: str. `local` for a cluster of this machine alone, which ends with the block;
            `auto`, `HOST:PORT` or `ray://HOST:PORT` for one that is there.
        processors: optional int. How many a cluster of this machine has at least.

    Raises:
        ImportError: if Ray is not installed.
        ClusterError: if no cluster answers.
    """
    ray = import_ray()
    if address != LOCAL:
        _check(address)
    if ray.is_initialized():
        yield ray
        return
    if address == LOCAL:
        with _started(ray, max(processors or 1, os.cpu_count() or 1)):
            yield ray
        return
    settings = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address.startswith("ray://"):
        # The class of the workers is looked at by a process there that is none of the workers.
        settings["runtime_env"] = runtime_env()
    try:
        ray.init(**settings)
    except Exception as error:  # of many kinds, by how it failed
        raise ClusterError(f"no cluster of Ray answers at {address} ({_brief(error)})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _started(ray, processors):
    # The names of sockets in it may have 107 bytes, of which Ray takes 70.
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp"
    place = Path(place if os.path.isdir(place) else tempfile.gettempdir())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # none of them would be ours
    with _folder_in(place) as folder:
        settings = {
            "address": LOCAL,
            "num_cpus": processors,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": "ERROR",
            "object_store_memory": _OBJECT_STORE,
            "_temp_dir": str(folder),
        }
        try:
            for attempt in range(1, _ATTEMPTS + 1):
                before = _processes()
                try:
                    ray.init(**settings)
                    break
                except Exception as error:  # Ray's own class for a slow start is Exception
                    ray.shutdown()
                    for process in _processes() - before:  # which Ray leaves until this one ends
                        process.kill()
                        process.wait()
                    if attempt == _ATTEMPTS:
                        raise ClusterError(
                            f"Ray does not start here, in {_ATTEMPTS} attempts ({_brief(error)}): "
                            "it ends if its own processes need more than 15 s, as on a busy "
                            "machine, so try again when this one is quieter"
                        ) from error
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _folder_in(place: Path) -> Iterator[Path]:
    """A folder for a cluster, which goes with the block, and those of processes that were killed.

    A process locks the file in its folder as long as it runs, however it ends.
    """
    try:
        import fcntl
    except ImportError:  # on Windows, where folders of killed processes stay
        fcntl = None
    for found in place.glob(f"{_FOLDER}*/{_LOCK}") if fcntl else ():
        with contextlib.suppress(OSError), found.open("r+") as lock:  # of others, or in use
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(found.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=place))
    try:
        new = folder / "new"  # it is locked before others can see it
        with new.open("w") as lock:
            if fcntl:
                fcntl.flock(lock, fcntl.LOCK_EX)
                new.rename(folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _processes():
    """Those that this one has started."""
    import psutil  # Ray brings it

    return set(psutil.Process().children())


def _check(address):
    """Raises soon where Ray itself would wait for minutes."""
    if address == "auto":
        return
    found = re.fullmatch(r"(ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if not found:
        raise ClusterError(
            f"an address of Ray is auto, HOST:PORT or ray://HOST:PORT, received {address!r}"
        )
    try:
        socket.create_connection((found[2], int(found[3])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no cluster of Ray answers at {address} ({error})") from error
    if found[1]:  # Ray's client gives up by itself
        return
    # What listens there may be something else, for which Ray would wait.
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode:
        told = b"" if done is None else done.stdout + done.stderr
        if b"AuthenticationError" in told:
            raise ClusterError(
                f"the cluster at {address} asks for a token: set RAY_AUTH_MODE=token, and have its "
                "token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
            )
        raise ClusterError(f"what listens at {address} does not answer as a cluster of Ray")


def _brief(error):
    """What Ray says, whose first line alone may be but a title."""
    return " ".join(str(error).split())[:300]
