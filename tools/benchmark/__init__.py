"""Speed and memory, measured side by side with a straightforward version: python -m tools.benchmark --help"""
