"""The command line `mcsam VERB`."""

from mcsam_jax.cli.main import main

__all__ = ["main"]
