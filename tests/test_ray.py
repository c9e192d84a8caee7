"""Workers of Ray: what ends in the results whatever dies, and what is refused."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam.annotations import read_coco
from keras_sam.masks import encode_rle
from keras_sam.ray import cluster, results, sources
from keras_sam.ray.batches import Attempts
from keras_sam.ray.engine import records_of
from tests.tiny import photograph, tiny_segmenter

pa = pytest.importorskip("pyarrow")
pytest.importorskip("ray")
from pyarrow import parquet  # noqa: E402

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
FLAGS = ("--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0")
GOOD = [f"{number}.png" for number in range(6)]
# In the workers: photographs with which the process dies, each time or the first time.
DEADLY = """
import os, signal, sys
import PIL.Image
# As where one backend is installed: Keras imports what it finds.
sys.modules.update(dict.fromkeys(("jax", "matplotlib", "tensorflow")))
opened = PIL.Image.open
def deadly(file, *args, **kwargs):
    name = str(getattr(file, "name", ""))
    died = os.environ["DIED_ONCE"]
    if "once" in name and not os.path.exists(died):
        open(died, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if "always" in name:
        os.kill(os.getpid(), signal.SIGKILL)
    return opened(file, *args, **kwargs)
PIL.Image.open = deadly
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """The folder of a tiny preset, which workers load, too."""
    folder = tmp_path_factory.mktemp("preset")
    tiny_segmenter().save_to_preset(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Good photographs, one that is none, and two that are deadly."""
    folder = tmp_path_factory.mktemp("drawn")
    for seed, name in enumerate([*GOOD, "once.png", "always.png"]):
        Image.fromarray(photograph((90 + seed, 120), seed)).save(folder / name)
    (folder / "bad.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("no photograph")
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A cluster of two processors for all tests of this file."""
    folder = tmp_path_factory.mktemp("deadly")
    (folder / "sitecustomize.py").write_text(DEADLY)
    with pytest.MonkeyPatch.context() as patch, cluster.connected("local", 2) as ray:
        patch.setenv("PYTHONPATH", str(folder))
        plain = cluster.runtime_env

        def with_deaths(*arguments):
            found = plain(*arguments)
            found["env_vars"] |= {"DIED_ONCE": str(folder / "died"), "TMPDIR": str(folder)}
            return found

        patch.setattr(cluster, "runtime_env", with_deaths)
        patch.setattr("keras_sam.ray.run.runtime_env", with_deaths)
        yield ray


@pytest.fixture(scope="module")
def expected(preset, drawn):
    """The records of the generator itself, in this process, with as many threads as a worker."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    segmenter = keras_sam.SAMImageSegmenter.from_preset(preset)
    generator = keras_sam.SAMAutomaticMaskGenerator(segmenter, output_mode="coco_rle", **SETTINGS)
    found = {name: list(generator.generate(drawn / name)) for name in (*GOOD, "once.png")}
    torch.set_num_threads(before)
    return found


def shards(out):
    """The rows of all shards, by name, of which none may come twice."""
    rows = [
        row for path in sorted(out.glob("masks-*")) for row in parquet.read_table(path).to_pylist()
    ]
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["name"]: row for row in rows}


def failures(out):
    table = parquet.read_table(out / "failed.parquet")
    return {row["name"]: row["reason"] for row in table.to_pylist()}


@pytest.fixture
def table(drawn, tmp_path):
    """A Parquet file of bytes, without paths."""
    data = [(drawn / name).read_bytes() for name in GOOD[:3]]
    path = tmp_path / "tables" / "a.parquet"
    path.parent.mkdir()
    parquet.write_table(pa.table({"bytes": data, "label": [1, 2, 3]}), path)
    return path


def found(*places, **options):
    return sorted(photo.name for photo in sources.Source([str(p) for p in places], **options))


def test_sources(drawn, table, tmp_path):
    everything = sorted([*GOOD, "always.png", "bad.jpg", "once.png"])
    deep = tmp_path / "deep"
    shutil.copytree(drawn, deep / "in" / "it")
    (deep / "in" / "0.png").write_bytes((drawn / "0.png").read_bytes())
    (deep / "in" / ".hidden.png").write_text("")
    assert found(drawn) == everything
    assert found(drawn.as_uri()) == everything
    assert found(f"fsspec+file://{drawn}") == everything  # a file system that is not pyarrow's own
    assert found(drawn / "0.png", drawn / "1.png") == ["0.png", "1.png"]
    assert found(deep / "in") == ["0.png"]
    assert found(deep, recursive=True) == sorted(["in/0.png", *(f"in/it/{n}" for n in everything)])
    assert found(f"{drawn}/[0-1].png") == ["0.png", "1.png"]
    assert found(f"{deep}/**/?.png") == sorted(["in/0.png", *(f"in/it/{name}" for name in GOOD)])
    assert found(table.parent) == found(table) == [f"a.parquet#{row}" for row in range(3)]
    (photo, *_) = sources.Source([str(table)])
    assert photo.data == (drawn / "0.png").read_bytes()
    (photo,) = sources.Source([f"fsspec+file://{drawn}/0.png"])
    assert sources.read_bytes(photo.path) == (drawn / "0.png").read_bytes()


def test_results_on_another_file_system_grow_whole_shards(tmp_path):
    out = f"fsspec+file://{tmp_path}/out"
    row = {"sha256": "a", "height": 4, "width": 5, "mask_boxes": [[0, 0, 4, 3]]}
    row |= {"mask_counts": [encode_rle(np.ones((4, 5), bool))["counts"]], "mask_areas": [20]}
    row |= {"mask_scores": [0.5], "mask_stability_scores": [1.0], "mask_points": [[[1.0, 2.0]]]}
    row |= {"mask_crop_boxes": [[0, 0, 5, 4]]}
    photos = [sources.Photo(f"/{n}", str(n), 1, 1) for n in range(3)]
    with results.Results(out) as made:
        made.start({"a": 1})
        assert made.is_new(photos[0]) and not made.is_new(photos[0])
        for photo in photos[:2]:
            made.add(photo, row)
        made.fail(photos[2], "broken")
        made.finish()
        made.write_coco()
    with results.Results(out) as made:
        made.start({"a": 1})
        assert made.find(photos[0]) == ("a", True) and made.find(photos[2]) is None
        changed = sources.Photo("/0", "0", 2, 2)
        assert made.find(changed) == ("a", False)
        made.add(changed, {**row, "sha256": "b"})
        made.flush()
        assert made.totals() == (2, 2, 0)
        made.finish(is_complete=False)  # what failed before was not tried
    folder = tmp_path / "out"
    assert {name: row["sha256"] for name, row in shards(folder).items()} == {"0": "b", "1": "a"}
    assert failures(folder) == {"2": "broken"}
    assert len(read_coco(folder / results.COCO_FILE)[0]) == 2
    assert not list(folder.glob(".*"))


def test_notes_of_what_was_begun_outlive_a_process(tmp_path):
    attempts = Attempts(tmp_path / "notes")
    with attempts.trying("a") as deaths:
        assert deaths == 0
        with attempts.trying("a") as deaths:  # the same photograph twice, and nobody has died
            assert deaths == 0
    process = os.spawnl(os.P_NOWAIT, sys.executable, sys.executable, "-c", "")
    os.waitpid(process, 0)
    (tmp_path / "notes" / f"a-{process}").touch()
    with attempts.trying("a") as deaths, attempts.trying("b") as others:
        assert (deaths, others) == (1, 0)


def test_a_batch_without_its_columns(preset):
    prompts = keras_sam.ray.SegmentPrompts(preset)
    with pytest.raises(ValueError, match="must have a column `boxes`. Received: image"):
        prompts({"image": [np.zeros((9, 9, 3), "uint8")]})
    with pytest.raises(ValueError, match="`image` or `bytes` or `path`. Received: boxes"):
        prompts({"boxes": [[]]})
    table = prompts({"image": [np.zeros((9, 9, 3), "uint8")], "boxes": [[1, 2, 3]]})
    assert "must have shape (P, 4)" in table["error"][0].as_py()


BAD_CALLS = [
    (["none"], [], "none: there is no such photograph or folder"),
    (["hdfs://nowhere/photos"], [], "cannot find the photographs: "),  # without Hadoop's library
    (["EMPTY"], [], "there are no photographs in this folder (--recursive"),
    (["EMPTY/*.jpg"], [], "there are no photographs"),
    (["TABLE"], [], "has no column of bytes, `bytes` or `image`, but only label"),
    (["PHOTOS"], ["--ray", "127.0.0.1:1"], "no cluster of Ray answers at 127.0.0.1:1"),
    (["PHOTOS"], ["--ray", "nowhere"], "an address of Ray is auto, HOST:PORT or ray://"),
    (["PHOTOS"], ["--out", "TABLES"], "holds label.parquet, of another run"),
    (["PHOTOS"], ["--format", "png"], "--ray writes parquet and coco"),
    (["PHOTOS"], ["--pictures", "x"], "--pictures cannot be combined with --ray"),
    (["PHOTOS"], ["--device", "cpu"], "--worker-gpus asks for GPUs"),
    (["PHOTOS"], ["--worker-gpus", "1.5"], "must be whole, or a part of one GPU, received 1.5"),
    (["PHOTOS"], ["--model", "nothing"], "--model nothing: no such preset"),
    (["PHOTOS"], ["--polygons"], "belong to --format coco"),
]


@pytest.mark.parametrize(("places", "more", "message"), BAD_CALLS)
def test_bad_calls(cli, preset, drawn, tmp_path, places, more, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "tables").mkdir()
    label = tmp_path / "tables" / "label.parquet"
    parquet.write_table(pa.table({"label": [1]}), label)
    names = {"EMPTY": "empty", "TABLES": "tables", "TABLE": "tables/label.parquet"}
    names = {name: str(tmp_path / path) for name, path in names.items()} | {"PHOTOS": str(drawn)}

    def path(word):
        return next((word.replace(k, v) for k, v in names.items() if word.startswith(k)), word)

    call = [*map(path, places), "--ray", "--out", tmp_path / "new", "--model", preset]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = cli("everything", *call, *map(path, more), "--quiet")
    assert code in (1, 2) and out == ""
    assert message in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "2"], "--workers belongs to --ray"),
        (["--format", "parquet"], "--format parquet belongs to --ray"),
        (["s3://bucket/photos"], "s3://bucket/photos: without --ray, it must be on this machine"),
    ],
)
def test_what_belongs_to_ray(cli, drawn, tmp_path, more, message):
    call = ("everything", drawn, *more, "--out", tmp_path / "out", "--model", "sam_tiny_demo")
    code, _, err = cli(*call, *(() if "--format" in more else ("--format", "coco")))
    assert code == 2 and message in err


def test_ray_is_not_installed(cli, drawn, preset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "out"
    code, _, err = cli("everything", drawn, "--ray", "--out", out, "--model", preset)
    assert code == 1 and 'pip install "keras-sam[ray]"' in err and not out.exists()


def test_a_port_of_something_else(monkeypatch):
    import socket

    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 3)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(cluster.ClusterError, match="does not answer as a cluster of Ray"),
            cluster.connected(address),
        ):
            pass


# In a cluster, after all others: Ray prints to stdout what it thinks of deaths


def test_workers_die_and_nothing_else_is_lost(
    cli, local, preset, drawn, expected, tmp_path, monkeypatch
):
    photos, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(drawn, photos)
    call = ("everything", photos, "--ray", "--workers", 2, "--out", out, "--model", preset, *FLAGS)
    code, text, err = cli(*call, "--json", "--quiet")
    assert code == 2, err
    rows = shards(out)
    assert {name: records_of(row) for name, row in rows.items()} == expected
    assert {len(row["sha256"]) for row in rows.values()} == {64}
    reasons = failures(out)
    assert reasons.keys() == {"bad.jpg", "always.png"}
    assert "cannot identify image file" in reasons["bad.jpg"]
    assert reasons["always.png"] == "2 workers died while they segmented it"
    summary = json.loads(text.splitlines()[-1])
    assert (summary["segmented"], summary["failed"], summary["skipped"]) == (7, 2, 0)

    # What has changed is done again, what has only been touched is not, and what failed is tried.
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (photos / "always.png").unlink()
    Image.fromarray(photograph((60, 50), 9)).save(photos / "bad.jpg")
    Image.fromarray(photograph((60, 50), 9)).save(photos / "0.png")
    os.utime(photos / "1.png")
    call = [1 if word == 2 else word for word in call]
    code, text, err = cli(*call, "--json", "--quiet", "--format", "coco")
    assert code == 0, err
    summary = json.loads(text.splitlines()[-1])
    assert (summary["segmented"], summary["failed"], summary["skipped"]) == (2, 0, 6)
    assert not (out / "failed.parquet").exists()
    rows = shards(out)
    assert rows.keys() == {*expected, "bad.jpg"} and rows["0.png"]["width"] == 50
    images, _ = read_coco(out / results.COCO_FILE)
    counts = {
        image.file_name: [r["segmentation"]["counts"] for r in image.records] for image in images
    }
    assert counts == {name: row["mask_counts"] for name, row in rows.items()}

    # Nothing is left to do, not even for what has been touched, and no worker is started for it.
    monkeypatch.setattr("keras_sam.ray.run.Run._start", None)
    again = {path.name: path.read_bytes() for path in out.iterdir()}
    code, text, err = cli(*call, "--quiet")
    words = text.splitlines()[-1].split("; ")
    assert (code, words[:2]) == (0, ["0 photographs segmented", "8 were done before"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == again != before

    # Results of other settings are not mixed with these.
    code, _, err = cli(*call, "--crop-n-layers", "1")
    assert code == 2 and "crop_n_layers was None, is 1" in err and err.count("\n") == 1


def test_boxes_of_a_detector_through_map_batches(local, preset, drawn):
    names = ["0.png", "always.png", "bad.jpg", "1.png"]
    boxes = [[[10, 10, 60, 50], [40, 30, 110, 80]], [[1, 1, 9, 9]], [[1, 1, 9, 9]], []]
    rows = [
        {"path": str(drawn / name), "boxes": some, "scores": [0.5] * len(some)}
        for name, some in zip(names, boxes)
    ]
    data = local.data.from_items(rows, override_num_blocks=1)
    masks = data.map_batches(
        keras_sam.ray.SegmentPrompts,
        fn_constructor_args=(str(preset),),
        batch_size=4,
        compute=local.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        runtime_env=cluster.runtime_env(),
    )
    found = {Path(row["path"]).name: row for row in masks.take_all()}
    assert found.keys() == set(names)
    assert found["always.png"]["error"] == "2 workers died while they segmented it"
    assert "cannot identify" in found["bad.jpg"]["error"]
    assert found["0.png"]["error"] is None and found["1.png"]["error"] is None
    assert list(found["1.png"]["mask_counts"]) == [] and list(found["0.png"]["scores"]) == [0.5] * 2
    predictor = keras_sam.SAMPredictor(str(preset))
    predictor.set_image(drawn / "0.png")
    wanted, scores, _ = predictor.predict(boxes=boxes[0], multimask_output=False)
    row = found["0.png"]
    assert np.allclose(row["mask_scores"], scores[:, 0], atol=1e-5)
    assert list(row["mask_areas"]) == wanted[:, 0].sum((1, 2)).tolist()


def test_a_cluster_that_is_there(local, preset, drawn, expected, tmp_path):
    """Another process, as after `ray start`."""
    out = tmp_path / "out"
    call = ["everything", drawn / "0.png", "--ray", local.get_runtime_context().gcs_address]
    call += ["--workers", "1", "--out", out, "--model", preset, "--quiet", *FLAGS]
    command = [sys.executable, "-m", "keras_sam", *call]
    environment = {**os.environ, "PYTHONPATH": "", "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (row,) = shards(out).values()
    assert records_of(row) == expected["0.png"]
    assert local.cluster_resources()["CPU"] >= 2  # it goes on


def test_workers_of_another_version(cli, local, preset, drawn, tmp_path, monkeypatch):
    code = "import keras_sam\nkeras_sam.__version__ = '0.0.9'\n"
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out"
    call = ("everything", drawn, "--ray", "--workers", 1, "--out", out, "--model", preset)
    code, _, err = cli(*call, "--quiet")
    assert code == 1 and not out.exists()
    assert f"the workers have keras_sam 0.0.9, and this is {keras_sam.__version__}" in err
    assert err.count("\n") == 1
