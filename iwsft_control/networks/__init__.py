"""Flax networks, and policies that act."""
