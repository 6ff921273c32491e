"""Trained models in Python: `mcsam_jax.load` and what it returns. docs/python.md shows each call."""

from mcsam_jax.api.loading import load
from mcsam_jax.api.model import Model

__all__ = ["load", "Model"]
