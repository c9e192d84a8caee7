"""What a package index shows of this project: the README, without links that lead nowhere there.

Hatchling calls the hook in every build (`pyproject.toml`). In the repository the README's links and
its picture are paths. On an index they lead to the repository if `[project.urls]` names it as
`Repository`; otherwise links are their words alone, and pictures are left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A link or a picture whose target is a path: it has no scheme and is no place on the page itself.
PATH_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def long_description(readme: str, repository: str | None = None) -> str:
    """The README as it can be read anywhere.

    Args:
        readme: string. Markdown.
        repository: optional string. The repository's address, at a host that has files at
            `blob/HEAD/PATH` and their bytes at `raw/HEAD/PATH`.

    Returns:
        string. Markdown without relative links.
    """

    def readable(link: re.Match) -> str:
        mark, words, path = link.groups()
        if repository:
            kind = "raw" if mark else "blob"
            return f"{mark}[{words}]({repository.rstrip('/')}/{kind}/HEAD/{path})"
        return "" if mark else words

    return re.sub(r"\n{3,}", "\n\n", PATH_LINK.sub(readable, readme))


class ReadmeHook(MetadataHookInterface):
    """Sets the distribution's `readme`."""

    def update(self, metadata: dict) -> None:
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = long_description(readme, metadata.get("urls", {}).get("Repository"))
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
