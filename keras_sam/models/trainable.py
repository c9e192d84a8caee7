"""`compile`, `fit` and `evaluate` for a promptable segmenter."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_sam import backends
from keras_sam.encode_decode import EMBEDDINGS
from keras_sam.losses import VOID, SAMLoss, lone_click, selected_iou
from keras_sam.preprocessing.batches import Batch, TrainingBatches
from keras_sam.preprocessing.preprocessor import Prepared
from keras_sam.preprocessing.targets import prompt_weights, targets_to_frames
from keras_sam.prompts.canonical import pad_prompts

_NOT_IN_FIT = {
    "class_weight": "`class_weight` has no meaning here: a mask has no classes. To count some "
    "images or objects more, pass `sample_weight`, (B,) or (B, P).",
    "validation_split": "`validation_split` is not supported: which images to keep out is left to "
    "you, since several may show one scene. Pass them as `validation_data=(x, y)`.",
}


def _takes_three(loss):
    """Whether it can be called as `SAMLoss` is; Keras's losses and functions take two."""
    if not callable(loss) or isinstance(loss, keras.losses.Loss):
        return False
    if (getattr(loss, "__module__", None) or "").startswith("keras."):
        return False  # of two tensors, and perhaps an axis
    try:
        inspect.signature(loss).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # of a function that shows no signature
        pass
    return True


class _FitState:
    """Loss and metrics of a compiled segmenter, in a plain object that Keras does not save."""

    def __init__(self, loss, has_metrics):
        self.loss = loss
        self.has_metrics = has_metrics
        self.miou = keras.metrics.Mean(name="miou")
        self.iou_error = keras.metrics.Mean(name="iou_error")


class _Watch(keras.callbacks.Callback):
    """Ends training at the first batch whose loss is not finite, and says which one it is.

    Also passes the number of the epoch to the data, so that a resumed run draws the same samples as
    an uninterrupted one.
    """

    def __init__(self, batches):
        super().__init__()
        self._batches = batches
        self._first_epoch = batches.epoch
        self._epoch = self._seen = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._seen = epoch, 0
        self._batches.epoch = self._first_epoch + epoch

    def on_train_batch_end(self, batch, logs=None):
        # With `steps_per_execution`, it may be any of several batches.
        first, self._seen = self._seen, batch + 1
        loss = float(keras.ops.convert_to_numpy((logs or {}).get("loss", 0.0)))
        if np.isfinite(loss):
            return
        found = [(i, self._batches.describe(i)) for i in range(first, batch + 1)]
        names = [f"{i} ({images})" if images else str(i) for i, images in found]
        raise RuntimeError(
            f"The loss is {loss} from batch {', '.join(names)} of epoch {self._epoch} on, counted "
            "from 0. Look for broken pixel values in these images, or, if they are fine, take "
            "smaller steps: a lower learning rate, or `clipnorm=1.0` in the optimizer."
        )


@contextlib.contextmanager
def _says_nothing_of_masks():
    """Without Keras's warning that the layers of mask prompts have no gradients.

    Points and boxes do not use them, and the warning asks for a loss.
    """
    alone = r"Gradients do not exist for variables \[('\S*mask_downscaler/\S*'(, )?)+\]"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", alone)
        yield


class TrainableSegmenter:
    """Training for models from the canonical inputs to `masks` and `iou_pred`.

    A mixin before `keras.Model`. It overrides public methods only: data is brought into the
    model frame before Keras sees it, and the loss is `loss_cls` unless another is given.
    """

    loss_cls = SAMLoss
    _fit_state = None
    called = "segmenter"  # in messages
    takes_any_keys = True  # whether keys of `x` that are not ours are passed on

    def compile(
        self, optimizer: Any = "adamw", loss: Any = "auto", metrics: Any = "auto", **kwargs: Any
    ) -> None:
        """Configures training, as `keras.Model.compile` does.

        Args:
            optimizer: str or `keras.optimizers.Optimizer`.
            loss: `"auto"` for the loss that the model was trained with; a `SAMLoss` with other
                weights; or a function from `(outputs, targets, ambiguous)` to `(B, P)`, see
                `SAMLoss.__call__`.
            metrics: `"auto"` for `miou`, the mean IoU of the mask that `select_masks` picks, and
                `iou_error`, the mean absolute error of its predicted IoU; or None.
            **kwargs: passed on to `keras.Model.compile`.

        Raises:
            ValueError: if `loss` or `metrics` is something else.
        """
        if loss == "auto":
            loss = self.loss_cls()
        if not _takes_three(loss):
            raise ValueError(
                '`loss` must be "auto", a `SAMLoss` or a function from (outputs, targets, '
                f"ambiguous) to (B, P). Received: loss={loss!r}. One of Keras's is called inside "
                'such a function, on `outputs["masks"]`, logits (B, P, K, Lh, Lw), and `targets`, '
                "(B, P, Lh, Lw)."
            )
        if metrics not in ("auto", None):
            raise ValueError(
                '`metrics` must be "auto" or None; for others override `compute_metrics`. '
                f"Received: metrics={metrics!r}."
            )
        super().compile(optimizer=optimizer, loss=None, metrics=None, **kwargs)
        self._fit_state = _FitState(loss, metrics == "auto")

    def uncompile(self) -> None:
        """Forgets optimizer, loss and metrics, so that `fit` asks for a new `compile`."""
        self._fit_state = None
        self.compiled = False
        self.train_function = self.test_function = None

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads weights, as `keras.Model.load_weights` does, and LoRA's where it is enabled.

        Raises:
            ValueError: if the file holds the weights of a model of another class or config;
                `SAMImageSegmenter.load_checkpoint` reads these, too.
        """
        try:
            super().load_weights(filepath, *args, **kwargs)
        except ValueError as error:
            segmenter = "segmenter" if self.called == "segmenter" else f"{self.called}.segmenter"
            raise ValueError(
                f"`filepath` must hold what a {type(self).__name__} of the same config saved. "
                f"Received: {filepath!s:.200} ({str(error).split(' Example error', 1)[0]:.200}) "
                f"`{segmenter}.load_checkpoint(path)` reads the weights of a `SAMTrainer`, of "
                "another input size or of a preset as well."
            ) from error
        self.restore_lora()

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if config and isinstance(self._fit_state.loss, SAMLoss):
            config["loss"] = "auto"
            config["metrics"] = "auto" if self._fit_state.has_metrics else None
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.built:
            self.optimizer.build(self.trainable_variables)  # so that its state can be loaded

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        state = self._fit_state
        ours = [state.miou, state.iou_error] if state and state.has_metrics else []
        return [*super().metrics, *ours]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
        **kwargs: Any,
    ) -> Any:
        """The mean loss of all prompt sets that have a target, and the layers' own losses."""
        ambiguous = lone_click(x["labels"], x["mask_given"])
        loss = self._fit_state.loss(y_pred, y["masks"], ambiguous)  # (B, P)
        return mean_over_prompts(loss, y["masks"], sample_weight) + self.added_losses()

    def added_losses(self) -> Any:
        """The sum of what layers added, such as regularisation."""
        return sum((ops.sum(ops.cast(loss, "float32")) for loss in self.losses), 0.0)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        ambiguous = lone_click(x["labels"], x["mask_given"])
        self.update_metrics(selected_iou(y_pred, y["masks"], ambiguous), sample_weight)
        return self.get_metrics_result()

    def update_metrics(self, measured: tuple, sample_weight: Any = None) -> None:
        """Updates the metrics with what `selected_iou` measured, if there are any."""
        state = self._fit_state
        if not state.has_metrics:
            return
        iou, error, weight = measured
        if sample_weight is not None:
            weight = weight * ops.cast(sample_weight, weight.dtype)
        state.miou.update_state(iou, sample_weight=weight)
        state.iou_error.update_state(error, sample_weight=weight)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        sample_weight: Any = None,
        validation_data: Any = None,
        validation_batch_size: int | None = None,
        shuffle: bool = True,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the segmenter, as `keras.Model.fit` does, on images and prompts as they are.

        Args:
            x: dict of images and prompts as `predict` takes it; or a `keras.utils.PyDataset`,
                `tf.data.Dataset`, torch `DataLoader` or generator of batches `(x, y)` or
                `(x, y, sample_weight)`.
            y: dict with `masks`, when `x` is a dict: targets in the original frame,
                `(B, H0, W0)` or `(B, P, H0, W0)` or ragged lists, one per prompt set; 0 is
                background, 1 foreground, 255 void, which counts for nothing.
            batch_size: int. Images in a batch, when `x` is a dict. Defaults to 1.
            sample_weight: optional array `(B,)` or `(B, P)`, when `x` is a dict.
            validation_data: optional tuple `(x, y)` or `(x, y, sample_weight)`, or data set.
            validation_batch_size: int. Defaults to `batch_size`.
            shuffle: bool. Whether a dict's images come in a new order every epoch. Data sets
                come in their own order.
            **kwargs: passed on to `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History`.

        Raises:
            ValueError: if prompts or targets are malformed.
            RuntimeError: if the segmenter is not compiled, or the loss is not finite; then the
                message names the batch and its images.
        """
        self._require_compiled("fit")
        self._require_master_weights()
        for name in ("class_weight", "validation_split"):
            if kwargs.get(name):
                raise ValueError(_NOT_IN_FIT[name])
        batches = self._batches(x, y, sample_weight, batch_size or 1, shuffle)
        if validation_data is not None:
            size = validation_batch_size or batch_size or 1
            if isinstance(validation_data, (tuple, list)):
                x_val, y_val, *weight = validation_data
                validation_data = self._batches(x_val, y_val, *(weight or [None]), size)
            else:
                validation_data = self._batches(validation_data, None, None, size)
        callbacks = kwargs.pop("callbacks", None)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = [_Watch(batches), *keras.tree.flatten(callbacks or [])]
        # Otherwise Keras shuffles a data set's batches with Python's global random generator.
        kwargs = {"shuffle": False, "callbacks": callbacks, **kwargs}
        with backends.keeps_weights(self), batches.own_errors(), _says_nothing_of_masks():
            return super().fit(batches, validation_data=validation_data, **kwargs)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Loss and metrics over a data set, as `keras.Model.evaluate`; arguments as in `fit`."""
        self._require_compiled("evaluate")
        batches = self._batches(x, y, sample_weight, batch_size or 1)
        with backends.keeps_weights(self), batches.own_errors():
            return super().evaluate(batches, verbose=verbose, **kwargs)

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = backends.step_function(self, self.train_step, self.train_function)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Any:
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = backends.step_function(self, self.test_step, self.test_function)
        return self.test_function

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any
    ) -> Any:
        """One optimizer step, as `keras.Model.train_on_batch`; arguments as in `fit`."""
        self._require_compiled("train_on_batch")
        self._require_master_weights()
        with _says_nothing_of_masks():
            return super().train_on_batch(*self.prepare_training(x, y, sample_weight), **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, **kwargs: Any) -> Any:
        """Loss and metrics of one batch, as `keras.Model.test_on_batch`; arguments as in `fit`."""
        self._require_compiled("test_on_batch")
        return super().test_on_batch(*self.prepare_training(x, y, sample_weight), **kwargs)

    def prepare_training(self, x: Any, y: Any, sample_weight: Any = None) -> tuple:
        """One batch in the model frame, padded so that few shapes are ever compiled.

        Arguments are `fit`'s; `x` may hold what `encode` returned in place of `images`.

        Returns:
            Tuple of the canonical inputs, `{"masks": uint8 (B, P, Lh, Lw)}`, and, if weights were
            given, float32 weights `(B, P)`. Targets of prompt sets that are padding are entirely
            void, and so is the padding of every image.
        """
        batch = Batch.read(
            x,
            y,
            sample_weight,
            allow_none=True,
            allow_embeddings=True,
            any_keys=self.takes_any_keys,
        )
        return self.prepare_training_batch(batch)

    def prepare_training_batch(self, batch: Batch) -> tuple:
        """`prepare_training` of a batch whose prompts are read already."""
        check_encoder_is_frozen(self, batch)
        if EMBEDDINGS in batch.x:
            self.check_keys_of_encoded(batch.x)
        # A preprocessor of the user's own may add prompts.
        prepared = None
        if batch.prompts is not None or self.takes_any_keys:
            prepared = self.prepare_batch(batch)
        if prepared is None or prepared.prompts is None:
            raise ValueError(
                "At least one prompt is needed to train: `points` with `labels`, `boxes` or "
                "`masks`. Received: none for the whole call. With `ObjectBatches`, pass "
                '`prompts="boxes"`, or train '
                "with `keras_sam.training.SAMTrainer`, which simulates prompts."
            )
        prompts = pad_prompts(prepared.prompts)
        canonical = prompts.arrays()
        shape = prompts.labels.shape[:2]
        if backends.NEEDS_MASKS and not canonical["masks"].shape[1]:
            # A mask that is not given has no effect.
            canonical["masks"] = np.zeros((*shape, *self.mask_size, 1), "float32")
            canonical["mask_given"] = np.zeros(shape, bool)
        targets = targets_to_frames(
            batch.y, prepared.plans, self.mask_size, prompts.num_prompts, shape[1]
        )
        inputs = {**frames_or_features(prepared), **canonical}
        return with_targets(inputs, targets, batch.sample_weight)

    def _batches(self, x, y, sample_weight, batch_size, shuffle=False):
        if isinstance(x, TrainingBatches):  # `fit` hands its validation data to `evaluate`
            return x
        prepare = self.prepare_training_batch
        return TrainingBatches(
            prepare, x, y, sample_weight, batch_size, shuffle, self.takes_any_keys
        )

    def _require_compiled(self, name):
        if not backends.CAN_TRAIN:
            raise NotImplementedError(
                f"`{name}` is not possible with the {backends.NAME} backend, which only "
                "predicts. Set KERAS_BACKEND to jax, torch or tensorflow before Python starts."
            )
        if self._fit_state is None:
            raise RuntimeError(
                f"`{name}` needs a compiled {self.called}: call "
                f"`{self.called}.compile(optimizer=keras.optimizers.AdamW(1e-4))` first."
            )

    def _require_master_weights(self):
        small = sorted({str(v.dtype) for v in self.trainable_variables} & {"bfloat16", "float16"})
        if small:
            raise ValueError(
                "Training needs weights in float32, because steps are smaller than half precision "
                f"can tell apart. Received: weights in {', '.join(small)}. Load the model with "
                f'dtype="mixed_{small[0]}", which computes in {small[0]} and keeps float32 weights.'
            )


def with_targets(inputs: dict[str, Any], targets: np.ndarray, sample_weight: Any = None) -> tuple:
    """The tuple that Keras trains on: inputs, targets `(B, P, Lh, Lw)`, and weights if any."""
    if sample_weight is None:
        return inputs, {"masks": targets}
    return inputs, {"masks": targets}, prompt_weights(sample_weight, *targets.shape[:2])


def frames_or_features(prepared: Prepared) -> dict[str, np.ndarray]:
    """What a model is trained on of the images: themselves, or what they were encoded to."""
    if isinstance(prepared.images, dict):
        return dict(prepared.images)
    return {"images": np.asarray(prepared.images, "float32")}


def check_encoder_is_frozen(segmenter: Any, batch: Batch) -> None:
    """Raises for a batch of embeddings unless the image encoder is frozen."""
    if EMBEDDINGS in batch.x and segmenter.image_encoder.trainable_variables:
        raise ValueError(
            "`image_embeddings` cannot train the image encoder. Freeze it with "
            '`segmenter.freeze("image_encoder")` and compile again, or train on images.'
        )


def mean_over_prompts(loss: Any, targets: Any, sample_weight: Any = None) -> Any:
    """The weighted mean of a loss `(B, P)` over the prompt sets whose target is not all void.

    Raises:
        ValueError: if the loss has another shape.
    """
    if len(loss.shape) != 2:
        raise ValueError(
            "`loss` must return one number for each prompt set, shape (B, P), and not their mean, "
            f"which would count padding. Received: shape={tuple(loss.shape)}."
        )
    weight = ops.cast(ops.any(ops.not_equal(targets, VOID), axis=(-2, -1)), "float32")
    if sample_weight is not None:
        weight = weight * ops.cast(sample_weight, "float32")
    return ops.sum(loss * weight) / ops.maximum(ops.sum(weight), 1e-6)
