"""`keras-sam annotate`: a page for labelling a folder of photographs with clicks."""

import argparse
import contextlib
import importlib.util
import os
import re
import secrets
import socket
import webbrowser
from pathlib import Path

from keras_sam.cli import model, options
from keras_sam.cli.errors import CommandError, bad_input, writing
from keras_sam.cli.photos import find_photos
from keras_sam.cli.progress import Progress

HELP = "label a folder of photographs with clicks, in the browser"
DESCRIPTION = """\
Starts a server on this machine and prints the address of its page, where photographs are labelled:
a click or a box is a mask, more clicks correct it, Enter keeps it.

Every mask that is kept is in --out at once, a COCO file, which is continued when it is there, and
which `keras-sam train --data FOLDER/annotations.json` reads. Ctrl-C ends the server."""

EXAMPLES = """\
examples:
  keras-sam annotate photos --model sam_base_sa1b --labels cat,dog --open
  keras-sam annotate photos --model sam_tiny_demo --out labels.json --port 9000"""

_PORT = 8765
_PORTS = 20  # from there on, tried where none is asked for
# Encoding fastest from a cold start first, as for `segment`: the first click should not compile.
_ORDER = ("torch", "openvino", "jax", "tensorflow")


def labels(text: str) -> list[str]:
    """Names separated by commas, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError(f"expected names such as cat,dog, received {text!r}")
    return names


def port(text: str) -> int:
    """A port; 0 for any that is free."""
    number = options.whole_number(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"expected a port up to 65535, received {text!r}")
    return number


def token(text: str) -> str:
    """What the address of the page ends in."""
    if not re.fullmatch(r"[\w.~-]{8,200}", text, re.ASCII):
        raise argparse.ArgumentTypeError(
            "expected at least 8 letters, digits or any of ._~-, received another text"
        )
    return text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what the command takes."""
    parser.add_argument(
        "folder", type=options.photograph, metavar="FOLDER", help="the photographs to label"
    )
    parser.add_argument("--recursive", action="store_true", help="look into subfolders, too")
    parser.add_argument(
        "--labels",
        type=labels,
        default=(),
        metavar="NAME,NAME",
        help="labels to choose from, added to those in --out (default: object)",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the COCO file, continued if it is there (default: annotations.json in FOLDER)",
    )
    results.add_argument(
        "--polygons", action="store_true", help="write outlines into it, not run lengths"
    )
    server = parser.add_argument_group("server")
    server.add_argument(
        "--port", type=port, metavar="N", help=f"(default: {_PORT}, or the next that is free)"
    )
    server.add_argument("--open", action="store_true", help="open the page in the browser")
    server.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; one that other machines reach needs --token "
        "(default: 127.0.0.1, this machine alone)",
    )
    server.add_argument(
        "--token",
        type=token,
        help="secret that requests must bring, part of the page's address (default: a random one)",
    )
    server.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder for embeddings of photographs (default: keras_sam/embeddings in Keras's)",
    )
    server.add_argument(
        "--cache-gb",
        type=options.finite_number,
        default=4.0,
        metavar="GB",
        help="size that this folder may have; 0 keeps none (default: 4)",
    )
    options.add_generator_options(parser)
    options.add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    # What imports Keras waits until a backend is chosen.
    from keras_sam.annotate import guard, store

    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        raise CommandError(
            'the page needs FastAPI and uvicorn: pip install "keras-sam[annotate]"', code=1
        )
    if args.host not in guard.LOOPBACK and args.token is None:
        raise CommandError(
            f"--host {args.host} lets other machines in: choose a secret with --token"
        )
    parameters = options.read_generator_options(args)
    if not args.folder.is_dir():
        raise CommandError(f"{args.folder}: there is no such folder")
    progress = Progress(args.quiet)
    photos = _named_photos(args.folder, args.recursive, progress)
    out = args.folder / "annotations.json" if args.out is None else args.out
    if out.is_dir():
        raise CommandError(f"--out {out}: is a folder, not a file")
    with bad_input(), writing(out):
        masks = store.AnnotationStore(out, list(photos), args.labels, args.polygons)
    model.say_limits(args.model, progress)
    with (
        _listen(args.host, args.port) as listening,
        model.open_segmenter(args, progress, _ORDER) as segmenter,
    ):
        from keras_sam.annotate import server

        app, engine = _make_app(args, parameters, photos, masks, segmenter)
        address = _address(args.host, listening.getsockname()[1], app.token)
        print(f"{len(photos)} photographs, masks in {out}. The page is at\n{address}", flush=True)
        if args.open:
            webbrowser.open(address)
        try:
            with contextlib.suppress(KeyboardInterrupt):  # which is how it ends
                server.make_server(app).run(sockets=[listening])
        finally:
            engine.close()
            _save_at_last(masks)
    return 0


def _save_at_last(masks):
    """Saves what is in memory alone, beside the file where that cannot be; then it is an error."""
    if masks.state.saved or masks.save().saved:
        return
    changed = masks.state.problem == "changed"
    reason = "was changed by another program" if changed else "could not be written"
    try:
        aside = masks.save_aside()
    except OSError as error:
        raise CommandError(
            f"{masks.path} {reason}, and the masks that were not saved are lost: "
            f"{error.strerror or error}",
            code=1,
        ) from error
    raise CommandError(f"{masks.path} {reason}; all masks of this page are in {aside}", code=1)


def _named_photos(folder, recursive, progress):
    """The photographs by name, without those whose name no page and no file in UTF-8 can have."""
    found = find_photos([folder], recursive)
    photos = {photo.name: photo.path for photo in found if _is_unicode(photo.name)}
    left_out = f"photographs left out because their names are not UTF-8: {len(found) - len(photos)}"
    if not photos:
        raise CommandError(f"{folder}: {left_out}, and there are no others; rename them")
    if len(photos) < len(found):
        progress.say(left_out)
    return photos


def _is_unicode(name):
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _make_app(args, parameters, photos, masks, segmenter):
    from keras_sam import embedding_cache
    from keras_sam.annotate import engine, guard, photo_folder, server

    cache = None
    if args.cache_gb > 0:

        def cache(predictor):
            folder = _default_cache() if args.cache is None else args.cache
            return embedding_cache.EmbeddingCache(folder, predictor, int(args.cache_gb * 1e9))

    value_range = segmenter.preprocessor.image_converter.value_range
    folder = photo_folder.PhotoFolder(args.folder, photos, value_range)
    runs = engine.Engine(
        segmenter, folder, cache, parameters, context=lambda: model.use_device(args.device)
    )
    hosts = {*guard.LOOPBACK, args.host, socket.gethostname()}
    app = server.create_app(
        runs,
        masks,
        args.token or secrets.token_urlsafe(18),
        {"model": Path(args.model).name, "backend": model.describe(args, segmenter)["backend"]},
        hosts,
        any_address=args.host not in guard.LOOPBACK,
    )
    return app, runs


def _default_cache() -> Path:
    home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    return Path(home) / "keras_sam" / "embeddings"


def _listen(host: str, wanted: int | None) -> socket.socket:
    """A socket that listens on the port, or without one on the first free one from `_PORT` on."""
    for number in [wanted] if wanted is not None else range(_PORT, _PORT + _PORTS):
        try:
            family, *_, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            listening = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise CommandError(f"--host {host}: {error.strerror or error}") from error
        if os.name == "posix":  # elsewhere it would let two servers have one port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen()  # at once: until then another server could bind it, too
        except OSError as error:
            listening.close()
            reason = error.strerror or str(error)
        else:
            return listening
    raise CommandError(f"--port {number}: {reason}; choose another one", code=1)


def _address(host: str, number: int, secret: str) -> str:
    """The page's address. What follows `#` stays in the browser, and out of every log."""
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{number}/#token={secret}"
