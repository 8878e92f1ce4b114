"""What `pip install .` runs into, as pyproject.toml says: this is a folder to work in, not a package."""

raise SystemExit("This is not a package. Clone it and work in its folder: pip install -r requirements.txt (README.md)")
