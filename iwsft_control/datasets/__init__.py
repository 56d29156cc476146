"""Offline data sets: how they lie on disk and in memory, and where they come from."""
