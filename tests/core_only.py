"""Runs scripts where only the core packages can be imported: python core_only.py SCRIPT ARGUMENTS then SCRIPT ...

One after the other in one process, which takes seconds to begin; the first that fails ends it.
"""

import importlib.machinery
import importlib.metadata
import itertools
import re
import runpy
import sys

CORE = ("torch", "torchvision", "numpy", "pillow", "pytest", "onnxruntime-gpu", "onnxruntime", "tqdm")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(names):
    """The distributions and all that they require."""
    found, waiting = set(), [normal(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        waiting += [normal(re.match(r"[\w.-]+", r)[0]) for r in requirements if "extra ==" not in r]
    return found


class CoreFinder:
    """Takes the place of the finder of files: modules of packages outside the closure are not found."""

    def __init__(self):
        allowed = closure(CORE)
        owners = importlib.metadata.packages_distributions()
        self.blocked = {m for m, dists in owners.items() if not {normal(d) for d in dists} & allowed}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.blocked:
            return importlib.machinery.PathFinder.find_spec(name, path, target)


if __name__ == "__main__":
    sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = CoreFinder()
    sys.path[0] = "."
    commands = [list(words) for then, words in itertools.groupby(sys.argv[1:], "then".__eq__) if not then]
    for sys.argv in commands:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise
