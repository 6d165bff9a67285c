"""The rooms of the house: who may import whom, as `docs/architecture.md` says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("encoders", "adaptors", "codecs", "llms", "heads")
GROUND = "errors.py"
"""Its line of the table is the ground floor."""

Modules = dict[str, set[str]]
"""Module -> the modules that it imports, as paths inside the package: ``cli/main.py``."""


def read_modules(package: Path) -> Modules:
    """Every module of a package and what it imports, inside functions and for type checkers too.

    Args:
        package: its folder; linked folders in it are followed.
    """
    # two levels at most, and glob follows the links of folders that rglob passes by
    files = {
        path.relative_to(package).as_posix(): path
        for depth in ("", "*/", "*/*/")
        for path in package.glob(f"{depth}*.py")
    }
    return {
        name: set(_imports(ast.parse(path.read_text("utf-8")), package.name, files)) for name, path in files.items()
    }


def _imports(tree: ast.Module, package: str, files: Iterable[str]) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == package:
                yield _file_of(name.split(".")[1:], files)


def _file_of(parts: list[str], files: Iterable[str]) -> str:
    """``["a", "b", "Name"]`` -> ``a/b.py``, or the package that it is taken from."""
    for count in range(len(parts), 0, -1):
        stem = "/".join(parts[:count])
        for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
            if candidate in files:
                return candidate
    return "__init__.py"


def read_table(page: str) -> dict[str, list[str]]:
    """Room -> the rooms that it may use, in the order of the page."""
    rooms: dict[str, list[str]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = re.findall(r"`([^`]+)`", cells[0])
        if len(cells) == 4 and names:
            assert not set(names) & set(rooms), f"{names} stand in the table twice"
            rooms.update(dict.fromkeys(names, re.findall(r"`([^`]+)`", cells[2])))
    return rooms


def room_of(module: str) -> str:
    folder, slash, _ = module.partition("/")
    return f"{folder}/" if slash else module


def broken_walls(
    modules: Mapping[str, Iterable[str]], rooms: Mapping[str, list[str]], ground: Iterable[str]
) -> list[str]:
    """What the table forbids."""
    faults = [f"{module} stands in no room" for module in modules if room_of(module) not in rooms]
    for room, allowed in rooms.items():
        above = list(rooms)[: list(rooms).index(room)]
        faults += [
            f"{room} may use {other}, which stands below it"
            for other in allowed
            if other not in (*above, "*/configs.py")
        ]
    for module, imported in modules.items():
        room = room_of(module)
        allowed = rooms.get(room, [])
        for other in sorted(imported):
            is_promise = "*/configs.py" in allowed and other in {f"{part}/configs.py" for part in PARTS}
            is_ground = room_of(other) in ground and room != "soundscapes/"
            if room_of(other) not in (room, *allowed) and not is_promise and not is_ground:
                faults.append(f"{module} imports {other}")
    return faults


def circles(modules: Mapping[str, Iterable[str]]) -> list[str]:
    """Files that lean on each other, however far around."""
    found = []
    for start in modules:
        seen, waiting = set(), list(modules[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += modules.get(module, ())
        if start in seen:
            found.append(start)
    return sorted(found)


@pytest.fixture(scope="module")
def modules() -> Modules:
    return read_modules(ROOT / "bagpiper")


@pytest.fixture(scope="module")
def rooms() -> dict[str, list[str]]:
    return read_table((ROOT / "docs" / "architecture.md").read_text("utf-8"))


def ground_of(page: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{GROUND}`")]
    return re.findall(r"`([^`]+\.py)`", line.split("|")[1])


def test_every_import_goes_through_a_door(modules: Modules, rooms: dict[str, list[str]]) -> None:
    assert len(modules) > 150 and len(rooms) > 25, "the tree and the table were read"
    assert "callbacks/metrics.py" in modules, "linked folders too"
    ground = ground_of((ROOT / "docs" / "architecture.md").read_text("utf-8"))
    assert broken_walls(modules, rooms, ground) == []
    assert circles(modules) == []


def test_the_table_allows_nothing_that_nobody_needs(modules: Modules, rooms: dict[str, list[str]]) -> None:
    """A door that is not used is a wall that is missing; parts share a line."""
    used = {(room_of(module), room_of(other)) for module, imported in modules.items() for other in imported}
    shared = {f"{part}/" for part in PARTS}
    idle = [
        f"{room} never uses {other}"
        for room, allowed in rooms.items()
        for other in allowed
        if room not in shared and other != "*/configs.py" and (room, other) not in used
    ]
    assert idle == []


def test_only_the_registry_and_plugins_import_by_name(modules: Modules) -> None:
    package = ROOT / "bagpiper"
    by_name = {
        name for name in modules if re.search(r"\bimport_module\(|__import__\(", (package / name).read_text("utf-8"))
    }
    assert by_name == {"recipe/registry.py", "recipe/load.py"}


TABLE = """
| room | what | may use | when |
|---|---|---|---|
| `errors.py` | ground | | |
| `soundscapes/` | sounds | | |
| `heads/` `llms/` | parts | | |
| `low/` | a | `*/configs.py` | |
| `high/` | b | `low/` | |
"""
HOUSE = {
    "errors.py": "",
    "soundscapes/make.py": "",
    "heads/configs.py": "import dataclasses",
    "heads/depth.py": "from house.heads.configs import Depth",
    "low/one.py": "from house.errors import Oops\nfrom house.heads import configs",
    "low/two.py": "import house.low.one",
    "high/three.py": "def late():\n    from house.low.two import name",
}


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("low/one.py", "def late():\n    from house.high.three import x", "low/one.py imports high/three.py"),
        (
            "low/one.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house.high.three",
            "low/one.py imports high/three.py",
        ),
        ("low/one.py", "from house.heads.depth import Depth", "low/one.py imports heads/depth.py"),
        ("soundscapes/make.py", "from house.errors import Oops", "soundscapes/make.py imports errors.py"),
        ("attic.py", "", "attic.py stands in no room"),
        ("low/one.py", "from house.low import two", "circle"),
        ("errors.py", "from house.low.one import x", "errors.py imports low/one.py"),
    ],
)
def test_a_broken_wall_is_noticed(tmp_path: Path, file: str, text: str, fault: str) -> None:
    def build(files: Mapping[str, str]) -> Modules:
        for name, content in files.items():
            path = tmp_path / "house" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return read_modules(tmp_path / "house")

    rooms, ground = read_table(TABLE), ground_of(TABLE)
    whole = build(HOUSE)
    assert broken_walls(whole, rooms, ground) == [] and circles(whole) == []
    broken = build({file: text})
    if fault == "circle":
        assert circles(broken) == ["low/one.py", "low/two.py"]
    else:
        assert fault in broken_walls(broken, rooms, ground)


def test_a_table_that_lets_a_room_use_one_below_is_noticed() -> None:
    rooms = read_table(TABLE.replace("`*/configs.py`", "`*/configs.py` `high/`"))
    assert broken_walls({}, rooms, ()) == ["low/ may use high/, which stands below it"]
