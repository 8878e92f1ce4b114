"""Tests of what `pip install .` says.

python -m pytest tests/tools/test_no_package.py
"""

import subprocess
import sys

from conftest import REPOSITORY


def test_pip_says_to_clone_and_installs_nothing(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", "here", str(REPOSITORY)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode != 0 and not (tmp_path / "here").exists()
    assert "This is not a package. Clone it" in run.stderr and "setuptools" not in run.stdout + run.stderr
