"""The pages of the API reference: every public name of the package, found in its sources.

Nothing is imported that needs Keras, so that the site is built in a small environment. What is
found here is compared with the running package by `tests/test_book.py`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = "keras_sam"
VERSION = "__version__"


@dataclasses.dataclass(frozen=True)
class Module:
    """A module's source: where it lies, its syntax tree, and whether it is a package."""

    name: str
    tree: ast.Module
    is_package: bool

    def relative(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module that a `from` imports from."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        base = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*base, *([node.module] if node.module else [])])


@functools.cache
def module(name: str) -> Module | None:
    """The module of a dotted name, or None where there is none."""
    path = ROOT.joinpath(*name.split("."))
    for file, is_package in ((path / "__init__.py", True), (path.with_suffix(".py"), False)):
        if file.is_file():
            return Module(name, ast.parse(file.read_text(encoding="utf-8")), is_package)
    return None


def assigned(source: Module, *names: str) -> ast.expr | None:
    """What the module's own level assigns to one of the names, or to a tuple that starts so."""
    for node in source.tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets[0]
            first = targets.elts[0] if isinstance(targets, ast.Tuple) else targets
            if isinstance(first, ast.Name) and first.id in names:
                return node.value
    return None


def public_names(name: str) -> list[str]:
    """The names that a module offers: its `__all__`, or else what it defines without underscore."""
    source = module(name)
    value = assigned(source, "__all__")
    if value is None:
        defined = (ast.FunctionDef, ast.ClassDef)
        found = [node.name for node in source.tree.body if isinstance(node, defined)]
        return [item for item in found if not item.startswith("_")]
    if isinstance(value, ast.Call):  # `lazy_names(globals(), homes, submodules)`
        return sorted({*_dictionary(source, value.args[1]), *_sequence(source, value.args[2:])})
    return sorted(_items(source, value))


def _items(source: Module, value: ast.expr) -> list[str]:
    """The strings of a list, in which `*other.__all__` stands for those of another module."""
    found = []
    for item in value.elts:
        if isinstance(item, ast.Constant):
            found.append(item.value)
        elif isinstance(item, ast.Starred):
            found += public_names(resolve(source.name, ast.unparse(item.value.value)))
    return found


def _dictionary(source: Module, value: ast.expr) -> dict[str, str]:
    """A dict from names to their modules, as the lazy namespaces write it."""
    if isinstance(value, ast.Name):
        return _dictionary(source, assigned(source, value.id))
    if isinstance(value, ast.Call):  # `dict.fromkeys(names, home)`
        return dict.fromkeys(*(ast.literal_eval(argument) for argument in value.args))
    if isinstance(value, ast.Attribute):
        other = module(resolve(source.name, value.value.id))
        return _dictionary(other, assigned(other, value.attr))
    found = {}
    for key, item in zip(value.keys, value.values):
        found |= _dictionary(source, item) if key is None else {key.value: item.value}
    return found


def _sequence(source: Module, arguments: list[ast.expr]) -> list[str]:
    if not arguments:
        return []
    value = arguments[0]
    return list(
        ast.literal_eval(assigned(source, value.id) if isinstance(value, ast.Name) else value)
    )


def _value(source: Module, name: str) -> ast.expr | None:
    """What the module's own level assigns to a name, alone, in a chain or in a tuple."""
    for node in source.tree.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == name:
            return node.value
        for target in node.targets if isinstance(node, ast.Assign) else ():
            if isinstance(target, ast.Name) and target.id == name:
                return node.value
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts):
                    if isinstance(one, ast.Name) and one.id == name:
                        return value
    return None


def resolve(home: str, name: str) -> str:
    """The dotted name of the place that defines `name` of the module `home`.

    Raises:
        LookupError: if the sources do not say where.
    """
    source = module(home)
    for node in source.tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return f"{home}.{name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom):
            origin = source.relative(node)
            for item in node.names:
                if item.name == "*" and module(origin) and name in public_names(origin):
                    return resolve(origin, name)
                if (item.asname or item.name) == name:
                    if module(f"{origin}.{item.name}"):
                        return f"{origin}.{item.name}"
                    if module(origin):
                        return resolve(origin, item.name)
                    return f"{origin}.{item.name}"
        elif isinstance(node, ast.Import):
            for item in node.names:
                if item.asname == name:
                    return item.name
    value = assigned(source, "__all__")
    if isinstance(value, ast.Call):
        homes = _dictionary(source, value.args[1])
        if name in homes:
            return resolve(homes[name], name)
    if module(f"{home}.{name}"):
        return f"{home}.{name}"
    value = _value(source, name)
    if value is not None:
        return resolve(home, value.id) if isinstance(value, ast.Name) else f"{home}.{name}"
    # A package's own `__getattr__` may import from any of its files.
    for file in sorted(ROOT.joinpath(*home.split(".")).glob("[!_]*.py")):
        if _definition(f"{home}.{file.stem}.{name}") is not None:
            return f"{home}.{file.stem}.{name}"
    raise LookupError(f"{home} does not say where {name!r} comes from")


def namespaces(name: str = PACKAGE) -> list[str]:
    """The public modules: the package, and those that a public module names as its own."""
    found = [name]
    for item in public_names(name):
        if module(resolve(name, item)) and resolve(name, item) == f"{name}.{item}":
            found += namespaces(f"{name}.{item}")
    return found


def summary(name: str) -> str:
    """The first sentence of a module's, class's or function's docstring."""
    source = module(name)
    node = source.tree if source else _definition(name)
    text = ast.get_docstring(node) if node else None
    return " ".join((text or "").partition("\n\n")[0].split())


def _definition(name: str) -> ast.AST | None:
    home, _, label = name.rpartition(".")
    source = module(home)
    for node in source.tree.body if source else ():
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == label:
            return node
    return None


def contents() -> dict[str, dict[str, str]]:
    """For each public module its public names, and the place that defines each of them."""
    found = {}
    for space in namespaces():
        places = {name: resolve(space, name) for name in public_names(space) if name != VERSION}
        found[space] = {name: place for name, place in places.items() if module(place) is None}
    return found


def documented_at() -> dict[str, tuple[str, str]]:
    """For each definition the public module on whose page it is, and its name there.

    The most specific of our own namespaces has it: `keras_sam.layers` before `keras_sam`, and
    both before those that stand in for other packages.
    """
    rank = lambda space: (space.startswith(f"{PACKAGE}.compat"), space == PACKAGE)  # noqa: E731
    found: dict[str, tuple[str, str]] = {}
    everything = contents()
    for space in sorted(everything, key=rank):
        for name, place in everything[space].items():
            found.setdefault(place, (space, name))
    return found


def page_name(space: str) -> str:
    return f"reference/{space.removeprefix(PACKAGE + '.')}.md"


def pages() -> dict[str, str]:
    """The Markdown of each page, by its name."""
    everything, homes = contents(), documented_at()
    made = {page_name(space): page(space, names, homes) for space, names in everything.items()}
    made["reference/index.md"] = index(everything)
    return made


def page(space: str, names: dict[str, str], homes: dict[str, tuple[str, str]]) -> str:
    """One public module: what it is for, its names, and what each of them does."""
    # Guides come first where both have what is searched for.
    parts = ["---\nsearch:\n  boost: 0.4\n---", f"# {space}", summary(space)]
    table = ["| name | |", "|---|---|"]
    blocks = []
    for name, place in sorted(names.items(), key=lambda item: item[0].lower()):
        where, label = homes[place]
        link = f"[`{name}`]({_relative(where)}#{where}.{label})"
        table.append(f"| {link} | {summary(place).replace('|', chr(92) + '|')} |")
        if (where, label) == (space, name):
            blocks.append(_entry(space, name, place))
    below = [other for other in namespaces() if other.rpartition(".")[0] == space]
    if below:
        parts.append("Modules: " + ", ".join(f"[`{o}`]({_relative(o)})" for o in below))
    if len(table) > 2:
        parts.append("\n".join(table))
    return "\n\n".join([*parts, *blocks]) + "\n"


def _relative(space: str) -> str:
    return page_name(space).removeprefix("reference/")


def _entry(space: str, name: str, place: str) -> str:
    """A heading that can be linked to by the public name, the signature, and the docstring."""
    if _definition(place) is None:
        home = module(place.rpartition(".")[0])
        value = _value(home, name) if home else None
        shown = ast.unparse(value) if value is not None else place
        return f"## {name} {{ #{space}.{name} }}\n\n```python\n{name} = {shown}\n```"
    options = {"heading": name, "toc_label": name, "heading_level": 2, "show_root_heading": "true"}
    lines = [f"      {key}: {value}" for key, value in options.items()]
    return "\n".join([f"[](){{ #{space}.{name} }}\n", f"::: {place}", "    options:", *lines])


def index(everything: dict[str, dict[str, str]]) -> str:
    """All public modules with their names."""
    rows = ["| module | for | names |", "|---|---|---|"]
    for space, names in everything.items():
        links = ", ".join(f"`{name}`" for name in sorted(names, key=str.lower))
        rows.append(f"| [`{space}`]({_relative(space)}) | {summary(space)} | {links} |")
    return "# API reference\n\n" + "\n".join(rows) + "\n"
