"""What the command is doing, on stderr."""

import contextlib
import os
import sys
import tempfile
import time


class Progress:
    """Shows each step while it runs, and how long it took.

    On a terminal a running step has a spinner; in a log file only its line at the end appears.
    """

    def __init__(self, quiet: bool = False):
        self.quiet = quiet

    @contextlib.contextmanager
    def step(self, text: str, spinner: bool = True):
        """Shows `text` while the block runs; no spinner for steps that draw bars of their own."""
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

    @contextlib.contextmanager
    def bar(self, total: int):
        """Shows a bar with the remaining time while the block runs, and yields a `Bar`.

        In a log file only the lines of `Bar.say` appear.
        """
        if self.quiet:
            yield Bar()
            return
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True, soft_wrap=True)
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left:"),
            progress.TimeRemainingColumn(),
        )
        # An image is encoded in one step, so the speed is taken over minutes, not seconds.
        with progress.Progress(
            *columns,
            console=console,
            disable=not console.is_terminal,
            transient=True,
            speed_estimate_period=300,
        ) as shown:
            yield Bar(console, shown, shown.add_task("", total=total))

    def say(self, text: str) -> None:
        """Prints one line, such as where the results are."""
        if not self.quiet:
            print(text, file=sys.stderr)


class Bar:
    """A bar of `Progress.bar`, and lines above it; without arguments it shows nothing."""

    def __init__(self, console=None, shown=None, task=None):
        self._console, self._shown, self._task = console, shown, task

    def describe(self, text: str) -> None:
        """Shows what is being done now."""
        if self._shown is not None:
            self._shown.update(self._task, description=text, refresh=True)

    def advance(self, steps: int) -> None:
        """Moves the bar on."""
        if self._shown is not None:
            self._shown.advance(self._task, steps)

    def advance_to(self, steps: int) -> None:
        """Moves the bar to a number of steps from its start."""
        if self._shown is not None:
            self._shown.update(self._task, completed=steps)

    def say(self, text: str, only_in_logs: bool = False) -> None:
        """Prints a line above the bar, with `only_in_logs` only where no bar is shown."""
        if self._console is not None and not (only_in_logs and self._console.is_terminal):
            from rich.text import Text

            self._console.print(Text(text))


@contextlib.contextmanager
def quiet_stderr():
    """Drops what native code writes to stderr in the block, unless the block fails.

    Keras imports TensorFlow on every backend, and TensorFlow has no setting that turns off what it
    logs about the processor whenever it starts.
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
