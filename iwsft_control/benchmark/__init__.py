"""Runs of a benchmark: settings, stages, the store, pools of workers, result files."""
