"""The layers of the code: imports go down, never up, and the light layers stay light."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]

# Packages and modules from top to bottom. A module may import its own package, packages in lower rows, and those of
# its own row that the row's tuple lists after it.
LAYERS = (
    ("mcsam_jax.__main__", "mcsam_jax.cli", "mcsam_jax.demo"),
    ("mcsam_jax.precompile", "mcsam_jax.benchmark", "mcsam_jax.pretrained", "mcsam_jax.evaluation",
     "mcsam_jax.training"),
    ("mcsam_jax.html_report", "mcsam_jax.explain", "mcsam_jax.inference"),
    ("mcsam_jax.metrics", "mcsam_jax.labelers", "mcsam_jax.checkpoints", "mcsam_jax.distributed"),
    ("mcsam_jax.config", "mcsam_jax.decoding", "mcsam_jax.memory_init", "mcsam_jax.models", "input_pipeline"),
    ("configs",),
)
# Verbs of the second row that don't build on one another.
SIBLINGS = {("mcsam_jax.benchmark", "mcsam_jax.pretrained"), ("mcsam_jax.benchmark", "mcsam_jax.evaluation"),
            ("mcsam_jax.pretrained", "mcsam_jax.evaluation"), ("mcsam_jax.precompile", "mcsam_jax.benchmark"),
            ("mcsam_jax.precompile", "mcsam_jax.pretrained"), ("mcsam_jax.precompile", "mcsam_jax.evaluation"),
            ("mcsam_jax.evaluation", "mcsam_jax.training"), ("mcsam_jax.decoding", "mcsam_jax.models"),
            ("mcsam_jax.decoding", "mcsam_jax.memory_init"), ("mcsam_jax.decoding", "input_pipeline"),
            ("mcsam_jax.memory_init", "mcsam_jax.models"), ("mcsam_jax.memory_init", "input_pipeline"),
            ("mcsam_jax.models", "input_pipeline"), ("mcsam_jax.config", "mcsam_jax.decoding"),
            ("mcsam_jax.config", "mcsam_jax.memory_init"), ("mcsam_jax.config", "input_pipeline"),
            }
# Modules that know no other layer; anyone may import them.
LEAVES = {"mcsam_jax", "mcsam_jax.findings", "mcsam_jax.errors", "mcsam_jax.retryable", "mcsam_jax.atomic_io", "mcsam_jax.hardware",
          "mcsam_jax.partitioning", "mcsam_jax.progress"}
