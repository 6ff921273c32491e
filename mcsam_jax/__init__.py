"""MCSAM in JAX: a memory-based model that generates the report of a chest X-ray."""

__version__ = "0.2.0"
