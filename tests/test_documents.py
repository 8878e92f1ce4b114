"""Tests of the house: which room imports which, how long functions are; of README's table of it and of DATASETS.md's.

python -m pytest tests/test_documents.py
"""

import ast
import re

import pytest
from conftest import REPOSITORY

import data


def rows_of(document, head):
    """Cells of the rows of the table whose first line begins like `head`."""
    lines = (REPOSITORY / document).read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(head)) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" |")])


LIBRARIES = ("models", "data", "losses", "metrics", "images", "pictures")
COMMANDS = ("train", "export", "search")
FOLDERS = ("training", "exporting", "searching", "tools")
HOUSE = {  # room -> the rooms that it may import; a folder may also import itself
    "models": (),
    "data": ("images",),
    "losses": (),
    "metrics": (),
    "train": (*LIBRARIES, "training"),
    "export": (*LIBRARIES, "exporting", "training"),
    "search": ("searching", "images", "pictures"),
    "images": (),
    "pictures": ("images",),
    "training": (*LIBRARIES, "searching"),
    "exporting": (*LIBRARIES, "training"),
    "searching": ("images", "pictures"),
    "tools": (*LIBRARIES, *COMMANDS, "training", "exporting", "searching"),
}


def source_files():
    """Paths of all sources below the root of the repository, without tests."""
    folders = [sorted((REPOSITORY / folder).rglob("*.py")) for folder in FOLDERS]
    return sum([sorted(REPOSITORY.glob("*.py")), *folders], [])


def room_of(path):
    return path.relative_to(REPOSITORY).parts[0].removesuffix(".py")


def modules_in(path):
    """Names of the modules that a file imports, wherever in it; of `from a import b` both a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a module is imported by its whole name"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_root_holds_the_rooms_and_no_other_file():
    assert {path.stem for path in REPOSITORY.glob("*.py")} == set(LIBRARIES) | set(COMMANDS)
    assert {room_of(path) for path in source_files()} == set(HOUSE)


@pytest.mark.parametrize("room", HOUSE)
def test_a_room_imports_what_it_may(room):
    for path in source_files():
        if room_of(path) == room:
            used = {module.partition(".")[0] for module in modules_in(path)} & set(HOUSE)
            assert used <= {room, *HOUSE[room]}, f"{path.relative_to(REPOSITORY)} imports {used - {room, *HOUSE[room]}}"


def test_arrows_run_one_way():
    """Down from commands to libraries: the table itself lets no library import a command or a folder, and no circle."""
    for library in LIBRARIES:
        assert set(HOUSE[library]) <= set(LIBRARIES)
    left = dict(HOUSE)
    while free := [room for room, used in left.items() if not set(used) & set(left)]:
        left = {room: used for room, used in left.items() if room not in free}
    assert left == {}


def test_search_needs_no_torch():
    """Nothing that search.py imports, over however many files, names it: at the top, or in a function."""
    waiting, seen = [REPOSITORY / "search.py"], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        modules = modules_in(path)
        assert not {module.partition(".")[0] for module in modules} & {"torch", "torchvision", "timm"}, path
        for place in (REPOSITORY.joinpath(*module.split(".")) for module in modules):
            waiting += [file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()]
    assert {room_of(path) for path in seen} == {"search", "searching", "images", "pictures"}


def test_no_function_is_longer_than_a_page():
    """60 lines; but what builds a parser is a list."""
    long = {}
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "parser" not in node.name:
                if (lines := node.end_lineno - node.lineno + 1) > 60:
                    long[f"{path.relative_to(REPOSITORY)}: {node.name}"] = lines
    assert long == {}


def test_readme_names_the_rooms():
    rows = [name.strip("`") for name, *_ in rows_of("README.md", "| room | its one concern |")]
    assert sorted(rows) == sorted(f"{room}/" if room in FOLDERS else f"{room}.py" for room in HOUSE)


def test_the_tables_of_data_sets_are_those_of_the_code():
    """Names, number of splits, published ids and items, folder and layout."""
    rows = {row[0].strip("`"): row for row in rows_of("DATASETS.md", "| name | what | train |")}
    assert list(rows) == sorted(data.DATASETS)
    for name, dataset in data.DATASETS.items():
        assert rows[name][6] == str(dataset.num_splits), name
        for cell, counts in zip(rows[name][2:5], dataset.counts or (), strict=False):
            told = [int(number) for number in re.sub(",", "", cell).replace("?", "").split("/") if number.strip("- ")]
            assert told == [count for count in (counts or ())[:2] if count], (name, cell)
    places = {row[0].strip("`"): row[1:] for row in rows_of("DATASETS.md", "| name | folder below `--root` |")}
    written = {name: [f"`{d.folder}`", f"`{d.layout}`"] for name, d in data.DATASETS.items() if name != "folder"}
    for name in ("synthetic", "synthetic-video"):
        written[name][1] = data.DATASETS[name].layout  # it has such quotes inside
    assert places == written
