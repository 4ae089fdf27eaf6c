"""Measurements of whole trainings: epochs, sweeps, and the steps of forecasts."""
