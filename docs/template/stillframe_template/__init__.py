"""Plug-ins for stillframe."""
