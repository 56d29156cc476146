"""Hyper-parameters of every method, bounds beside each, and the card by which commands know it. Nothing here computes.

A command reads these before anything else: its help and a mistake in an option cost no import of JAX.
"""
