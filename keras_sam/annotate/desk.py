"""What can be asked about photographs and their masks, whatever carries questions and answers.

The server asks by HTTP, the widget by messages of a notebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from keras_sam.annotate.engine import Engine, SupersededError
from keras_sam.annotate.store import SCORES, AnnotationStore
from keras_sam.annotate.worker import pass_on


class Desk:
    """Questions and their answers, dicts that JSON can hold.

    What runs the model gives a future, everything else is done when it returns. Errors are those of
    `Engine` and `AnnotationStore`; `STATUSES` and `text_of` say what a page is told of them.

    Args:
        engine: the `Engine`.
        store: the `AnnotationStore` of the engine's photographs.
        about: optional dict about the model, for the page.
        formats: names of the formats that can be exported.
    """

    def __init__(
        self,
        engine: Engine,
        store: AnnotationStore,
        about: Mapping[str, Any] | None = None,
        formats: Sequence[str] = (),
    ):
        self.engine, self.store = engine, store
        self._about, self._formats = dict(about or {}), list(formats)

    # --- the model ---

    def embed(self, photo: str, ahead: bool = False, canvas: str | None = None) -> Future:
        """Encodes a photograph, or only queues it with `ahead`; see `Engine.embed`."""
        future = self.engine.embed(photo, ahead, canvas)
        if ahead:
            future = Future()
            future.set_result({"queued": True})
            return future

        def told(encoded):
            about = {"seconds": encoded.seconds, "source": encoded.source}
            return {**_sides(encoded.size), **about}

        return pass_on(future, Future(), told)

    def predict(self, refine: Mapping | None = None, **prompt: Any) -> Future:
        """Masks of the object that points and a box show; see `Engine.predict`.

        Args:
            refine: optional dict of `number` and `candidate`, of an earlier answer.
            prompt: as `Engine.predict` takes it.
        """
        earlier = None if refine is None else (refine["number"], refine["candidate"])

        def told(answer):
            names = ("number", "candidates", "best", "seconds")
            return {**_sides(answer.size), **{name: getattr(answer, name) for name in names}}

        return pass_on(self.engine.predict(refine=earlier, **prompt), Future(), told)

    def everything(self, photo: str) -> Future:
        """All masks of a photograph, the largest first."""
        found = self.engine.everything(photo)
        return pass_on(found, Future(), lambda proposals: {"proposals": proposals})

    # --- photographs and what is kept of them ---

    def session(self) -> dict:
        """The photographs with their numbers of objects, the labels, and what is saved where."""
        counts, path = self.store.counts(), self.store.path
        return self._with_state(
            file=None if path is None else path.name,
            labels=self.store.labels,
            photos=[{"name": name, "objects": counts[name]} for name in counts],
            formats=self._formats,
            about=self._about,
        )

    def objects(self, photo: str) -> dict:
        """The objects of a photograph, its size, and the labels, to which others may have added."""
        size = self.engine.photos.size(photo)
        objects = self.store.objects(photo, size)
        return self._with_state(**_sides(size), objects=objects, labels=self.store.labels)

    def keep(
        self, photo: str, segmentation: Mapping, category_id: int, score: float | None = None
    ) -> dict:
        """Keeps an object."""
        record = {"segmentation": segmentation, "category_id": category_id}
        if score is not None:
            record["score"] = score
        entry = self.store.add(photo, self.engine.photos.size(photo), record)
        return self._with_state(object=entry)

    def change(
        self,
        number: int,
        segmentation: Mapping | None = None,
        category_id: int | None = None,
        photo: str | None = None,
        score: float | None = None,
        predicted_iou: float | None = None,
        stability_score: float | None = None,
    ) -> dict:
        """Changes the mask or the label of an object, which must be of `photo` if that is given.

        Scores are those of the new mask, and belong to `segmentation`; those of the old one are
        dropped with it.
        """
        changes = {"segmentation": segmentation, "category_id": category_id}
        changes = {name: value for name, value in changes.items() if value is not None}
        if segmentation is not None:
            scores = zip(SCORES, (score, predicted_iou, stability_score), strict=True)
            changes |= {name: value for name, value in scores if value is not None}
        if not changes:
            raise ValueError("`segmentation` or `category_id` must be given. Received: neither.")
        return self._with_state(object=self.store.replace(number, changes, photo))

    def remove(self, number: int, photo: str | None = None) -> dict:
        """Deletes an object, which must be of `photo` if that is given."""
        self.store.remove(number, photo)
        return self._with_state()

    def restore(self, number: int, photo: str | None = None) -> dict:
        """Brings back an object that was deleted since the store was made or loaded its file."""
        return self._with_state(object=self.store.restore(number, photo))

    def label(self, name: str) -> dict:
        """Adds a label."""
        return self._with_state(label=self.store.add_label(name))

    def save(self, how: str = "again") -> dict:
        """Saves again after an error, or settles what to do about a file changed meanwhile.

        Args:
            how: `"again"`, `"replace"` or `"load"`.
        """
        if how == "load":
            try:
                self.store.reload()
            except OSError as error:
                name = self.store.path.name
                raise ValueError(f"{name} cannot be read: {error.strerror}.") from error
        else:
            self.store.save(overwrite=how == "replace")
        return self._with_state()

    def _with_state(self, **content: Any) -> dict:
        state = self.store.state
        told = {"saved": state.saved, "problem": state.problem, "message": state.message}
        return {**content, "save": told}


# Of errors that are the asker's: the status of HTTP, by which pages tell them apart.
STATUSES: Mapping[type[Exception], int] = {ValueError: 422, KeyError: 404, SupersededError: 409}


def text_of(error: BaseException) -> str:
    """What a person is told of an error; a KeyError's own text would have quotes around it."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"width": size[1], "height": size[0]}
