"""SAM's training algorithm: prompt, then click where the mask is wrong, several times."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_sam.encode_decode import check_segmenter, named_features
from keras_sam.geometry import SIZES
from keras_sam.layers.arguments import KeptArguments
from keras_sam.losses import (
    VOID,
    SAMLoss,
    Tensor,
    choose_mask,
    lone_click,
    selected_iou,
    take_mask,
)
from keras_sam.models.sam_image_segmenter import SAMImageSegmenter
from keras_sam.models.trainable import (
    TrainableSegmenter,
    check_encoder_is_frozen,
    frames_or_features,
    mean_over_prompts,
    with_targets,
)
from keras_sam.preprocessing.batches import Batch
from keras_sam.preprocessing.preprocessor import resizing_preprocessor
from keras_sam.preprocessing.targets import targets_to_frames
from keras_sam.training import clicks


@keras.saving.register_keras_serializable(package="keras_sam")
class SAMTrainer(KeptArguments, TrainableSegmenter, keras.Model):
    """Trains a segmenter on images and target masks, with simulated prompts.

    Each object gets a first prompt, a click or a box, then `num_clicks` clicks where
    the mask is wrong, each together with the previous logits as mask prompt, and two rounds
    with the mask prompt alone: one at random among the others, one at the end. The image is
    encoded once for all rounds, all rounds are one compiled graph, and no gradient flows
    through the logits that are fed back. The trained weights are the segmenter's own.

    Args:
        segmenter: a `SAMImageSegmenter`.
        num_clicks: int. Clicks after the first prompt. Defaults to `8`, 11 rounds in all.
        mask_rounds: bool. Whether to add the two rounds without a new click. Needs at least
            one click. Defaults to `True`.
        box_probability: float. Probability that the first prompt is a box. Defaults to `0.5`.
        parallel: bool. Whether to train each object on one round only, drawn at random per object;
            the rounds before it run without gradients. The expected gradient is that of all
            rounds, but a batch needs the memory of one, so batches can be several times larger.
            Defaults to `False`.
        seed: optional int. Seed of the simulated annotator.

    Call arguments:
        inputs: dict of `images` `(B, H, W, channels)` in the model frame, and `targets`
            `(B, P, Lh, Lw)` of 0, 1 and 255 for void. `fit` makes it from images of any size
            and targets of their size: `fit({"images": ...}, {"masks": ...})`.

    Returns:
        Dict of `masks` `(B, P, R, K, Lh, Lw)`, `iou_pred` `(B, P, R, K)` and `ambiguous`
        `(B, P, R)` for `R` rounds; `R` is 1 in training with `parallel`.

    Raises:
        ValueError: if `num_clicks` is negative, or 0 with `mask_rounds`.

    Source:
        Kirillov et al. 2023, https://arxiv.org/abs/2304.02643, appendix A.

    Example:

    ```python
    trainer = keras_sam.training.SAMTrainer(tiny_segmenter, num_clicks=2)
    trainer.compile(optimizer=keras.optimizers.AdamW(1e-4))
    image, target = np.zeros((60, 90, 3), "uint8"), np.zeros((1, 60, 90), "uint8")
    target[0, 20:40, 30:60] = 1
    trainer.fit({"images": [image]}, {"masks": [target]}, verbose=0)
    ```
    """

    called = "trainer"

    def __init__(
        self,
        segmenter: SAMImageSegmenter,
        num_clicks: int = 8,
        mask_rounds: bool = True,
        box_probability: float = 0.5,
        parallel: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        if num_clicks < (1 if mask_rounds else 0):
            raise ValueError(
                "`num_clicks` must be at least 1, or 0 without `mask_rounds`. "
                f"Received: num_clicks={num_clicks}, mask_rounds={mask_rounds}."
            )
        check_segmenter(segmenter)
        self.keep_arguments(locals())
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.build()  # so that weights can be loaded before the first batch

    def build(self, input_shape: Any = None) -> None:
        pass  # the segmenter is built, and the trainer has no weights of its own

    @property
    def loss_cls(self) -> type[SAMLoss]:
        """The loss that the segmenter was trained with."""
        return self.segmenter.loss_cls

    @property
    def num_rounds(self) -> int:
        """The number of rounds, `R`."""
        return 1 + self.num_clicks + 2 * self.mask_rounds

    def call(self, inputs: Mapping[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        segmenter = self.segmenter
        targets = ops.convert_to_tensor(inputs["targets"])
        foreground, valid = ops.equal(targets, 1), ops.not_equal(targets, VOID)
        if "images" in inputs:
            features = named_features(segmenter.image_encoder(inputs["images"], training=training))
        else:
            features = {name: inputs[name] for name in segmenter.feature_shapes}
        (h, w), (mask_h, mask_w) = segmenter.image_shape[:2], segmenter.mask_size
        scale = ops.convert_to_tensor([w / mask_w, h / mask_h], "float32")
        points, labels = self._first_prompts(foreground, scale)
        one_round = _OneRound(self, labels) if self.parallel and training else None
        logits, rounds = None, []
        for clicked in self._rounds_with_click():
            if logits is not None and clicked is not False:
                point, label = clicks.next_click(
                    logits, foreground, valid, scale, self.seed_generator
                )
                label = label if clicked is True else ops.where(clicked, label, -10)
                points = ops.concatenate([points, point], axis=2)
                labels = ops.concatenate([labels, label], axis=2)
            if one_round is not None:
                one_round.see(labels, logits)
            outputs = self._decode(features, points, labels, logits, training)
            rounds.append(outputs)
            logits = take_mask(
                outputs["masks"], choose_mask(outputs["iou_pred"], outputs["ambiguous"])
            )
            logits = ops.stop_gradient(segmenter.logits_as_prompt(logits))  # (B, P, Lh, Lw)
            if one_round is not None:
                rounds = []  # these rounds only produce the next prompts
        if one_round is not None:
            labels, logits, mask_given = one_round.prompts(labels)
            rounds = [self._decode(features, points, labels, logits, training, mask_given)]
        return {k: ops.stack([r[k] for r in rounds], axis=2) for k in rounds[0]}

    def _rounds_with_click(self):
        """For each round: True with a new click, False without, or a bool tensor that decides.

        One round between the first and the last has no click; it is drawn for each batch. Shapes
        stay the same: a click that is left out is a padding token.
        """
        if not self.mask_rounds:
            return [True] * self.num_rounds
        middle = self.num_clicks + 1
        chosen = keras.random.randint((), 0, middle, seed=self.seed_generator)
        return [True, *[ops.not_equal(chosen, i) for i in range(middle)], False]

    def _first_prompts(self, foreground, scale):
        """A click or a box for each object, as four tokens in either case."""
        point, label = clicks.first_click(foreground, scale, self.seed_generator)
        corners, corner_labels = clicks.noisy_box(foreground, scale, self.seed_generator)
        batch = ops.shape(label)[:2]
        draw = keras.random.uniform((*batch, 1), dtype="float32", seed=self.seed_generator)
        # A target without a pixel has no box; a click beside the object is all there is to ask.
        present = ops.any(foreground, axis=(-2, -1))[..., None]  # (B, P, 1)
        use_box = ops.logical_and(draw < self.box_probability, present)
        not_a_point = -ops.ones_like(label)
        labels = ops.concatenate(
            [
                ops.where(use_box, -10, label),
                ops.where(use_box, corner_labels, -10),
                ops.where(use_box, -10, not_a_point),
            ],
            axis=2,
        )
        origin = ops.zeros_like(point)
        return ops.concatenate([point, corners, origin], axis=2), labels  # (B, P, 4)

    def _decode(self, features, points, labels, logits, training, mask_given=None):
        segmenter = self.segmenter
        masks = None if logits is None else ops.expand_dims(logits, -1)
        prompts = segmenter.prompt_encoder(
            points=points, labels=labels, masks=masks, mask_given=mask_given
        )
        outputs = segmenter.mask_decoder(**features, **prompts, training=training)
        if logits is not None and mask_given is None:
            mask_given = ops.ones(ops.shape(labels)[:2], dtype="bool")
        ambiguous = lone_click(labels, mask_given)
        return {**outputs, "ambiguous": ambiguous}

    def predict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `SAMImageSegmenter.predict`: the trained weights are the segmenter's."""
        return self.segmenter.predict(*args, **kwargs)

    def restore_lora(self) -> None:
        """See `SAMImageSegmenter.restore_lora`."""
        self.segmenter.restore_lora()

    def prepare_training_batch(self, batch: Batch) -> tuple:
        """One batch in the model frame. Refuses prompts in `x`, which would have no effect."""
        x, segmenter = batch.x, self.segmenter
        if set(x) - set(SIZES) != {*segmenter.feature_shapes} and set(x) != {"images"}:
            raise ValueError(
                "`SAMTrainer` simulates the prompts: `x` must hold `images` alone, or "
                f"{', '.join(f'`{name}`' for name in segmenter.feature_shapes)} and "
                "`original_sizes`. To train on prompts of your own use "
                f"`segmenter.fit`. Received: {sorted(x)}."
            )
        if "images" in x:
            converter = resizing_preprocessor(segmenter).image_converter
            images, plans = converter.convert(x["images"])
            inputs = {"images": images}
        else:
            check_encoder_is_frozen(segmenter, batch)
            prepared = segmenter.prepare_batch(batch)
            inputs, plans = frames_or_features(prepared), prepared.plans
        targets = targets_to_frames(batch.y, plans, segmenter.mask_size)
        return with_targets({**inputs, "targets": targets}, targets, batch.sample_weight)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True, **kwargs
    ):
        """The mean loss over rounds and prompt sets."""
        losses = []
        for outputs in self._per_round(y_pred):
            loss = self._fit_state.loss(outputs, y["masks"], outputs["ambiguous"])
            losses.append(mean_over_prompts(loss, y["masks"], sample_weight))
        return sum(losses) / len(losses) + self.added_losses()

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """`miou` and `iou_error` of the last round; when training with `parallel`, of its one."""
        last = self._per_round(y_pred)[-1]
        self.update_metrics(selected_iou(last, y["masks"], last["ambiguous"]), sample_weight)
        return self.get_metrics_result()

    def _per_round(self, y_pred):
        rounds = y_pred["masks"].shape[2]
        return [{k: v[:, :, r] for k, v in y_pred.items()} for r in range(rounds)]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SAMTrainer:
        return cls(**{**config, "segmenter": keras.layers.deserialize(config["segmenter"])})


class _OneRound:
    """Collects the prompts of the round that was drawn for each object, while all rounds run."""

    def __init__(self, trainer, labels):
        shape = ops.shape(labels)[:2]
        self._drawn = keras.random.randint(
            shape, 0, trainer.num_rounds, seed=trainer.seed_generator
        )  # (B, P)
        self._tokens = ops.zeros(shape, dtype="int32")
        self._logits = ops.zeros((*shape, *trainer.segmenter.mask_size), dtype="float32")
        self._rounds = 0

    def see(self, labels, logits):
        """Keeps the labels and the fed-back logits for the objects whose round this is."""
        here = ops.equal(self._drawn, self._rounds)
        self._tokens = ops.where(here, labels.shape[2], self._tokens)
        if logits is not None:
            self._logits = ops.where(here[..., None, None], logits, self._logits)
        self._rounds += 1

    def prompts(self, labels):
        """Labels `(B, P, T)` without clicks of later rounds, logits, and `mask_given` `(B, P)`."""
        later = ops.arange(labels.shape[2]) >= self._tokens[..., None]
        return ops.where(later, -10, labels), self._logits, self._drawn > 0
