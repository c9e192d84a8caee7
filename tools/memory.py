"""The anonymous memory of this process, and its peak while something runs.

Linux: RssAnon, in which mapped files do not count.
"""

import threading


def anonymous_bytes() -> int:
    """What this process has now."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("RssAnon"):
                return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no RssAnon: this needs Linux.")


class Peak:
    """Samples the memory while its block runs.

    Attributes:
        before: int. Bytes at the start.
        above: int. How many more there were at most, once the block has ended.
    """

    def __enter__(self):
        self.before, self.above = anonymous_bytes(), 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._watcher.join()
        self._sample()

    def _watch(self):
        while not self._done.wait(0.005):
            self._sample()

    def _sample(self):
        self.above = max(self.above, anonymous_bytes() - self.before)
