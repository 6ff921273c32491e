"""The tokenizer of a prepared data set: where it is stored, and how it is trained the first time."""

from collections.abc import Callable
import contextlib
import hashlib
import json
import os

from etils import epath
from ml_collections import ConfigDict

from input_pipeline.builder.write_errors import explain_write_errors
from input_pipeline.splits import dataset_dir, open_split
from input_pipeline.tokenizer import build_tokenizer, load_tokenizer, Tokenizer


def tokenizer_dir(config: ConfigDict) -> epath.Path:
  """Returns the folder of the tokenizer, which may not exist yet; its name changes with the settings."""
  settings = {**config.tokenizer.to_dict(), "cleaning": config.data.cleaning, "target": config.data.target}
  if config.data.min_words:
    settings["min_words"] = config.data.min_words
  del settings["max_length"]                        # truncates reports, but does not change the vocabulary
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
  return dataset_dir(config) / f"tokenizer-{digest}"


def load_or_build_tokenizer(config: ConfigDict, log: Callable[[str], None] = lambda line: None) -> Tokenizer:
  """Returns the tokenizer of the prepared records; the first call trains it on the reports of the train split.

  Args:
    log: receives lines of progress while the reports are read.

  Raises:
    UserError: the records are not prepared, or the tokenizer can't be written.
  """
  directory = tokenizer_dir(config)
  if directory.exists():
    return load_tokenizer(directory)
  tokenizer = build_tokenizer(config, open_split(config, "train").read_reports(log))
  unfinished = directory.parent / f"incomplete.{directory.name}.{os.getpid()}"
  with explain_write_errors(directory):
    try:
      unfinished.mkdir(parents=True, exist_ok=True)
      tokenizer.save(unfinished)
      with contextlib.suppress(FileExistsError):    # another process was faster and wrote the same files
        unfinished.rename(directory)
    finally:
      if unfinished.exists():
        unfinished.rmtree()
  return tokenizer
