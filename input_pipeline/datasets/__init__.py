"""The data sets: one TFDS builder for each value of `config.data.name`.

It is one of MODULES, or `package.module:function` for a data set of the user's own, where the function takes the config
and returns its `records.RecordBuilder`.
"""

import importlib

from absl import logging
from ml_collections import ConfigDict

from mcsam_jax.errors import UserError
from mcsam_jax.extensions.by_name import call_by_name, is_import_name

MODULES = {                        # data.name -> module that defines make_builder(config)
    "phantom": "input_pipeline.datasets.phantom.dataset",
    "r2gen_json": "input_pipeline.datasets.r2gen_json",
    "mimic_cxr": "input_pipeline.datasets.mimic_cxr.dataset",
}


def make_builder(config: ConfigDict):
  """Returns the TFDS builder of the data set `config.data.name`; no image is read and nothing is written.

  Raises:
    UserError: the data set is unknown, its settings are invalid, or its dataset_info.json is damaged.
  """
  name = config.data.name
  if name not in MODULES and not is_import_name(name):
    raise UserError(f"data.name={name}: unknown data set, expected one of {', '.join(MODULES)}, or "
                    "package.module:function for one of your own")
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)      # TFDS warns about builder configs that depend on the user's files
  try:
    if is_import_name(name):
      from input_pipeline.datasets.records import RecordBuilder  # not at the top: it imports TensorFlow Datasets
      return call_by_name("data.name", name, config, returns=RecordBuilder)
    return importlib.import_module(MODULES[name]).make_builder(config)
  finally:
    logging.set_verbosity(verbosity)
