"""Recipes that ship with the package: what to train on a cache."""
