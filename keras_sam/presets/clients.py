"""Files from Kaggle, Hugging Face and Meta's server, cached where each one's client caches them.

Cached files need no network if their address is exact. Where it leaves the version open, the
server is asked for the newest one: for a Kaggle model without a version this needs a connection,
for a Hugging Face repository without a commit the cached version is taken if there is none.
docs/weights.md has the folders and the environment variables.
"""

import importlib
import os
import re
from pathlib import Path
from types import ModuleType

from keras_sam.backend_choice import keras_home
from keras_sam.presets import fetch as downloads

# The HTTP libraries of the clients; huggingface_hub has changed from one to the other.
_HTTP_LIBRARIES = ("httpx", "requests")


def offline() -> bool:
    """Whether `KERAS_SAM_OFFLINE` forbids the network."""
    return os.environ.get("KERAS_SAM_OFFLINE", "").lower() in ("1", "true", "yes", "on")


class _Client:
    """What the sources have in common; each adds `cached`, `_download` and `__str__`.

    `single_file` is the name of a checkpoint that is meant on its own.
    """

    single_file = None

    def _settled(self):
        """Whether a cached file is the right one for certain, so that no server has to be asked."""
        return True

    def cached(self, name: str) -> str | None:
        """The path of a file that was downloaded before, or None. Sends no request."""
        raise NotImplementedError

    def fetch(self, name: str, optional: bool = False) -> str | None:
        """The path of a file on this machine, downloaded if it is not cached.

        Returns None for an optional file that the source does not have. Errors are a
        FileNotFoundError, a PermissionError if the source refuses it, a ConnectionError if it
        cannot be reached, or an ImportError that names the client to install.
        """
        _check_name(name)
        path = self.cached(name) if self._settled() or offline() else None
        if path is not None:
            return path
        if offline():
            if optional:
                return None
            raise ConnectionError(
                f"{name} of {self} is not cached, and KERAS_SAM_OFFLINE forbids to download it."
            )
        return self._download(name, optional)


def _check_name(name):
    parts = re.split(r"[/\\]", name)
    if not name or os.path.isabs(name) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"A preset's files must lie in its own folder. Received: {name!r}.")


def import_client(module: str, extra: str) -> ModuleType:
    """Imports a client. If it is missing, the error names the extra that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'This needs {module}. Install it with: pip install "keras-sam[{extra}]".'
        ) from error


class KaggleSource(_Client):
    """A model on Kaggle: `owner/model/framework/variation/version`, or the newest version."""

    def __init__(self, handle: str, single_file: str | None = None):
        self.handle = handle
        self.single_file = single_file

    @classmethod
    def parse(cls, address: str) -> "KaggleSource":
        """The source of a `kaggle://` address."""
        handle = address.removeprefix("kaggle://").strip("/")
        parts = handle.split("/")
        if len(parts) not in (4, 5) or not all(parts) or (parts[4:] and not parts[4].isdigit()):
            raise ValueError(
                "A Kaggle address must be kaggle://owner/model/framework/variation or "
                f"kaggle://owner/model/framework/variation/version. Received: {address!r}."
            )
        return cls(handle)

    def cached(self, name):
        if self.handle.count("/") != 4:
            return None  # only Kaggle can tell which version is the newest
        return _kaggle_cached(self.handle, name)

    def _download(self, name, optional):
        kagglehub = import_client("kagglehub", "kaggle")
        requests = import_client("requests", "kaggle")
        from kagglehub.exceptions import DataCorruptionError, KaggleApiHTTPError

        broken = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ReadTimeout)
        lock = os.path.join(keras_home(), "models", "keras_sam", re.sub(r"\W", "_", self.handle))
        for attempt in range(4):
            try:
                # kagglehub does not keep two processes from writing to the same file.
                with downloads.file_lock(lock):
                    path = kagglehub.model_download(self.handle, path=name)
                break
            except broken as error:
                if attempt == 3:
                    raise ConnectionError(
                        f"{self}: the download of {name} broke off again and again: {error}"
                    ) from error
            except KaggleApiHTTPError as error:
                if _status(error) == 404 and optional:
                    return None
                raise _http_error(self, name, _status(error), error) from error
            except DataCorruptionError as error:
                raise ValueError(
                    f"{self}: the download of {name} is damaged and was deleted. Try again."
                ) from error
            except requests.exceptions.RequestException as error:
                raise ConnectionError(f"{self} cannot be reached: {error}") from error
            except OSError as error:
                raise _not_stored(self, name, error, "KAGGLEHUB_CACHE") from error
        if self.handle.count("/") == 3:
            self.handle += _kaggle_version(path, name)  # further files must be of this version
        return path

    def __str__(self):
        return f"Kaggle's model {self.handle!r}"


class HubSource(_Client):
    """A repository on Hugging Face, `owner/name`, at a branch, tag or commit."""

    def __init__(self, repository: str, single_file=None, revision=None):
        self.repository = repository
        self.single_file = single_file
        self.revision = revision

    @classmethod
    def parse(cls, address: str) -> "HubSource":
        """The source of an `hf://` address."""
        match = re.fullmatch(r"hf://([^/@]+/[^/@]+)(?:@([^/@]+))?(?:/(.+))?", address.rstrip("/"))
        if match is None:
            raise ValueError(
                "A Hugging Face address must be hf://owner/repository, with @revision or /file "
                f"after it if need be. Received: {address!r}."
            )
        repository, revision, file = match.groups()
        if file is not None:
            _check_name(file)
        return cls(repository, file, revision)

    def _settled(self):
        return re.fullmatch(r"[0-9a-f]{40}", self.revision or "") is not None

    def cached(self, name):
        try:
            hub = import_client("huggingface_hub", "hub")
        except ImportError:
            return None
        path = hub.try_to_load_from_cache(self.repository, name, revision=self.revision)
        return path if isinstance(path, str) else None

    def _download(self, name, optional):
        hub = import_client("huggingface_hub", "hub")
        from huggingface_hub import errors

        before = hub.try_to_load_from_cache(self.repository, name, revision=self.revision)
        try:
            path = hub.hf_hub_download(self.repository, name, revision=self.revision)
        except errors.LocalEntryNotFoundError as error:
            known = hub.try_to_load_from_cache(self.repository, name, revision=self.revision)
            if optional and known is not None:  # the cache knows that the repository lacks it
                return None
            if _status(error.__cause__) in (401, 403):
                raise _http_error(self, name, _status(error.__cause__), error) from error
            raise ConnectionError(f"{self} cannot be reached for {name}: {error}") from error
        except errors.EntryNotFoundError as error:
            if optional:
                return None
            raise FileNotFoundError(f"{self} has no {name}.") from error
        except errors.HfHubHTTPError as error:
            status = 403 if isinstance(error, errors.GatedRepoError) else _status(error)
            raise _http_error(self, name, status, error) from error
        except Exception as error:
            if type(error).__module__.startswith(_HTTP_LIBRARIES):
                raise ConnectionError(f"{self} cannot be reached for {name}: {error}") from error
            if isinstance(error, OSError):
                raise _not_stored(self, name, error, "HF_HOME") from error
            raise
        if path != before:
            _check_blob(self, name, path)
        self.revision = _hub_commit(path) or self.revision  # further files must be of this commit
        return path

    def __str__(self):
        return f"Hugging Face's repository {self.repository!r}"


class UrlSource(_Client):
    """A file on a web server, kept where `keras.utils.get_file` keeps such files."""

    def __init__(self, url: str, sha256: str | None = None):
        self.url = url
        self.sha256 = sha256
        self.single_file = url.rsplit("/", 1)[1]

    def cached(self, name):
        path = self._path(name)
        return path if os.path.isfile(path) else None

    def _path(self, name):
        return os.path.join(keras_home(), "models", name)

    def _download(self, name, optional):
        try:
            return downloads.fetch(self.url, self._path(name), self.sha256)
        except FileNotFoundError:
            if optional:
                return None
            raise

    def __str__(self):
        return f"The server of {self.url}"


def source_of(entry: dict):
    """The source that an entry of a preset's `metadata.json` describes."""
    if "kaggle" in entry:
        return KaggleSource(entry["kaggle"], entry["file"])
    if "hugging_face" in entry:
        return HubSource(entry["hugging_face"], entry["file"])
    return UrlSource(entry["url"], entry.get("sha256"))


def first_that_answers(name: str, entries: list[dict]):
    """The first source that has a preset's weights; its file is on this machine afterwards.

    Cached files are tried before servers. If none has them, the error says why for each.
    """
    sources = [source_of(entry) for entry in entries]
    for source in sources:
        if source.cached(source.single_file):
            return source
    reasons = []
    for source in sources:
        try:
            source.fetch(source.single_file)
            return source
        except (ImportError, OSError, ValueError) as error:
            reasons.append(f"* {source}: {' '.join(str(error).split())}")
    raise ConnectionError(
        f"The weights of {name!r} are in no cache on this machine, and no source provided them:\n"
        + "\n".join(reasons)
        + "\nDownload one of these files by other means and pass its path, or pass "
        "`load_weights=False`."
    )


# The clients do not promise how they lay out their caches. If a layout is not as expected, files do
# not count as cached, or no version is pinned; the clients' own functions still find them.


def _kaggle_cached(handle, name):
    """The path of a file that kagglehub has downloaded whole, or None."""
    home = os.environ.get("KAGGLEHUB_CACHE") or os.path.join("~", ".cache", "kagglehub")
    *variation, version = handle.split("/")
    folder = os.path.join(os.path.expanduser(home), "models", *variation)
    path = os.path.join(folder, version, name)
    marker = os.path.join(folder, ".complete", version, f"{name}.complete")
    return path if os.path.isfile(path) and os.path.isfile(marker) else None


def _kaggle_version(path, name):
    """`/5` for a file that kagglehub keeps as version 5 of a model, or nothing."""
    folder = Path(path).parents[name.count("/")].name
    return f"/{folder}" if folder.isdigit() else ""


def _hub_commit(path):
    """The commit that huggingface_hub keeps a file under, or None."""
    match = re.search(r"snapshots[/\\](\w{40})[/\\]", path)
    return match and match.group(1)


def _check_blob(source, name, path):
    """Compares a download with the SHA-256 that the server gave for it, by which it is stored.

    huggingface_hub itself compares sizes alone. Small files have another kind of hash.
    """
    blob = os.path.realpath(path)
    declared = os.path.basename(blob)
    if re.fullmatch("[0-9a-f]{64}", declared) and downloads.hash_of(blob) != declared:
        os.remove(path)
        os.remove(blob)
        raise ValueError(f"{source}: the download of {name} is damaged and was deleted. Try again.")


def _not_stored(source, name, error, variable):
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return NotADirectoryError(
            f"{source}: a file is in the place of the cache folder, {error.filename!r}. Remove it, "
            f"or choose another folder with {variable}."
        )
    return OSError(error.errno, f"{source}: {name} cannot be stored: {error.strerror or error}")


def _status(error):
    return getattr(getattr(error, "response", None), "status_code", None)


def _http_error(source, name, status, error):
    message = f"{source} answers {status} for {name}: {' '.join(str(error).split())}"
    if status == 404:
        return FileNotFoundError(message)
    if status in (401, 403):
        return PermissionError(message)
    return ConnectionError(message)
