"""Finding photographs, wherever pyarrow opens them, without a list of them.

A source is a folder, a glob, a picture, or Parquet with a column of bytes; a path or an address
such as `s3://bucket/photos`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Any

from keras_sam.images import IMAGE_ENDINGS

TABLE_ENDINGS = (".parquet", ".pq")
BYTES_COLUMNS = ("bytes", "image")  # the latter as a struct with `bytes`, too, as data sets have it
PATH_COLUMNS = ("path", "file_name")
_ROWS_AT_ONCE = 8
_WILD = re.compile(r"[*?\[]")


@dataclasses.dataclass(frozen=True)
class Photo:
    """One photograph: where it is, and by what a changed one is recognised.

    Args:
        path: str. Path or address by which it is known, or `FILE#ROW` for a row of Parquet. Of a
            link it is the path of the file itself, so that no file comes twice; bytes that are
            not UTF-8 are escaped; keys and options of an address are left out.
        name: str. The same within the source, or the path that a row of Parquet names.
        size: int. Bytes of the file that it is or is in.
        modified: int. Time of that file, ns.
        data: optional bytes of the photograph, for a row of Parquet.
        known: optional str. The hash of the photograph whose masks are there already.
        place: optional str. Where it is read. Defaults to `path`.
    """

    path: str
    name: str
    size: int
    modified: int
    data: bytes | None = None
    known: str | None = None
    place: str | None = None


def is_address(place: str) -> bool:
    """Whether this is an address and not a path."""
    return re.match(r"[a-zA-Z][\w+.-]+://", place) is not None


@functools.lru_cache(maxsize=64)
def _filesystem_of(root: str) -> tuple[Any, str]:
    from pyarrow import fs

    return fs.FileSystem.from_uri(root)


def open_filesystem(place: str) -> tuple[Any, str, str]:
    """The file system of a path or address, the path in it, and what makes it an address again."""
    from pyarrow import fs

    if not is_address(place):
        return fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(place)), ""
    address, mark, options = place.partition("?")
    if place.startswith("file://"):
        filesystem, path = fs.FileSystem.from_uri(place)
        return filesystem, path, ""
    # One file system for all files of a bucket: it keeps connections.
    root, rest = re.fullmatch(r"([^:]+://[^/]*)/?(.*)", address, re.S).groups()
    whole = root + "/" if root.endswith("://") else root  # of schemes without hosts
    filesystem, base = _filesystem_of(whole + mark + options)
    path = posixpath.join(base, rest.rstrip("/")) if rest else base
    return filesystem, path, f"{root}\n{base}\n{mark}{options}"


def place_of(path: str, origin: str, is_told: bool = False) -> str:
    """The path or address of a file that was found in a file system of `open_filesystem`.

    What is told to others, as in results, is without keys and options: `s3://bucket/a.jpg`.
    """
    if not origin:
        return path
    root, base, options = origin.split("\n")
    if is_told:
        root, options = re.sub(r"://[^/]*@", "://", root), ""
    return f"{root}/{path.removeprefix(base).lstrip('/')}{options}"


def read_bytes(place: str) -> bytes:
    """All bytes of a file on any file system."""
    filesystem, path, _ = open_filesystem(place)
    with filesystem.open_input_stream(_as_bytes(path), compression=None) as file:
        return file.read()


def _as_bytes(path):
    """A path for pyarrow, which does not encode names that are not UTF-8."""
    return path.encode("utf-8", "surrogateescape")


def _as_text(value):
    """Paths and names as results hold them, with escapes for what is not UTF-8."""
    if isinstance(value, str):
        value = _as_bytes(value)
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


class Source:
    """The photographs of some folders, globs, pictures and tables, found as they are asked for.

    Args:
        places: list of str.
        recursive: bool. Looks into subfolders, too.
        not_in: str. A folder of results, which is left out.

    Raises:
        FileNotFoundError: if there is no such place.
    """

    def __init__(self, places: Sequence[str], recursive: bool = False, not_in: str = ""):
        self._recursive = recursive
        self._left_out = open_filesystem(not_in)[1] if not_in else None
        self._places = [(place, *self._look_at(place)) for place in places]
        origins = {(origin, base.startswith("/")) for *_, origin, base in self._places}
        folders = [base for *_, base in self._places]
        self._base = posixpath.commonpath(folders) if len(origins) == 1 else None

    def __iter__(self) -> Iterator[Photo]:
        """Yields each photograph, twice where two places hold it."""
        for place, info, filesystem, origin, base in self._places:
            if info is None:
                found = self._matching(filesystem, base, open_filesystem(place)[1], origin)
            elif info.is_folder:
                found = self._in_folder(filesystem, info.path, origin)
            else:
                found = self._of_file(filesystem, info, origin, self._is_table(info.path))
            count = 0
            for count, photo in enumerate(found, start=1):  # noqa: B007
                yield photo
            if not count:
                raise FileNotFoundError(f"{place}: there are no photographs{self._remedy(info)}")

    def _remedy(self, info):
        if info is not None and info.is_folder and not self._recursive:
            return " in this folder (--recursive looks into its folders)"
        return ""

    def _look_at(self, place):
        filesystem, path, origin = open_filesystem(place)
        info = _look_up(filesystem, path)
        if info is None:
            if not _WILD.search(path):
                raise FileNotFoundError(f"{place}: there is no such photograph or folder")
            fixed = path[: _WILD.search(path).start()]
            return None, filesystem, origin, posixpath.dirname(fixed)
        base = path if info.is_folder else posixpath.dirname(path)
        return info, filesystem, origin, base

    def _in_folder(self, filesystem, folder, origin):
        """The pictures in a folder; where there are none, the rows of its tables."""
        tables, pictures = [], 0
        for info in self._walk(filesystem, folder, self._recursive):
            if info.path.lower().endswith(IMAGE_ENDINGS):
                pictures += 1
                yield from self._of_file(filesystem, info, origin, False)
            elif self._is_table(info.path) and not pictures:
                tables.append(info)
        for info in () if pictures else tables:
            yield from self._of_file(filesystem, info, origin, True)

    def _matching(self, filesystem, base, pattern, origin):
        match = re.compile(_translate(pattern)).fullmatch
        deep = "/" in pattern.removeprefix(base).lstrip("/")
        for info in self._walk(filesystem, base, deep):
            if match(info.path):
                yield from self._of_file(filesystem, info, origin, self._is_table(info.path))

    def _walk(self, filesystem, folder, deep):
        """The files of a folder, and with `deep` of those in it; hidden ones are left out.

        Nor does it follow links to folders, in which it may never end.
        """
        folders = [folder]
        while folders:
            for info in entries_of(filesystem, folders.pop()):
                if posixpath.basename(info.path).startswith("."):
                    continue
                if not info.is_folder:
                    yield info
                elif deep and not info.is_link and info.path.rstrip("/") != self._left_out:
                    folders.append(info.path)

    def _of_file(self, filesystem, info, origin, is_table):
        place, told = (place_of(info.path, origin, is_told) for is_told in (False, True))
        path = _as_text(told if info.real_path is None else info.real_path)
        name = told if self._base is None else posixpath.relpath(info.path, self._base)
        name = _as_text(name)
        stamp = {"size": info.size, "modified": info.modified}
        if not is_table:
            yield Photo(path, name, **stamp, place=None if path == place else place)
            return
        for number, (own, data) in enumerate(_rows(filesystem, info.path, place)):
            # A table's own paths need not be unique, and may be of any type.
            own = f"{name}#{number}" if own in (None, "") else _as_text(own)
            yield Photo(f"{path}#{number}", own, **stamp, data=data)

    @staticmethod
    def _is_table(path):
        return path.lower().endswith(TABLE_ENDINGS)


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A file or folder; `real_path` is that to which links on the way to it lead, if known."""

    path: str
    is_folder: bool
    size: int
    modified: int
    is_link: bool = False
    real_path: str | None = None

    @classmethod
    def of(cls, info):
        """What pyarrow's `FileInfo` has."""
        is_folder = info.type.name == "Directory"
        return cls(info.path, is_folder, info.size or 0, info.mtime_ns or 0)


def _look_up(filesystem, path):
    """What is at a path, or None."""
    from pyarrow import fs

    if not isinstance(filesystem, fs.LocalFileSystem):
        info = filesystem.get_file_info(path)
        return None if info.type.name == "NotFound" else _Entry.of(info)
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    stamp = about.st_size, about.st_mtime_ns
    return _Entry(path, stat.S_ISDIR(about.st_mode), *stamp, real_path=os.path.realpath(path))


def entries_of(filesystem, folder):
    """The entries of a folder. Only for the local file system they come one by one."""
    from pyarrow import fs

    if not isinstance(filesystem, fs.LocalFileSystem):
        selector = fs.FileSelector(folder, allow_not_found=True)
        yield from map(_Entry.of, filesystem.get_file_info(selector))
        return
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    real_folder = os.path.realpath(folder)
    with entries:
        for entry in entries:
            try:
                about, is_link = entry.stat(), entry.is_symlink()
            except OSError:  # a link to nothing
                continue
            path = entry.path.replace(os.sep, "/")
            real = os.path.realpath(path) if is_link else os.path.join(real_folder, entry.name)
            stamp = about.st_size, about.st_mtime_ns
            yield _Entry(path, entry.is_dir(), *stamp, is_link, real)


def _rows(filesystem, path, place):
    """The path, or None, and the bytes of each row of a table, some rows in memory at a time."""
    import pyarrow as pa
    from pyarrow import parquet

    with filesystem.open_input_file(_as_bytes(path)) as file:
        try:
            table = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{place}: not a Parquet file ({error})") from error
        schema = table.schema_arrow
        column = next((name for name in BYTES_COLUMNS if _holds_bytes(schema, name)), None)
        if column is None:
            raise ValueError(
                f"{place}: has no column of bytes, `{'` or `'.join(BYTES_COLUMNS)}`, but only "
                f"{', '.join(schema.names)}"
            )
        named = next((name for name in PATH_COLUMNS if name in schema.names), None)
        names = [name for name in (column, named) if name]
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=names):
            for row in batch.to_pylist():
                value = row[column]
                data, own = (
                    (value.get("bytes"), value.get("path"))
                    if isinstance(value, dict)
                    else (value, None)
                )
                yield own if row.get(named) is None else row[named], data or b""


def _holds_bytes(schema, name):
    from pyarrow import types

    if name not in schema.names:
        return False
    kind = schema.field(name).type
    if types.is_struct(kind):
        return any(_is_binary(kind.field(i)) for i in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_binary(field):
    from pyarrow import types

    return field.name == "bytes" and (
        types.is_binary(field.type) or types.is_large_binary(field.type)
    )


def _translate(pattern):
    """A glob as a regular expression: `*` within a folder, `**` through any number of them."""
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def piece(match):
        text = match[0]
        if text in pieces:
            return pieces[text]
        if text.startswith("[") and len(text) > 1:
            return "[" + text[1:-1].replace("!", "^", text.startswith("[!")) + "]"
        return re.escape(text)

    return re.sub(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", piece, pattern, flags=re.S)
