"""Downloads a file: resumes where it broke off, checks it, and puts it in place when complete."""

import contextlib
import hashlib
import http.client
import os
import socket
import time
import urllib.error
import urllib.request

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 30
_ATTEMPTS = 4
_PAUSE_S = 0.2


def fetch(url: str, path: str, sha256: str | None = None) -> str:
    """Downloads a URL to a path, unless the file is there already, and returns the path.

    What has arrived so far is kept beside it with the ending `.part`, and the next attempt resumes
    from there. Of several processes one downloads, and the others wait for it. A file that has
    another hash than `sha256` is deleted.
    """
    with file_lock(path):
        if os.path.isfile(path):
            return path
        part = f"{path}.part"
        _download(url, part)
        if sha256 is not None:
            actual = hash_of(part)
            if actual != sha256:
                os.remove(part)
                raise ValueError(
                    f"The download of {url} is damaged and was deleted: its SHA-256 is {actual}, "
                    f"but must be {sha256}. Try again."
                )
        os.replace(part, path)
    return path


def hash_of(path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url, part):
    for attempt in range(_ATTEMPTS):
        before = os.path.getsize(part) if os.path.exists(part) else 0
        try:
            if _transfer(url, part):
                return
        except urllib.error.HTTPError as error:
            _raise_for_status(url, error, attempt)
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            _raise_when_stuck(url, part, before, attempt, error)
        except urllib.error.URLError as error:
            raise ConnectionError(f"Cannot reach {url}: {error.reason}.") from error
        except OSError as error:
            # On a full disk the partial file is what takes up the space.
            if os.path.exists(part):
                os.remove(part)
            reason = f"The download of {url} cannot be stored: {error.strerror}"
            raise OSError(error.errno, reason, part) from error
        time.sleep(_PAUSE_S * 2**attempt)
    raise ConnectionError(
        f"The download of {url} broke off {_ATTEMPTS} times. Try again: it goes on from "
        f"{os.path.getsize(part) if os.path.exists(part) else 0} bytes."
    )


def _raise_for_status(url, error, attempt):
    reason = f"The server answers {error.code} {error.reason} for {url}."
    if error.code in (404, 410):
        raise FileNotFoundError(reason) from error
    if error.code in (401, 403):
        raise PermissionError(reason) from error
    if error.code < 500 or attempt + 1 == _ATTEMPTS:
        raise ConnectionError(reason) from error


def _raise_when_stuck(url, part, before, attempt, error):
    """Raises if a connection broke off without anything new, except at the first attempt."""
    after = os.path.getsize(part) if os.path.exists(part) else 0
    if after <= before and attempt:
        raise ConnectionError(
            f"The download of {url} broke off after {after} bytes: {error}. Try again: it goes "
            "on from there."
        ) from error


def _transfer(url, part):
    """Appends what is missing. Returns whether the file is complete."""
    start = os.path.getsize(part) if os.path.exists(part) else 0
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers={"User-Agent": "keras-sam", **headers})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is nothing after `start`: complete, or another file by now
            raise
        total = str(error.headers.get("Content-Range", "")).rpartition("/")[2]
        if total == str(start):
            return True
        os.remove(part)
        return False
    except urllib.error.URLError as error:
        if isinstance(error.reason, (TimeoutError, socket.timeout)):
            raise TimeoutError(str(error.reason)) from error
        raise
    with response:
        resumed = response.status == 206
        if resumed and not _continues(response, start):
            os.remove(part)
            return False
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        with (
            open(part, "ab" if resumed else "wb") as file,
            _progress(part, start, total) as advance,
        ):
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                advance(len(block))
    return total is None or os.path.getsize(part) == total


def _continues(response, start):
    return str(response.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


@contextlib.contextmanager
def _progress(part, start, total):
    """A progress bar, if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    label = TextColumn("{task.description}")
    columns = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        name = os.path.basename(part).removesuffix(".part")
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.update(task, advance=count)


@contextlib.contextmanager
def file_lock(path):
    """Lets one process at a time work on `path`; the lock is released when the process ends."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        lock = open(f"{path}.lock", "a+b")  # noqa: SIM115 - closed below
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"The cache folder {folder!r} cannot be used: a file is in its place. Remove it, or "
            "choose another folder with KERAS_HOME."
        ) from error
    with lock, _locked(lock):
        yield


@contextlib.contextmanager
def _locked(file):
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                break
            except OSError:  # Windows gives up after ten seconds
                time.sleep(0.1)
        try:
            yield
        finally:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases it
