"""Tests of what README.md and DATASETS.md say of the code: which file imports which, and the tables of data sets.

python -m pytest tests/test_documents.py
"""

import ast
import re

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


def test_the_layout_names_every_file_and_what_it_imports_of_ours():
    files = {path.stem: path for path in REPOSITORY.glob("*.py")}
    imported = {}
    for name, path in files.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
        imported[f"`{name}.py`"] = sorted(names & set(files))
    rows = rows_of("README.md", "| file | its one concern | imports of ours |")
    assert {name: sorted(used.replace("-", "").replace(",", " ").split()) for name, _, used in rows} == imported


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
