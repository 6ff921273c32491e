"""`mcsam prepare`: source files become sharded records, and the training reports a tokenizer.

Both are made once: records stand under `data.data_dir` in a folder named after
their source, the tokenizer beside them in one named after its settings. Either
folder gets its name only when it is whole, so an interrupted run leaves nothing
that could be taken for finished.
"""

import collections
from collections.abc import Callable
import contextlib
import errno
import hashlib
import io
import json
import os
import time

from etils import epath
from ml_collections import ConfigDict
import tensorflow_datasets as tfds

from input_pipeline import datasets
from input_pipeline.splits import open_split
from input_pipeline.tokenizer import Tokenizer, build_tokenizer, load_tokenizer
from mcsam_jax.errors import UserError


def prepare(config: ConfigDict, show: Callable[[str], None] = print) -> dict[str, dict]:
  """Builds records and tokenizer unless they are there, and shows what they hold.

  Returns:
    For each split its `studies`, `images`, `mean_words` and `distinct_reports`.

  Raises:
    UserError: faults of the source, damaged records, no space left; nothing half-built stays.
  """
  started = time.monotonic()
  builder = datasets.make_builder(config)
  if builder.is_prepared():
    show(f"Records are in {builder.data_dir}")
  else:
    show(f"Writing records to {builder.data_dir}")
    _build(builder)
  summary, tokenizer = {}, load_or_build_tokenizer(config)
  for split in builder.info.splits:
    summary[split] = _summary(open_split(config, split), tokenizer)
  show(_table(summary))
  show(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size} ids: {tokenizer_dir(config)}")
  show(f"Done in {time.monotonic() - started:.0f} s. Next, with the same --config:\n"
       "  mcsam init-memory --config C --workdir W\n"
       "  mcsam train --config C --workdir W")
  return summary


def dataset_dir(config: ConfigDict) -> epath.Path:
  """Returns the folder of the records, whether they are there or not."""
  return epath.Path(datasets.make_builder(config).data_dir)


def tokenizer_dir(config: ConfigDict) -> epath.Path:
  """Returns the folder of the tokenizer, whether it is there or not."""
  settings = {**config.tokenizer.to_dict(), "cleaning": config.data.cleaning, "target": config.data.target}
  del settings["max_length"]                        # cuts reports, not the vocabulary
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
  return dataset_dir(config) / f"tokenizer-{digest}"


def load_or_build_tokenizer(config: ConfigDict) -> Tokenizer:
  """Returns the tokenizer of the prepared records, trained on their train reports the first time."""
  directory = tokenizer_dir(config)
  if directory.exists():
    return load_tokenizer(directory)
  tokenizer = build_tokenizer(config, open_split(config, "train").reports)
  unfinished = directory.parent / f"incomplete.{directory.name}.{os.getpid()}"
  with _no_space_is_a_user_error(directory):
    try:
      unfinished.mkdir(parents=True, exist_ok=True)
      tokenizer.save(unfinished)
      with contextlib.suppress(FileExistsError):    # another process was faster; its files are the same
        unfinished.rename(directory)
    finally:
      if unfinished.exists():
        unfinished.rmtree()
  return tokenizer


def _build(builder: tfds.core.DatasetBuilder) -> None:
  with _no_space_is_a_user_error(builder.data_dir), contextlib.redirect_stdout(io.StringIO()):
    builder.download_and_prepare(file_format="array_record",
                                 download_config=tfds.download.DownloadConfig(try_download_gcs=False))


@contextlib.contextmanager
def _no_space_is_a_user_error(path):
  try:
    yield
  except Exception as error:      # ArrayRecord's own writer raises no OSError
    full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
    if not full:
      raise
    raise UserError(f"no space left for {path}; nothing unfinished was kept: free some, or set "
                    "--config.data.data_dir to another disk") from error


def _summary(split, tokenizer: Tokenizer) -> dict:
  cleaned = [tokenizer.clean(report) for report in split.reports]
  return {
      "studies": len(split),
      "images": sum(len(record["views"]) for record in split.without_images),
      "mean_words": sum(len(report.split()) for report in cleaned) / len(cleaned),
      "distinct_reports": len(collections.Counter(cleaned)),
  }


def _table(summary: dict[str, dict]) -> str:
  lines = [f"{'split':8}{'studies':>10}{'images':>10}{'mean words':>12}{'distinct reports':>18}"]
  lines += [f"{split:8}{row['studies']:>10,}{row['images']:>10,}{row['mean_words']:>12.1f}"
            f"{row['distinct_reports']:>18,}" for split, row in summary.items()]
  return "\n".join(lines)
