"""One run of `keras-sam train`: what it trains, what it keeps, and how it continues.

Keras's `BackupAndRestore` and `CSVLogger` write one after the other, so that a process that is
killed in between would continue with the state of one epoch and the log of another. Here an epoch
is finished once its state has its final name, and everything else can be written again.
"""

import csv
import importlib.util
import re

import keras
import numpy as np

from keras_sam.cli.errors import CommandError
from keras_sam.cli.output import csv_text
from keras_sam.files import whole_file, whole_folder
from keras_sam.training import CachedEmbeddings, LayerwiseDecay, ObjectBatches, SAMTrainer

LOG_FILE = "log.csv"
BEST = "best"
STATE = "state"


class Part:
    """The items `indices` of a `keras_sam.training.Source`."""

    def __init__(self, source, indices):
        self._source, self._indices = source, indices

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self._source[self._indices[index]]

    def path(self, index):
        """The image file of an item."""
        return self._source.path(self._indices[index])


def split(source, part: float, seed: int) -> tuple[Part, Part]:
    """Splits a `Source` at random, the second part being `part` of it; no part may be empty."""
    count = round(part * len(source))
    if not 0 < count < len(source):
        raise ValueError(
            f"`validation_split` must leave images on both sides. Received: {part} of "
            f"{len(source)} images."
        )
    order = np.random.default_rng(seed).permutation(len(source))
    return Part(source, sorted(order[count:])), Part(source, sorted(order[:count]))


def import_for_fit() -> None:
    """Imports TensorFlow if it is installed, as `fit` would later, when its logs are not hidden."""
    if importlib.util.find_spec("tensorflow"):
        importlib.import_module("tensorflow")


class TrainingRun:
    """Trains a `SAMImageSegmenter` on a `Source` with the options of `keras-sam train`."""

    def __init__(self, segmenter, train, validation, args):
        self.args = args
        self.segmenter = segmenter
        self.monitor = "miou" if validation is None else "val_miou"
        keras.utils.set_random_seed(args.seed)
        if args.parts == "decoder":
            segmenter.freeze("image_encoder", "prompt_encoder")
        if args.lora is not None:
            segmenter.enable_lora(args.lora)  # what it adds is trained in a frozen encoder too
        self.trainer = SAMTrainer(
            segmenter,
            num_clicks=args.num_clicks,
            mask_rounds=False,
            box_probability=args.box_probability,
            seed=args.seed,
        )
        optimizer = keras.optimizers.AdamW(
            args.learning_rate, weight_decay=args.weight_decay, global_clipnorm=1.0
        )
        if args.layer_decay is not None:
            optimizer = LayerwiseDecay(optimizer, args.layer_decay)
        self.trainer.compile(optimizer=optimizer)
        self.data = self._batches(
            train, workers=args.workers, flips=args.flips, scales=args.scales, shuffle=True
        )
        self.validation = None if validation is None else self._batches(validation, shuffle=False)
        self.rows: list[dict] = []
        self._restore()

    def _batches(self, source, **settings):
        args = self.args
        if args.cache is not None:
            source = CachedEmbeddings(
                self.segmenter, source, args.cache, skip_unreadable=args.skip_unreadable, verbose=0
            )
        return ObjectBatches(
            source,
            batch_size=args.batch_size,
            max_objects=args.max_objects,
            skip_unreadable=args.skip_unreadable,
            seed=args.seed,
            **settings,
        )

    @property
    def best_row(self) -> dict:
        """The log's row of the best epoch, the first of several."""
        return max(self.rows, key=lambda row: float(row[self.monitor]))

    def fit(self, progress) -> None:
        """Trains the remaining epochs."""
        done = len(self.rows)
        steps = self.data.num_batches
        if done:
            progress.say(f"{done} epochs are done")
        if self._has_ended():
            return
        with progress.bar((self.args.epochs - done) * steps) as bar:
            self.trainer.fit(
                self.data,
                validation_data=self.validation,
                initial_epoch=done,
                epochs=self.args.epochs,
                verbose=0,
                shuffle=False,  # the data shuffles itself, by its seed
                callbacks=[_EpochCallback(self, bar)],
            )

    def reset_random_numbers(self, number: int) -> None:
        """Makes random numbers depend on the seed and `number` alone: no file has to keep them."""
        states = [v for v in self.trainer.variables if v.path.endswith("seed_generator_state")]
        for index, state in enumerate(states):
            state.assign(np.array([self.args.seed + index, number << 16], state.dtype))

    def save_epoch(self, epoch: int, logs: dict) -> None:
        """Saves a finished epoch."""
        self.rows.append({"epoch": epoch + 1, **{k: f"{v:.6g}" for k, v in sorted(logs.items())}})
        if self.best_row is self.rows[-1]:
            with whole_folder(self.args.out / BEST, replaceable="config.json") as folder:
                self.segmenter.save_to_preset(folder)
        self._write_log()
        folder = self.args.out / STATE
        folder.mkdir(exist_ok=True)
        earlier = list(folder.iterdir())
        # Keras requires the ending `.weights.h5`, so the temporary name differs at its start.
        temporary = folder / f"unfinished_{epoch + 1}.weights.h5"
        self.trainer.save_weights(temporary, overwrite=True)
        temporary.replace(folder / f"epoch_{epoch + 1}.weights.h5")
        for path in earlier:
            path.unlink(missing_ok=True)

    def _has_ended(self):
        if len(self.rows) >= self.args.epochs:
            return True
        patience = self.args.patience
        return bool(self.rows and patience) and len(self.rows) - self.best_row["epoch"] >= patience

    def _restore(self):
        epochs = {
            int(match[1]): path
            for path in (self.args.out / STATE).glob("epoch_*.weights.h5")
            if (match := re.fullmatch(r"epoch_(\d+)\.weights\.h5", path.name))
        }
        if not epochs:
            return
        last = max(epochs)
        self.trainer.build()
        self.trainer.optimizer.build(self.trainer.trainable_variables)
        try:
            with open(self.args.out / LOG_FILE, encoding="utf-8", newline="") as file:
                rows = [{**row, "epoch": int(row["epoch"])} for row in csv.DictReader(file)]
            self.trainer.load_weights(epochs[last])
        except (OSError, KeyError, ValueError) as error:
            raise CommandError(
                f"--out {self.args.out}: cannot go on, {LOG_FILE} or {epochs[last].name} is "
                f"damaged: {error}"
            ) from error
        self.rows = rows[:last]  # an epoch that was logged but not saved is done again
        if len(self.rows) < last:
            raise CommandError(
                f"--out {self.args.out}: cannot go on, {LOG_FILE} has {len(rows)} of {last} epochs"
            )

    def _write_log(self):
        with whole_file(self.args.out / LOG_FILE, text=True) as file:
            file.write(csv_text(self.rows))
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        epochs = [row["epoch"] for row in self.rows]
        for axes, name in zip(figure.subplots(1, 2), ("loss", "miou"), strict=True):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                if key in self.rows[-1]:
                    axes.plot(epochs, [float(row[key]) for row in self.rows], ".-", label=label)
            axes.set(xlabel="epoch", ylabel=name)
            axes.legend()
        with whole_file(self.args.out / "curves.png") as file:
            figure.savefig(file, format="png", dpi=120)


class _EpochCallback(keras.callbacks.Callback):
    """Moves the bar, saves every epoch, and stops after `--patience` epochs without progress."""

    def __init__(self, run, bar):
        super().__init__()
        self._run, self._bar = run, bar

    def on_epoch_begin(self, epoch, logs=None):
        self._run.reset_random_numbers(epoch + 1)

    def on_test_begin(self, logs=None):
        # The same prompts every time, so that epochs can be compared.
        self._run.reset_random_numbers(0)

    def on_train_batch_end(self, batch, logs=None):
        self._bar.advance(1)
        self._bar.describe(_figures(logs or {}))

    def on_epoch_end(self, epoch, logs=None):
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self._run.save_epoch(epoch, logs)
        self._bar.say(f"epoch {epoch + 1}/{self._run.args.epochs}: {_figures(logs)}")
        if self._run._has_ended():
            self.model.stop_training = True


def _figures(logs):
    return ", ".join(f"{name} {float(value):.4f}" for name, value in sorted(logs.items()))
