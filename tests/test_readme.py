"""Tests of the documents: what README and docs/ print can be pasted, and their links lead somewhere.

The commands of README's block for the demo, and all Python of the documents, run in a folder laid out as `make demo`
leaves it, with a tiny data set and fresh weights. Of every other command the flags are parsed.

python -m pytest tests/test_readme.py
"""

import argparse
import ast
import contextlib
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from tiny_onnx import write_model

import models
from training import evaluate

DOCUMENTS = ["README.md", "BENCHMARK.md", "DATASETS.md"]
DOCUMENTS += sorted(f"docs/{path.name}" for path in REPOSITORY.glob("docs/*.md"))


def text_of(document):
    return (REPOSITORY / document).read_text(encoding="utf-8")


def blocks(document, language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(document), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def snippets():
    """(where, Python) of all blocks but doctests, which pytest runs itself, and the parser of DATASETS.md, a piece."""
    return [(f"{document}, block {number}", code)
            for document in DOCUMENTS if document != "DATASETS.md"
            for number, code in enumerate(blocks(document, "python"), 1) if ">>>" not in code]  # fmt: skip


def printed_commands():
    """Every command of the documents once, as text: lines of blocks without a language, and code between backquotes."""
    for document in DOCUMENTS:
        lines = re.sub(r"\\\n *", "", "\n".join([*blocks(document, ""), *blocks(document, "bash")])).splitlines()
        lines += [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", text_of(document))]
        for line in lines:
            found = re.match(r"(?:python|torchrun .*?(?=train\.py)) ?((?:-m tools\.|\w+\.py\b).*)", line)
            if found and "..." not in line:
                yield re.sub(r"  #.*|   +.*", "", found[1])


def run_main(argv):
    """The exit code of `python ARGV`, in this process."""
    name, *flags = argv[1:] if argv[0] == "-m" else argv
    module = importlib.import_module(name.removesuffix(".py"))
    if not hasattr(module, "main"):  # a folder
        module = importlib.import_module(f"{name}.__main__")
    return module.main(flags) or 0


def as_bash_calls(block, folder):
    """The arguments of each `python` in a block, as bash gives them when the block is pasted in `folder`."""
    script = 'python() { printf "%s\\n" "$@"; echo; }\n' + block
    run = subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, text=True)
    assert not run.returncode and not run.stderr, run.stderr
    return [call.splitlines() for call in run.stdout.removesuffix("\n\n").split("\n\n")]


def test_readme_has_at_most_250_lines():
    assert len(text_of("README.md").splitlines()) <= 250


class InnerProducts:
    """What the documents ask of FAISS, which is not among our requirements."""

    def __init__(self, dim):
        self.features = np.empty((0, dim), np.float32)

    def add(self, features):
        self.features = np.concatenate([self.features, features])

    def search(self, queries, top):
        similarities = queries @ self.features.T
        rows = np.argsort(-similarities, axis=1)[:, :top]
        return np.take_along_axis(similarities, rows, 1), rows


def lay_out(folder, drawn_root):
    """A folder as `make demo` leaves it; two small networks stand for its own, quick to export and to search with."""
    shutil.copytree(drawn_root / "synthetic", folder / "data" / "synthetic")
    for path in (folder / "runs" / "demo", folder / ".venv" / "bin"):
        path.mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    torch.manual_seed(0)
    about = {"arch": "squeezenet1_1", "num_ids": 6, "options": {"input_size": (64, 32)}}
    model = models.build_model(about["arch"], about["num_ids"], **about["options"])
    torch.save({**about, "model": model.state_dict()}, folder / "runs" / "demo" / "best.pth")
    write_model(folder / "runs" / "demo" / "best.onnx")


def run_snippet(code):
    """Runs a block; what it names `features` is what PyTorch gives for its `paths`, its scores are scores."""
    rng = np.random.default_rng(0)
    names = {"frame": rng.integers(0, 256, (200, 300, 3), dtype=np.uint8), "track_ids": ["7", "9"],
             "boxes": [(10, 170, 20, 90), (30, 190, 100, 160)]}  # fmt: skip
    *body, last = ast.parse(code).body
    if isinstance(last, ast.Expr):  # as a notebook shows it
        last = ast.parse(f"shown = {ast.unparse(last)}").body[0]
    exec(compile(ast.Module([*body, last], []), "document", "exec"), names)
    if paths := names.get("paths"):
        model, _ = models.load_checkpoint("runs/demo/best.pth")
        expected, given = evaluate.extract(model, paths), torch.as_tensor(names["features"])
        assert len(paths) == len(given) == 5
        assert torch.cosine_similarity(given.cpu(), expected.cpu()).min() > 0.9999
    if "qdrant" in code:
        of_camera = [number for number, item in enumerate(names["items"]) if item["camid"] == "2"]
        ranked = np.argsort(-(names["features"] @ names["features"][0])[of_camera])[:10]
        assert [hit.id for hit in names["hits"]] == [names["ids"][of_camera[place]] for place in ranked]
    if "evaluate.score" in code:
        scores = names.get("scores") or names["shown"]
        assert scores["queries"] > 0 and 0 <= scores["rank1"] <= 1 and 0 <= scores["mAP"] <= 1


def test_what_is_printed_for_the_demo_runs_as_it_stands(drawn_root, tmp_path, monkeypatch):
    """README's block, then all Python of the documents, in one test: workers share no fixtures."""
    lay_out(tmp_path, drawn_root)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "faiss", types.SimpleNamespace(IndexFlatIP=InnerProducts))
    block = next(block for block in blocks("README.md", "bash") if "calibrate" in block)
    codes = {}
    for argv in as_bash_calls(block, tmp_path):
        few_pairs = ["--fmr", "0.01"] * (argv[1] == "calibrate")  # which resolve no smaller rate
        codes[" ".join(argv[:2])] = run_main(argv + few_pairs)
    assert len(codes) == 7 and codes.pop("search.py verify") in (0, 3)
    assert not any(codes.values()), codes
    for name in ("report/queries.csv", "report/maps.jpg", "gallery.index/features.npy", "query.html"):
        assert (tmp_path / "runs" / "demo" / name).stat().st_size, name
    assert len(snippets()) >= 8
    for where, code in snippets():
        try:
            run_snippet(code)
        except Exception as error:
            error.add_note(where)
            raise


class Parsed(Exception):
    pass


@pytest.mark.parametrize("command", sorted(set(printed_commands())))
def test_printed_commands_are_commands(command, monkeypatch, capsys):
    """Each is run until its flags are parsed: names, number and form of all of them are right."""
    parse = argparse.ArgumentParser.parse_known_args  # which parse_args calls

    def parse_and_stop(self, args=None, namespace=None):
        _, unknown = parse(self, args, namespace)
        assert not unknown
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
    try:
        with contextlib.suppress(Parsed):
            run_main(shlex.split(command))
            pytest.fail("it was run, not stopped")
    except SystemExit as stop:
        assert not stop.code, capsys.readouterr().err


def anchors(text):
    """What GitHub calls the headings."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(document))
    for link in links:
        path, _, heading = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = (REPOSITORY / document).parent / path if path else REPOSITORY / document
        assert target.is_file(), f"{document}: {link}"
        assert not heading or heading in anchors(target.read_text(encoding="utf-8")), f"{document}: {link}"
    assert links or document == "DATASETS.md"
