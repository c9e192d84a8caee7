"""`keras-sam train`: what it writes, how it goes on, and what it refuses."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from PIL import Image

import keras_sam
from keras_sam.cli import main, training_run
from tests.datasets import write_data_set
from tests.tiny import tiny_segmenter

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {"num_clicks": 0, "learning_rate": 1e-3, "seed": 3, "max_objects": 4, "epochs": 3}
# The backends' sums differ in their last bits, and so does a run from itself.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return write_data_set(tmp_path_factory.mktemp("trained_on"), count=4)


@pytest.fixture(scope="session")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "preset"
    tiny_segmenter(image_shape=(64, 80, 3), num_layers=2).save_to_preset(folder)
    return folder


@pytest.fixture
def cli(cli, loaded, preset):
    """As ever, but for the models: a trained one is no start for the next run."""

    def call(*arguments):
        loaded.pop((str(preset),), None)
        return cli(*arguments)

    return call


def words(data, preset, out, *more, **settings):
    """A call that trains the tiny model for a few epochs."""
    call = ["train", "--model", preset, *data.options("masks"), "--out", out, *more]
    for name, value in {**SETTINGS, **settings}.items():
        call += [f"--{name.replace('_', '-')}", value]
    return [str(word) for word in call]


def log_of(out):
    with open(out / "log.csv", newline="") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def weights_of(preset):
    found = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[...]

    with h5py.File(preset / "model.weights.h5") as file:
        file.visititems(collect)
    return found


@pytest.fixture(scope="session")
def whole(data, preset, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "run"
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setenv("KERAS_BACKEND", keras.config.backend())
        assert main([*words(data, preset, out, "--flips"), "--quiet"]) == 0
    return out


def test_what_a_run_leaves(whole, preset):
    rows = log_of(whole)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert rows[0].keys() == {"epoch", "loss", "miou", "iou_error"}
    names = ["best", "curves.png", "log.csv", "settings.json", "state"]
    assert sorted(path.name for path in whole.iterdir()) == names
    assert [path.name for path in (whole / "state").iterdir()] == ["epoch_3.weights.h5"]
    assert Image.open(whole / "curves.png").width > 500
    before, after = weights_of(preset), weights_of(whole / "best")
    changed = {name for name, value in before.items() if (after[name] != value).any()}
    assert changed and all(name.startswith("mask_decoder/") for name in changed)
    assert keras_sam.SAMImageSegmenter.from_preset(whole / "best").image_shape == (64, 80, 3)


def test_a_killed_run_ends_as_if_nothing_had_happened(data, preset, whole, cli, tmp_path):
    out = tmp_path / "run"
    call = words(data, preset, out, "--flips")
    # At the worst moment: the epoch is in the log and the best preset, but not in the state.
    code = f"""
import os, signal, sys
from keras_sam.cli import main
from keras_sam.training import SAMTrainer
save = SAMTrainer.save_weights
def save_and_die(self, path, **options):
    save(self, path, **options)
    if "2" in os.path.basename(path):
        os.kill(os.getpid(), signal.SIGKILL)
SAMTrainer.save_weights = save_and_die
main({call!r})
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "epoch_1.weights.h5" in {path.name for path in (out / "state").iterdir()}
    assert len(log_of(out)) == 2
    code, text, err = cli(*call)
    assert code == 0 and "1 epochs are done" in err
    assert text.splitlines()[-1] == f"preset: {out / 'best'}"
    for found, wanted in zip(log_of(out), log_of(whole), strict=True):
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), **CLOSE)
    found, wanted = weights_of(out / "best"), weights_of(whole / "best")
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, err_msg=name, **CLOSE)
    assert [path.name for path in (out / "state").iterdir()] == ["epoch_3.weights.h5"]


def test_a_finished_run_stays_as_it_is(data, preset, whole, cli):
    before = {path: path.read_bytes() for path in whole.rglob("*.h5")}
    code, out, _ = cli(*words(data, preset, whole, "--flips"), "--quiet")
    assert code == 0 and f"preset: {whole / 'best'}" in out
    assert {path: path.read_bytes() for path in whole.rglob("*.h5")} == before


def test_a_file_says_the_same_as_options(data, preset, whole, cli):
    """The finished run takes the file's settings for its own."""
    config = data.folder / "config.toml"
    lines = [f'data = "photos"\nmasks = "masks"\nout = {json.dumps(str(whole))}']
    lines += [f"model = {json.dumps(str(preset))}", "label_map = true", "flips = true"]
    lines += [f"{name} = {value}" for name, value in SETTINGS.items() if name != "epochs"]
    config.write_text("\n".join([*lines, "epochs = 999"]))
    assert cli("train", "--config", config, "--epochs", "3", "--quiet")[0] == 0
    code, _, err = cli("train", "--config", config, "--seed", "4", "--quiet")
    assert code == 2 and "other settings (seed was 3, is 4)" in err


def test_a_cache_and_stopping_early(data, preset, cli, tmp_path):
    out, cache = tmp_path / "run", tmp_path / "cache"
    settings = {"epochs": 40, "patience": 1, "learning_rate": 1e-9, "validation_split": 0.25}
    call = words(data, preset, out, "--cache", cache, **settings)
    code, text, err = cli(*call)
    assert code == 0, err
    assert log_of(out)[0].keys() >= {"val_loss", "val_miou"}
    rows = [row["val_miou"] for row in log_of(out)]
    assert len(rows) < 40 and len(rows) - 1 == int(np.argmax(rows)) + 1
    assert text.startswith(f"best epoch {len(rows) - 1} of {len(rows)}: val_miou {max(rows):.3f}")
    assert len(list(cache.glob("*.npy"))) == 4


@pytest.mark.every_backend
def test_lora_with_smaller_steps_for_earlier_blocks(data, preset, cli, tmp_path, monkeypatch):
    """One epoch, and what the same command then finds, which is all there is to do."""
    states = []
    fit = training_run.TrainingRun.fit

    def watched(run, progress):
        states.append(state_of(run.trainer))
        fit(run, progress)
        states.append(state_of(run.trainer))

    monkeypatch.setattr(training_run.TrainingRun, "fit", watched)
    out, config = tmp_path / "run", tmp_path / "lora.toml"
    config.write_text("lora = 2\nlayer_decay = 0.5")
    call = ["train", "--config", config, *words(data, preset, out, epochs=1)[1:], "--quiet"]
    for _ in range(2):
        code, _, err = cli(*call)
        assert code == 0, err
    _, trained, found, _ = states
    assert any("lora_kernel" in path for path in found)
    for path, value in trained.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
    before, after = weights_of(preset), weights_of(out / "best")
    assert before.keys() == after.keys()  # merged
    changed = {name for name, value in before.items() if (after[name] != value).any()}
    encoder = {name for name in changed if not name.startswith("mask_decoder/")}
    assert encoder and all(name.endswith(("qkv/kernel", "projection/kernel")) for name in encoder)
    assert changed - encoder
    # Adam's first steps have one size, so blocks differ by the decay alone.
    steps = [
        np.abs(trained[path] - states[0][path]).max()
        for path in sorted(trained)
        if path.endswith("qkv/lora_kernel_b")
    ]
    assert len(steps) == 2 and steps[0] < 0.7 * steps[1]


def state_of(trainer):
    """What training goes on from: weights, and the optimizer's moments."""
    named = [(v.path, v) for v in trainer.trainable_variables]
    # Not by their paths, which count the optimizers of a process.
    named += [(f"optimizer {i}", v) for i, v in enumerate(trainer.optimizer.variables)]
    return {name: keras.ops.convert_to_numpy(v) for name, v in named}


def test_damaged_states_are_refused(data, preset, whole, cli, tmp_path):
    out = tmp_path / "run"
    for name, content in (("settings.json", None), ("log.csv", "epoch\n1\n")):
        (out / "state").mkdir(parents=True, exist_ok=True)
        text = (whole / name).read_text() if content is None else content
        (out / name).write_text(text)
    (out / "state" / "epoch_3.weights.h5").write_bytes(b"no weights")
    code, _, err = cli(*words(data, preset, out, "--flips"), "--quiet")
    assert code == 2 and "epoch_3.weights.h5 is damaged" in err and err.count("\n") == 1
    (out / "settings.json").write_text("{")
    code, _, err = cli(*words(data, preset, out, "--flips"), "--quiet")
    assert code == 2 and "settings.json is damaged" in err and err.count("\n") == 1
    assert cli(*words(data, preset, out, "--overwrite", epochs=1), "--quiet")[0] == 0
    assert [row["epoch"] for row in log_of(out)] == [1]
    assert [path.name for path in (out / "state").iterdir()] == ["epoch_1.weights.h5"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((), "required: --data, --out, --model"),
        (("--data", "DIR/pairs"), "required: --out, --model"),
        (("--data", "DIR/pairs", "OUT"), "required: --model"),
        (("MODEL", "OUT", "--data", "none"), "no such file or folder"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--epochs", "0"), "at least 1"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--learning-rate", "0"), "a number above 0"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--scales", "2,1"), "expected 0 < LOW <= HIGH"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--box-probability", "2"), "from 0 to 1"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--parts", "nothing"), "invalid choice"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--validation", "none"), "--validation none"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--validation-masks", "DIR"), "belong to"),
        (
            ("MODEL", "OUT", "--data", "DIR/pairs", "--validation", "DIR/pairs")
            + ("--validation-split", "0.5"),
            "cannot be combined",
        ),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--validation-split", "0.01"), "both sides"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--cache", "c", "--flips"), "cannot be combined"),
        (
            ("MODEL", "OUT", "--data", "DIR/pairs", "--cache", "c", "--parts", "all"),
            "--cache needs",
        ),
        (
            ("MODEL", "OUT", "--data", "DIR/pairs", "--cache", "c", "--lora", "2"),
            "--lora cannot be",
        ),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--lora", "0"), "at least 1, received '0'"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--layer-decay", "0"), "above 0, up to 1"),
        (("MODEL", "OUT", "--data", "DIR/pairs", "--layer-decay", "1.5"), "received '1.5'"),
        (
            ("MODEL", "OUT", "--data", "DIR/pairs", "--layer-decay", "0.5"),
            "--layer-decay needs --parts all or --lora",
        ),
        (("MODEL", "--out", "DIR/photos", "--data", "DIR/pairs"), "holds other files"),
        (("--config", "none.toml"), "none.toml: No such file"),
        (("--config", "DIR/text.toml"), "not a TOML file"),
        (("--config", "DIR/unknown.toml"), "there is no option 'epoch'"),
        (("--config", "DIR/quiet.toml"), "there is no option 'quiet'"),
        (
            ("--config", "DIR/wrong.toml"),
            "--epochs: expected a whole number, at least 1, received 'many'",
        ),
        (("--config", "DIR/table.toml"), "must not be in a table"),
        (
            ("--config", "DIR/decay.toml"),
            "--layer-decay: expected a number above 0, up to 1, received '2'",
        ),
    ],
)
def test_bad_calls(cli, data, preset, tmp_path, call, message):
    for name, text in {
        "text": "epochs",
        "unknown": "epoch = 3",
        "quiet": "quiet = true",
        "wrong": 'epochs = "many"',
        "table": "[epochs]\nn = 3",
        "decay": "lora = 4\nlayer_decay = 2",
    }.items():
        (data.folder / f"{name}.toml").write_text(text)
    replaced = []
    for word in call:
        named = {"MODEL": ["--model", preset], "OUT": ["--out", tmp_path / "run"]}
        replaced += named.get(word, [word.replace("DIR", str(data.folder))])
    code, out, err = cli("train", *replaced, "--quiet")
    assert (code, out) == (2, ""), err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_is_named(cli, preset, tmp_path):
    broken = write_data_set(tmp_path / "broken", count=2)
    (broken.folder / "photos" / "p1.png").write_bytes(b"no picture")
    call = words(broken, preset, tmp_path / "run", epochs=1)
    code, _, err = cli(*call, "--quiet")
    assert code == 2 and "p1.png cannot be read" in err and "--skip-unreadable" in err
    assert err.count("\n") == 1
