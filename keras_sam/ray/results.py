"""Rows on disk: shards of Parquet, each written whole or not at all, and what is in them already.

Nothing here grows with the number of photographs: which of them are done is asked of an index in
a temporary file.
"""

from __future__ import annotations

import contextlib
import io
import json
import posixpath
import re
import secrets
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_sam.annotations import ImageAnnotations, write_coco
from keras_sam.files import remove_leftovers, whole_file
from keras_sam.ray.engine import MASK_COLUMNS, records_of
from keras_sam.ray.sources import Photo, entries_of, open_filesystem

SETTINGS_FILE = "keras_sam_ray.json"
FAILED_FILE = "failed.parquet"
FAILED_COLUMNS = ("path", "name", "sha256", "reason")
COCO_FILE = "annotations.json"
_STORES = ("abfs", "gcs", "s3")  # whose first folders are buckets
_SHARD = re.compile(r"masks-(\d{6,})-[0-9a-f]{8}\.parquet")
SHARD_ROWS = 256
SHARD_BYTES = 32 << 20  # of run lengths
SHARD_SECONDS = 300
_PROMPTED = tuple(MASK_COLUMNS.values())[:4]
_NOTED = ("path", "name", "sha256", "size", "modified")


def mask_fields() -> dict[str, Any]:
    """The type of each column that a photograph's masks have."""
    import pyarrow as pa

    box, number = pa.list_(pa.float64()), pa.list_(pa.float64())
    return {
        "sha256": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "mask_counts": pa.list_(pa.string()),
        "mask_boxes": pa.list_(box),
        "mask_areas": pa.list_(pa.int64()),
        "mask_scores": number,
        "mask_stability_scores": number,
        "mask_points": pa.list_(pa.list_(box)),
        "mask_crop_boxes": pa.list_(box),
    }


def table_of(kept: dict[str, list], rows: list[dict], with_prompts: bool = False) -> Any:
    """A table of columns that are kept as they are, and of rows of `engine.segment`."""
    import pyarrow as pa

    fields = {**mask_fields(), "error": pa.string()}
    if with_prompts:
        left_out = set(MASK_COLUMNS.values()) - set(_PROMPTED)
        fields = {name: kind for name, kind in fields.items() if name not in left_out}
    columns = {name: pa.array([_plain(v) for v in values]) for name, values in kept.items()}
    for name, kind in fields.items():
        columns[name] = pa.array([row.get(name) for row in rows], kind)
    return pa.table(columns)


def _plain(value):
    """Arrays as lists, which Arrow takes at any depth."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


class Results:
    """A folder of shards, and `failed.parquet` with what has no masks, and why.

    Args:
        folder: str. Path or address.

    Raises:
        OSError: if the folder cannot be made or read.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self._filesystem, self._path, _ = open_filesystem(folder)
        self._is_local = type(self._filesystem).__name__ == "LocalFileSystem"
        self._temporary = tempfile.TemporaryDirectory(prefix="keras_sam")
        self._index = sqlite3.connect(f"{self._temporary.name}/index", isolation_level=None)
        # The index is made anew in each run, so that nothing has to survive in it.
        self._index.executescript(
            """
            PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8000;
            CREATE TABLE done (path TEXT PRIMARY KEY, name TEXT, sha256 TEXT, size INT,
                               modified INT, shard TEXT, masks INT) WITHOUT ROWID;
            CREATE TABLE touched (shard TEXT, path TEXT, size INT, modified INT);
            CREATE TABLE superseded (shard TEXT, path TEXT, until_the_end INT);
            CREATE TABLE seen (path TEXT PRIMARY KEY) WITHOUT ROWID;
            CREATE TABLE failed (path TEXT PRIMARY KEY, name TEXT, sha256 TEXT, reason TEXT,
                                 earlier INT DEFAULT 0) WITHOUT ROWID;
            """
        )
        self._rows: list[dict] = []
        self._bytes, self._since, self._number = 0, time.monotonic(), 0

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *error: object) -> None:
        self._index.close()
        self._temporary.cleanup()

    # --- what is there ---

    def read_settings(self) -> dict | None:
        """The settings of the run that the folder belongs to, None for a new folder."""
        try:
            with self._filesystem.open_input_stream(self._join(SETTINGS_FILE)) as file:
                return json.loads(file.read())
        except FileNotFoundError:
            return None

    def start(self, settings: dict, overwrite: bool = False) -> None:
        """Reads what earlier runs have done. Nothing is written before there is a result.

        Raises:
            FileExistsError: if the folder of a new run holds something else, which is not replaced
                with `overwrite`, either.
            FileNotFoundError: if its bucket is not there.
        """
        self._settings, self._is_begun = settings, False
        self._check_bucket()
        if not self._files(lambda name: name == SETTINGS_FILE):
            others = sorted(self._files(lambda name: not name.startswith(".")))
            if others and overwrite:
                raise FileExistsError(
                    f"holds {others[0]} and no {SETTINGS_FILE}, so there is no run for --overwrite "
                    "to replace: choose another folder"
                )
            if others:
                raise FileExistsError(f"holds {others[0]}, of another run: choose another folder")
            return
        if overwrite:
            return
        if self._is_local:
            remove_leftovers(self._path, f"{_SHARD.pattern}|{FAILED_FILE}|{COCO_FILE}")
        for name in self.shards():
            self._number = max(self._number, int(_SHARD.fullmatch(name)[1]))
            for row in self._read(name, [*_NOTED, "masks"]):
                self._note(row, name)
        if self._files(lambda name: name == FAILED_FILE):
            for row in self._read(FAILED_FILE, None):
                self._index.execute(
                    "INSERT OR REPLACE INTO failed VALUES (?, ?, ?, ?, 1)",
                    tuple(row[name] for name in FAILED_COLUMNS),
                )
        # A run that was killed before its end may leave a photograph in both.
        self._index.execute("DELETE FROM failed WHERE path IN (SELECT path FROM done)")
        self._is_begun = True
        self._drop_superseded()

    def _check_bucket(self):
        """Raises if there is no bucket: it would be said after minutes of work, which is lost."""
        bucket = self._path.split("/")[0]
        if self._filesystem.type_name not in _STORES or "allow_bucket_creation" in self.folder:
            return
        if self._filesystem.get_file_info(bucket).type.name == "NotFound":
            raise FileNotFoundError(f"there is no bucket {bucket}")

    def _begin(self):
        """Makes the folder of a new run, without what it replaces."""
        if self._is_begun:
            return
        self._filesystem.create_dir(self._path, recursive=True)
        for name in self._files(_is_ours):
            self._filesystem.delete_file(self._join(name))
        with self._whole(SETTINGS_FILE) as file:
            file.write(json.dumps(self._settings).encode())
        self._is_begun = True

    def shards(self) -> list[str]:
        """The names of the shards, oldest first."""
        return sorted(self._files(_SHARD.fullmatch))

    def find(self, photo: Photo) -> tuple[str, bool] | None:
        """The hash of a photograph that is done, and whether its file is the same since."""
        found = self._index.execute(
            "SELECT sha256, size, modified FROM done WHERE path = ?", (photo.path,)
        ).fetchone()
        if found is None:
            return None
        return found[0], found[1:] == (photo.size, photo.modified)

    def is_new(self, photo: Photo) -> bool:
        """Whether this run meets a photograph for the first time."""
        entered = self._index.execute("INSERT OR IGNORE INTO seen VALUES (?)", (photo.path,))
        return entered.rowcount == 1

    def totals(self) -> tuple[int, int, int]:
        """How many photographs are done, their masks, and how many have failed in this run."""
        done, masks = self._index.execute("SELECT COUNT(*), SUM(masks) FROM done").fetchone()
        (failed,) = self._index.execute("SELECT COUNT(*) FROM failed WHERE NOT earlier").fetchone()
        return done, masks or 0, failed

    def failures(self) -> Iterator[tuple[str, str]]:
        """The name of each photograph without masks, and the reason."""
        return self._index.execute(
            "SELECT name, reason FROM failed WHERE NOT earlier ORDER BY name"
        )

    # --- what is added ---

    def add(self, photo: Photo, row: dict) -> None:
        """Takes the row of a photograph, and writes a shard if it is time."""
        self._index.execute("DELETE FROM failed WHERE path = ?", (photo.path,))
        about = {"path": photo.path, "name": photo.name}
        about |= {"size": photo.size, "modified": photo.modified}
        self._rows.append({**row, **about, "masks": len(row["mask_counts"])})
        self._bytes += 64 + sum(map(len, row["mask_counts"]))
        if len(self._rows) >= SHARD_ROWS or self._bytes >= SHARD_BYTES:
            self.flush()
        self.flush_if_late()

    def fail(self, photo: Photo, reason: str, sha256: str | None = None) -> None:
        """Notes that a photograph has no masks, not even those of an earlier run."""
        self._index.execute(
            "INSERT INTO superseded SELECT shard, path, 1 FROM done WHERE path = ?", (photo.path,)
        )
        self._index.execute("DELETE FROM done WHERE path = ?", (photo.path,))
        self._index.execute(
            "INSERT OR REPLACE INTO failed VALUES (?, ?, ?, ?, 0)",
            (photo.path, photo.name, sha256, reason),
        )

    def restamp(self, photo: Photo) -> None:
        """Notes that only the time of a photograph's file has changed, so that none reads it again.

        Its row gets the new one in `finish`.
        """
        stamp = (photo.size, photo.modified)
        self._index.execute(
            "INSERT INTO touched SELECT shard, path, ?, ? FROM done WHERE path = ?",
            (*stamp, photo.path),
        )
        self._index.execute(
            "UPDATE done SET size = ?, modified = ? WHERE path = ?", (*stamp, photo.path)
        )

    def flush_if_late(self) -> None:
        """Writes a shard if the last one was written long ago."""
        if time.monotonic() - self._since > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes a shard of the rows that wait."""
        if self._rows:
            self._begin()
            self._number += 1
            name = f"masks-{self._number:06d}-{secrets.token_hex(4)}.parquet"
            self._write_shard(name, self._rows)
            written, self._rows, self._bytes = self._rows, [], 0  # whatever interrupts what follows
            for row in written:
                self._note(row, name)
            self._drop_superseded()
        self._since = time.monotonic()

    def finish(self, is_complete: bool = True) -> None:
        """Writes what waits, and `failed.parquet`, which is there only if something failed.

        Of a run that is not complete, what failed before and was not tried again stays in it.
        """
        self.flush()
        if is_complete:
            self._index.execute("DELETE FROM failed WHERE earlier")
        self._write_failed()
        self._drop_superseded(is_end=True)
        self._restamp_touched()

    def _write_failed(self):
        import pyarrow as pa
        from pyarrow import parquet

        (count,) = self._index.execute("SELECT COUNT(*) FROM failed").fetchone()
        if not count:
            if self._is_begun and self._files(lambda name: name == FAILED_FILE):
                self._filesystem.delete_file(self._join(FAILED_FILE))
            return
        self._begin()
        schema = pa.schema([(name, pa.string()) for name in FAILED_COLUMNS])
        rows = self._index.execute(f"SELECT {', '.join(FAILED_COLUMNS)} FROM failed ORDER BY path")
        with (
            self._whole(FAILED_FILE) as file,
            parquet.ParquetWriter(file, schema, compression="zstd") as writer,
        ):
            while some := rows.fetchmany(4096):
                table = pa.Table.from_pylist([dict(zip(schema.names, row)) for row in some], schema)
                writer.write_table(table)

    def write_coco(self, polygons: bool = False, tolerance: float = 0.0) -> None:
        """Joins all shards to one COCO file, a photograph in memory at a time.

        Photographs of the same name, of sources that were segmented one after the other or in a
        table, are called by their paths.
        """
        self._index.execute("CREATE INDEX IF NOT EXISTS names ON done (name)")

        def is_shared(name):
            found = self._index.execute("SELECT 1 FROM done WHERE name = ? LIMIT 2", (name,))
            return len(found.fetchall()) > 1

        def images():
            number = 0
            for shard in self.shards():
                for row in self._read(shard, None):
                    number += 1
                    name = row["path"] if is_shared(row["name"]) else row["name"]
                    size = (row["height"], row["width"])
                    yield ImageAnnotations(name, size, records_of(row), number)

        how = {"polygons": polygons, "tolerance": tolerance}
        if self._is_local:
            write_coco(Path(self._path) / COCO_FILE, images(), **how)
            return
        beside = Path(self._temporary.name) / COCO_FILE
        write_coco(beside, images(), **how)
        with self._whole(COCO_FILE) as file, beside.open("rb") as made:
            shutil.copyfileobj(made, file, 1 << 20)

    # --- files ---

    def _join(self, name):
        return posixpath.join(self._path, name)

    def _files(self, wanted):
        found = entries_of(self._filesystem, self._path)
        names = [posixpath.basename(entry.path) for entry in found if not entry.is_folder]
        return list(filter(wanted, names))

    @contextlib.contextmanager
    def _whole(self, name):
        """A file that appears complete or not at all."""
        if self._is_local:
            with whole_file(self._join(name)) as file:
                yield file
            return
        temporary = self._join(f".{name}.{secrets.token_hex(4)}.part")
        try:
            with self._filesystem.open_output_stream(temporary) as file:
                yield file
            self._filesystem.move(temporary, self._join(name))
        except BaseException:
            with contextlib.suppress(OSError):
                self._filesystem.delete_file(temporary)
            raise

    def _read(self, name, columns) -> Iterator[dict]:
        from pyarrow import parquet

        with self._filesystem.open_input_file(self._join(name)) as file:
            shard = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            for batch in shard.iter_batches(16 if columns is None else 1024, columns=columns):
                yield from batch.to_pylist()

    def _write_shard(self, name, rows):
        import pyarrow as pa
        from pyarrow import parquet

        fields = {"path": pa.string(), "name": pa.string(), "size": pa.int64()}
        fields |= {"modified": pa.int64(), "masks": pa.int32(), **mask_fields()}
        made = io.BytesIO()
        table = pa.Table.from_pylist(rows, pa.schema(list(fields.items())))
        parquet.write_table(table, made, compression="zstd")
        with self._whole(name) as file:
            file.write(made.getbuffer())

    def _note(self, row, shard):
        """Enters a row into the index; an earlier row of the same photograph is to be dropped."""
        (earlier,) = self._index.execute(
            "SELECT (SELECT shard FROM done WHERE path = ?)", (row["path"],)
        ).fetchone()
        if earlier is not None:
            self._index.execute("INSERT INTO superseded VALUES (?, ?, 0)", (earlier, row["path"]))
        values = [row[name] for name in _NOTED]
        self._index.execute(
            "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*values, shard, row["masks"]),
        )

    def _drop_superseded(self, is_end=False):
        """Takes the rows of photographs that have changed since out of older shards.

        The newer row is on disk by now, or at the end the reason why there is none: if this is
        interrupted, the next run does it.
        """
        which = "FROM superseded WHERE until_the_end <= ?"
        shards = self._index.execute(f"SELECT DISTINCT shard {which}", (is_end,)).fetchall()
        for (shard,) in shards:
            gone = self._index.execute(f"SELECT path {which} AND shard = ?", (is_end, shard))
            paths = {path for (path,) in gone}
            rows = [row for row in self._read(shard, None) if row["path"] not in paths]
            if rows:
                self._write_shard(shard, rows)
            else:
                self._filesystem.delete_file(self._join(shard))
        self._index.execute(f"DELETE {which}", (is_end,))

    def _restamp_touched(self):
        shards = self._index.execute("SELECT DISTINCT shard FROM touched").fetchall()
        for (shard,) in shards:
            found = self._index.execute(
                "SELECT path, size, modified FROM touched WHERE shard = ?", (shard,)
            )
            stamps = {path: {"size": size, "modified": time} for path, size, time in found}
            rows = [row | stamps.get(row["path"], {}) for row in self._read(shard, None)]
            self._write_shard(shard, rows)
        self._index.execute("DELETE FROM touched")


def _is_ours(name: str) -> bool:
    return bool(_SHARD.fullmatch(name)) or name in (SETTINGS_FILE, FAILED_FILE, COCO_FILE)
