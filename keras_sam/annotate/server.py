"""The server: one page, and a small HTTP API that other tools can use as well.

Needs `pip install "keras-sam[annotate]"`: FastAPI and uvicorn.
"""

import asyncio
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from keras_sam import __version__
from keras_sam.annotate import exports
from keras_sam.annotate.desk import STATUSES, Desk, text_of
from keras_sam.annotate.engine import Engine
from keras_sam.annotate.guard import LOOPBACK, Guard
from keras_sam.annotate.requests import (
    ChangedObject,
    EmbedRequest,
    LabelRequest,
    NewObject,
    PhotoRequest,
    PredictRequest,
    SaveRequest,
)
from keras_sam.annotate.store import AnnotationStore

_STATIC = Path(__file__).parent / "static"
_MEDIA = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}


def create_app(
    engine: Engine,
    store: AnnotationStore,
    token: str,
    about: dict[str, Any] | None = None,
    hosts: Collection[str] = LOOPBACK,
    any_address: bool = False,
) -> Guard:
    """The ASGI application.

    Args:
        engine: the `Engine`, whose photographs are served.
        store: the `AnnotationStore`.
        token: string that requests must bring, see `Guard`.
        about: optional dict about the model, for the page.
        hosts: host names that requests may be for, see `Guard`.
        any_address: bool, see `Guard`.

    Returns:
        The application within its `Guard`.
    """
    from fastapi import FastAPI

    app = FastAPI(
        title="keras_sam annotate",
        version=__version__,
        description="Segment photographs of one folder by points and boxes, and keep the masks.",
        docs_url=None,  # whose page would load scripts from another site
        redoc_url=None,
    )
    _add_errors(app)
    desk = Desk(engine, store, about, list(exports.FORMATS))
    _add_model_routes(app, desk)
    _add_object_routes(app, desk)
    _add_pages(app)
    return Guard(app, token, hosts, any_address)


def make_server(app: Any) -> Any:
    """A `uvicorn.Server`, whose `run(sockets=[...])` serves until Ctrl-C."""
    import uvicorn

    # Requests of a page that was closed are not waited for.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    return uvicorn.Server(config)


def _add_errors(app: Any) -> None:
    """Every error is `{"error": one sentence}`."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    def answer(status: int) -> Callable:
        def handle(request, error):
            return JSONResponse({"error": text_of(error)}, status)

        return handle

    def plainly(status: int, text: str) -> Callable:
        def handle(request, error):
            return JSONResponse({"error": text}, status, getattr(error, "headers", None))

        return handle

    def malformed(request, error):
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return JSONResponse({"error": "The body must be JSON."}, 422)
        place = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"error": f"`{place or 'body'}`: {first['msg']}."}, 422)

    for kind, status in STATUSES.items():
        app.add_exception_handler(kind, answer(status))
    app.add_exception_handler(RequestValidationError, malformed)
    # What the framework says by itself has other forms.
    app.add_exception_handler(400, plainly(422, "The body must be JSON."))
    app.add_exception_handler(404, plainly(404, "There is no such address."))
    app.add_exception_handler(405, plainly(405, "This address does not take this method."))


def _add_model_routes(app: Any, desk: Desk) -> None:
    @app.get("/api/health", tags=["model"])
    def health() -> dict:
        """Whether the server runs. Needs no token."""
        return {"status": "ok", "version": __version__}

    @app.post("/api/embed", tags=["model"])
    async def embed(request: EmbedRequest) -> dict:
        """Encodes a photograph, or only queues it with `ahead`; predictions do so by themselves."""
        return await asyncio.wrap_future(desk.embed(**vars(request)))

    @app.post("/api/predict", tags=["model"])
    async def predict(request: PredictRequest) -> dict:
        """Masks of the object that points and a box show, as COCO's compressed run lengths.

        Of the waiting requests with the same `canvas`, only the newest is answered; the others
        get status 409. `refine` names an answer by its `number`, and one of its candidates.
        """
        refine = request.refine and vars(request.refine)
        return await asyncio.wrap_future(desk.predict(**{**vars(request), "refine": refine}))

    @app.post("/api/everything", tags=["model"])
    async def everything(request: PhotoRequest) -> dict:
        """All masks of a photograph, the largest first."""
        return await asyncio.wrap_future(desk.everything(request.photo))

    @app.get("/api/picture", tags=["photographs"])
    def picture(photo: str):
        """A photograph as the model sees it, in a format that browsers show."""
        from fastapi import Response

        content, kind = desk.engine.photos.picture(photo)
        return Response(content, media_type=kind)


def _add_object_routes(app: Any, desk: Desk) -> None:
    @app.get("/api/session", tags=["photographs"])
    def session() -> dict:
        """The photographs with their numbers of objects, the labels, and what is saved where."""
        return {"folder": desk.engine.photos.folder.name, **desk.session()}

    @app.get("/api/objects", tags=["objects"])
    def objects(photo: str) -> dict:
        """The objects of a photograph, and its size."""
        return desk.objects(photo)

    @app.post("/api/objects", tags=["objects"], status_code=201)
    def add_object(request: NewObject) -> dict:
        """Keeps an object. It is in the file when the answer comes, unless `save` says why not."""
        return desk.keep(**vars(request))

    @app.put("/api/objects/{number}", tags=["objects"])
    def change_object(number: int, request: ChangedObject) -> dict:
        """Changes the mask or the label of an object; 404 if it is not of `photo`."""
        return desk.change(number, **vars(request))

    @app.delete("/api/objects/{number}", tags=["objects"])
    def remove_object(number: int, photo: str | None = None) -> dict:
        """Deletes an object; 404 if it is not of `photo`."""
        return desk.remove(number, photo)

    @app.post("/api/objects/{number}/restore", tags=["objects"])
    def restore_object(number: int, photo: str | None = None) -> dict:
        """Brings back an object that was deleted since the server began or loaded the file."""
        return desk.restore(number, photo)

    @app.post("/api/labels", tags=["objects"], status_code=201)
    def add_label(request: LabelRequest) -> dict:
        """Adds a label."""
        return desk.label(request.name)

    @app.post("/api/save", tags=["objects"])
    def save(request: SaveRequest) -> dict:
        """Saves again after an error, or settles what to do about a file changed meanwhile."""
        return desk.save(request.how)

    @app.get("/api/export", tags=["objects"])
    def export(format: str):
        """All masks as a zip file: `coco`, `yolo`, `label-map` or `sa1b`."""
        from fastapi import Response

        content = exports.export(desk.store, format)
        name = f'attachment; filename="masks-{format}.zip"'
        return Response(content, 200, {"content-disposition": name}, "application/zip")


def _add_pages(app: Any) -> None:
    from fastapi import Response

    files = {path.name: path for path in _STATIC.iterdir() if path.suffix in _MEDIA}
    pages = {"/": "index.html", "/docs": "api.html"}

    def send(path: Path):
        def answer():
            return Response(path.read_bytes(), media_type=f"{_MEDIA[path.suffix]}; charset=utf-8")

        return answer

    for address, name in {**pages, **{f"/static/{name}": name for name in files}}.items():
        app.get(address, include_in_schema=False)(send(files[name]))
