"""Metrics that are computed by code outside of this project."""
