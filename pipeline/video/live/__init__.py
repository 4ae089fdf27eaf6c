"""Frames as they come: from cameras, addresses and standard input."""
