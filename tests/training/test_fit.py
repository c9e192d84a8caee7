"""Keras's own training machinery, on every backend: one small decoder, compiled once.

The encoder is frozen and left out (`image_embeddings`), so a step is quick and the compiled
function serves all tests of this file; each starts from the same weights.
"""

import contextlib
import csv
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_sam.preprocessing.batches import TrainingBatches
from keras_sam.training import ObjectBatches
from tests.tiny import photograph
from tests.training.steps import encoded, ragged_data, small_segmenter, values


class Start:
    """A compiled segmenter, its data, and the way back to where it began."""

    def __init__(self, optimizer, **settings):
        self.segmenter = small_segmenter(**settings)
        x, self.y = ragged_data()
        self.x = encoded(self.segmenter, x)
        self.segmenter.compile(optimizer=optimizer)
        self.segmenter.optimizer.build(self.segmenter.trainable_variables)
        self._before = self._state()

    def _state(self):
        state = [*self.segmenter.variables, *self.segmenter.optimizer.variables]
        return [keras.ops.convert_to_numpy(v) for v in state]

    def again(self):
        state = [*self.segmenter.variables, *self.segmenter.optimizer.variables]
        for variable, value in zip(state, self._before, strict=True):
            variable.assign(value)
        self.segmenter._initial_epoch = None  # where `BackupAndRestore` once began
        return self.segmenter, self.x, self.y


@pytest.fixture(scope="module")
def start():
    return Start(keras.optimizers.Adam(5e-3))


@pytest.fixture
def fresh(start):
    return start.again()


def test_fit_reports_and_lowers_loss_and_validation_loss(fresh):
    segmenter, x, y = fresh
    history = segmenter.fit(
        x, y, batch_size=2, epochs=8, validation_data=(x, y), validation_batch_size=2, verbose=0
    ).history
    names = {"loss", "miou", "iou_error"}
    assert set(history) == names | {f"val_{name}" for name in names}
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert history["val_loss"][-1] < 0.9 * history["val_loss"][0]
    measured = segmenter.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    for name in names:
        assert measured[name] == pytest.approx(history[f"val_{name}"][-1], rel=1e-4, abs=1e-6)


def test_a_step_on_a_batch_is_what_fit_does(fresh, start):
    segmenter, x, y = fresh
    by_fit = segmenter.fit(x, y, batch_size=2, verbose=0).history["loss"][0]
    after_fit = values(segmenter)
    segmenter, x, y = start.again()
    assert segmenter.test_on_batch(x, y, return_dict=True)["loss"] == pytest.approx(
        by_fit, rel=1e-4
    )
    by_step = segmenter.train_on_batch(x, y, return_dict=True)
    assert by_step["loss"] == pytest.approx(by_fit, rel=1e-5)
    assert_same_weights(segmenter, after_fit)


def assert_same_weights(segmenter, wanted):
    for path, value in values(segmenter).items():
        if path.endswith("key_proj/bias"):
            # It adds the same to all logits of a query, so it has no gradient but rounding, of
            # which Adam makes steps: another compilation or run, another direction.
            continue
        np.testing.assert_allclose(value, wanted[path], atol=1e-5, err_msg=path)


def test_the_encoder_stays_as_it_is(fresh):
    segmenter, x, y = fresh
    before = segmenter.image_encoder.fingerprint()
    segmenter.fit(x, y, batch_size=2, verbose=0)
    assert segmenter.image_encoder.fingerprint() == before


def test_checkpoints_hold_the_best_weights(fresh, tmp_path):
    segmenter, x, y = fresh
    path = tmp_path / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(
        path, monitor="val_loss", save_best_only=True, save_weights_only=True
    )
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = segmenter.fit(
        x, y, batch_size=2, epochs=4, validation_data=(x, y), validation_batch_size=2,
        callbacks=[best, log], verbose=0,
    ).history  # fmt: skip
    segmenter.fit(x, y, batch_size=2, verbose=0)
    segmenter.load_weights(path)
    measured = segmenter.evaluate(x, y, batch_size=2, verbose=0, return_dict=True)
    assert measured["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-4)
    with open(tmp_path / "log.csv", newline="") as file:
        logged = [float(row["loss"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(logged, history["loss"], rtol=1e-6)


def test_training_ends_early(fresh):
    segmenter, x, y = fresh
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e3, patience=2)
    history = segmenter.fit(x, y, batch_size=2, epochs=9, callbacks=[stop], verbose=0).history
    assert len(history["loss"]) == 3  # one to compare with, and two in which too little happens


class Crash(keras.callbacks.Callback):
    """Ends training in the middle of an epoch, as a lost machine would."""

    def __init__(self, epoch):
        super().__init__()
        self._epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self._now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._now == self._epoch:
            raise KeyboardInterrupt


class Embedded:
    """Four encoded images with one or two objects each, as `ObjectBatches` would have them."""

    def __init__(self, x, y):
        self._items = [
            ({"image_embeddings": x["image_embeddings"][i]}, y["masks"][i]) for i in (0, 1, 1, 0)
        ]

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]


def embedded_batches(x, y, **settings):
    data = ObjectBatches(Embedded(x, y), **{"batch_size": 2, "seed": 5, **settings})
    data._is_cached = True
    return data


def test_a_run_that_was_interrupted_ends_where_it_would_have(fresh, start, tmp_path):
    segmenter, x, y = fresh
    settings = {"prompts": "points", "max_objects": 1}  # which object, and where, is drawn
    wanted = segmenter.fit(embedded_batches(x, y, **settings), epochs=4, verbose=0).history
    wanted_values = values(segmenter)

    def resumable():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    segmenter, *_ = start.again()
    with contextlib.suppress(KeyboardInterrupt):
        segmenter.fit(
            embedded_batches(x, y, **settings), epochs=4, verbose=0,
            callbacks=[resumable(), Crash(epoch=2)],
        )  # fmt: skip
    segmenter, *_ = start.again()
    history = segmenter.fit(
        embedded_batches(x, y, **settings), epochs=4, verbose=0, callbacks=[resumable()]
    ).history
    np.testing.assert_allclose(history["loss"], wanted["loss"][2:], rtol=1e-4)
    assert_same_weights(segmenter, wanted_values)


def test_threads_that_load_change_nothing(fresh, start):
    segmenter, x, y = fresh
    settings = {"prompts": "points or boxes", "batch_size": 1}
    wanted = segmenter.fit(embedded_batches(x, y, **settings), epochs=2, verbose=0).history
    segmenter, *_ = start.again()
    data = embedded_batches(x, y, **settings, workers=2)
    history = segmenter.fit(data, epochs=2, verbose=0).history
    np.testing.assert_allclose(history["loss"], wanted["loss"], rtol=1e-5)


def test_numbers_of_objects_may_differ_from_batch_to_batch(fresh):
    segmenter, x, y = fresh
    order = [1, 1, 0]  # one object, one, two: TensorFlow is told before it sees the third
    x = {name: [value[i] for i in order] for name, value in x.items()}
    y = {"masks": [y["masks"][i] for i in order]}
    history = segmenter.fit(x, y, shuffle=False, verbose=0).history
    separately = [
        segmenter.test_on_batch({k: v[i : i + 1] for k, v in x.items()}, {"masks": [y["masks"][i]]})
        for i in range(3)
    ]
    assert np.isfinite([history["loss"][0], *np.ravel(separately)]).all()


def test_a_weight_of_zero_leaves_an_object_out(fresh):
    segmenter, x, y = fresh
    weighted = segmenter.test_on_batch(x, y, sample_weight=np.float32([[1, 0], [1, 0]]))
    without = {
        **x,
        "points": [x["points"][0][:1], x["points"][1]],
        "labels": [x["labels"][0][:1], x["labels"][1]],
    }
    plain = segmenter.test_on_batch(without, {"masks": [y["masks"][0][:1], y["masks"][1]]})
    np.testing.assert_allclose(weighted, plain, rtol=1e-5)
    # One weight per image: the mean over the objects that count.
    first = segmenter.test_on_batch(x, y, sample_weight=np.float32([1, 0]))
    alone = {name: value[:1] for name, value in x.items()}
    np.testing.assert_allclose(
        first, segmenter.test_on_batch(alone, {"masks": y["masks"][:1]}), rtol=1e-4
    )


def test_what_is_under_void_counts_for_nothing(fresh):
    segmenter, x, y = fresh
    void = [m.copy() for m in y["masks"]]
    for masks in void:
        masks[:, :32] = 255
    hidden = [m.copy() for m in void]
    plain = segmenter.test_on_batch(x, {"masks": void})
    assert plain[0] != pytest.approx(segmenter.test_on_batch(x, y)[0], rel=1e-3)
    # An object that is void altogether is as if it had no weight.
    hidden[0][1] = 255
    weight = np.float32([[1, 0], [1, 0]])
    np.testing.assert_allclose(
        segmenter.test_on_batch(x, {"masks": hidden}),
        segmenter.test_on_batch(x, {"masks": void}, sample_weight=weight),
        rtol=1e-5,
    )


def test_an_empty_target_and_an_image_without_objects_train_without_harm(fresh):
    segmenter, x, y = fresh
    empty = [np.zeros_like(y["masks"][0]), y["masks"][1]]
    assert np.isfinite(segmenter.train_on_batch(x, {"masks": empty})).all()
    nobody = {**x, "points": [x["points"][0], []], "labels": [x["labels"][0], []]}
    targets = {"masks": [y["masks"][0], np.zeros((0, 80, 50), "uint8")]}
    alone = {name: value[:1] for name, value in x.items()}
    np.testing.assert_allclose(
        segmenter.test_on_batch(nobody, targets),
        segmenter.test_on_batch(alone, {"masks": y["masks"][:1]}),
        rtol=1e-4,
    )


def test_hypernetworks_learn_from_the_prompts_that_they_are_for(fresh, start):
    """A lone box trains mask 0 alone, a lone click masks 1 to 3 alone."""
    for kind in ("box", "click"):
        segmenter, x, y = start.again()
        x = dict(x)
        if kind == "box":
            del x["points"], x["labels"]
            x["boxes"] = [[[15, 15, 45, 45], [50, 10, 70, 30]], [[8, 28, 32, 52]]]
        before = values(segmenter)
        segmenter.train_on_batch(x, y)
        after = values(segmenter)
        moved = {
            path.split("/")[1]
            for path, value in before.items()
            if "hypernetwork" in path and not np.array_equal(value, after[path])
        }
        if kind == "box":
            assert moved == {"hypernetwork_0"}
        else:
            assert moved and moved <= {f"hypernetwork_{k}" for k in (1, 2, 3)}


def test_a_loss_that_is_no_number_ends_training_with_the_batch_that_did_it(fresh):
    segmenter, x, y = fresh
    x = {**x, "image_embeddings": x["image_embeddings"].copy()}
    x["image_embeddings"][1] = np.nan
    with pytest.raises(RuntimeError, match=r"nan from batch 1 \(image 1 of `x`\) of epoch 0"):
        segmenter.fit(x, y, shuffle=False, verbose=0)


def test_the_images_of_a_bad_batch_are_named(fresh):
    segmenter, x, y = fresh
    embeddings = np.array(x["image_embeddings"])
    embeddings[1] = np.nan
    data = embedded_batches({**x, "image_embeddings": embeddings}, y, batch_size=1, prompts="boxes")
    order = data.describe(0), data.describe(1), data.describe(2)
    first = min(i for i in range(3) if order[i] in ("image 1", "image 2"))
    with pytest.raises(RuntimeError, match=rf"batch {first} \({order[first]}\) of epoch 0"):
        segmenter.fit(data, verbose=0)


def test_batches_have_names_and_epochs_in_every_kind_of_data():
    x, y = {"images": [photograph((9, 9))] * 4}, {"masks": [np.ones((1, 9, 9), "uint8")] * 4}
    batches = TrainingBatches(lambda *item: item, x, y, batch_size=3)
    assert batches.describe(1) == "image 3 of `x`"
    assert TrainingBatches(lambda *item: item, [(x, y)]).describe(0) == ""
    shuffled = TrainingBatches(lambda *item: item, x, y, shuffle=True)
    orders = []
    for epoch in (0, 1, 2, 0):
        shuffled.epoch = epoch
        orders.append([shuffled.describe(i) for i in range(4)])
    assert orders[0] == orders[3]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == sorted(orders[0]) for order in orders)


def test_accumulation_clipping_and_averages_of_keras_optimizers():
    settings = {"gradient_accumulation_steps": 2, "global_clipnorm": 0.05}
    average = {"use_ema": True, "ema_momentum": 0.75}
    start = Start(keras.optimizers.SGD(1.0, **settings, **average))
    segmenter, x, y = start.again()
    seen = [values(segmenter)]
    for _ in range(4):
        segmenter.train_on_batch(x, y)
        seen.append(values(segmenter))
    for path, value in seen[0].items():
        np.testing.assert_array_equal(seen[1][path], value)  # gathered
        np.testing.assert_array_equal(seen[3][path], seen[2][path])
    for a, b in ((seen[1], seen[2]), (seen[3], seen[4])):
        length = np.sqrt(sum(np.sum((a[path] - b[path]) ** 2) for path in a))
        assert length == pytest.approx(0.05, rel=1e-3)
    average = seen[2]  # Keras begins with the weights after the first step
    for step in seen[3:]:
        average = {path: 0.75 * value + 0.25 * step[path] for path, value in average.items()}
    segmenter.optimizer.finalize_variable_values(segmenter.trainable_variables)
    for path, value in values(segmenter).items():
        np.testing.assert_allclose(value, average[path], atol=1e-5, err_msg=path)


def test_mixed_bfloat16_trains_float32_weights():
    segmenter, x, y = Start(keras.optimizers.Adam(5e-3), dtype="mixed_bfloat16").again()
    assert {v.dtype for v in segmenter.trainable_variables} == {"float32"}
    losses = [segmenter.train_on_batch(x, y)[0] for _ in range(8)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]
    reference, x, y = Start(keras.optimizers.Adam(5e-3)).again()
    assert losses[0] == pytest.approx(reference.test_on_batch(x, y)[0], rel=0.05)


@pytest.mark.once
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_half_precision_are_refused_before_the_first_batch(dtype):
    segmenter, (x, y) = small_segmenter(dtype=dtype), ragged_data()
    segmenter.compile(optimizer=keras.optimizers.AdamW(1e-3))
    for train in (segmenter.fit, segmenter.train_on_batch):
        with pytest.raises(ValueError, match=f'weights in {dtype}.*dtype="mixed_{dtype}"'):
            train({**x, "images": ["never.jpg", "read.jpg"]}, y)
    assert np.isfinite(segmenter.evaluate(x, y, verbose=0)[0])


@pytest.mark.once
@pytest.mark.parametrize("train", ["fit", "train_on_batch"])
def test_nothing_is_said_of_the_layers_for_masks_where_no_prompt_has_one(train, recwarn):
    segmenter, (x, y) = small_segmenter(), ragged_data()
    segmenter.compile(optimizer=keras.optimizers.AdamW(1e-3))
    getattr(segmenter, train)(x, y)
    assert not [w for w in recwarn if "Gradients" in str(w.message)]


@pytest.mark.parametrize(
    ("argument", "instead"),
    [({"class_weight": {0: 1.0, 1: 2.0}}, "sample_weight"), ({"validation_split": 0.5}, "data=")],
)
def test_arguments_that_have_no_meaning_name_what_to_pass_instead(fresh, argument, instead):
    segmenter, x, y = fresh
    with pytest.raises(ValueError, match=f"{[*argument][0]}.*{instead}"):
        segmenter.fit(x, y, **argument)


def test_objects_without_prompts_name_both_remedies():
    segmenter, (x, y) = small_segmenter(), ragged_data()
    segmenter.compile(optimizer="adamw")
    source = [*zip(x["images"], y["masks"], strict=True)]
    with pytest.raises(ValueError, match=r'`prompts="boxes"`.*`keras_sam.training.SAMTrainer`'):
        segmenter.fit(ObjectBatches(source), verbose=0)


@pytest.mark.parametrize("paths", [["a.png", "b.png"], [Path("a.png")]])
def test_targets_are_read_before_they_are_passed(paths):
    segmenter, (x, y) = small_segmenter(), ragged_data()
    segmenter.compile(optimizer="adamw")
    with pytest.raises(ValueError, match="must be arrays. Received: .*a.png.*MaskFolder"):
        segmenter.train_on_batch(x, {"masks": [paths, y["masks"][1]]})


def test_targets_are_checked_with_embeddings_too(fresh):
    segmenter, x, y = fresh
    with pytest.raises(ValueError, match=r"image 0 must have shape \(2, 60, 90\)"):
        segmenter.train_on_batch(x, {"masks": [y["masks"][0][:, 1:], y["masks"][1]]})
    with pytest.raises(ValueError, match="one item for each of the 2 images"):
        segmenter.fit(x, {"masks": y["masks"][:1]}, verbose=0)
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, 5, 16\)"):
        bad = {**x, "image_embeddings": x["image_embeddings"][:, 1:]}
        segmenter.train_on_batch(bad, y)
    with pytest.raises(ValueError, match="`points`"):
        segmenter.train_on_batch({**x, "points": [[[1, 2, 3]]] * 2}, y)
