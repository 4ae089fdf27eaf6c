"""Kills, cuts and full disks at every moment of an extraction: what is left is always sound, and a rerun ends in the same bytes."""
