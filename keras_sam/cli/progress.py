"""What the command is doing, on stderr."""

import contextlib
import os
import sys
import tempfile
import time


class Progress:
    """Shows each step while it runs, and how long it took.

    On a terminal a running step has a spinner; in a log file only its line at the end appears.

    Args:
        quiet: bool. Shows nothing at all.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    @contextlib.contextmanager
    def step(self, text: str, spinner: bool = True):
        """Shows `text` while the block runs.

        Args:
            text: str, such as `"Encoding truck.jpg"`.
            spinner: bool. False for steps that draw bars of their own, such as downloads.
        """
        if self.quiet:
            yield
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True, soft_wrap=True)
        start = time.monotonic()
        if console.is_terminal and spinner:
            with console.status(Text(f"{text} ...")):
                yield
        else:
            yield
        seconds = time.monotonic() - start
        console.print(Text(f"{text}: {seconds:.1f} s"), style="dim")

    def say(self, text: str) -> None:
        """Prints one line, such as where the results are."""
        if not self.quiet:
            print(text, file=sys.stderr)


@contextlib.contextmanager
def quiet_stderr():
    """Keeps back what native code writes to stderr in the block, unless the block fails.

    TensorFlow, which Keras imports whatever its backend, logs about the processor at every start,
    in a way that no setting of its own turns off.
    """
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed: there is nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            file.seek(0)
            os.write(2, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
