"""Commands for those who work on this project: drawn data sets, experiments, benchmarks."""
