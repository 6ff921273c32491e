"""`mcsam prepare`: source files become sharded records, and the training reports a tokenizer.

Both are made once: records stand under `data.data_dir` in a folder named after
their source, the tokenizer beside them in one named after its settings. Either
folder gets its name only when it is whole, so an interrupted run leaves nothing
that could be taken for finished.
"""

from collections.abc import Callable
import contextlib
import errno
import hashlib
import json
import os
import time

from etils import epath
from ml_collections import ConfigDict

from input_pipeline import datasets
from input_pipeline.builder.build import build
from input_pipeline.builder.record_counts import counted, counts_table
from input_pipeline.splits import is_prepared, open_split, skipped, Split
from input_pipeline.token_table import load_or_build
from input_pipeline.tokenizer import build_tokenizer, load_tokenizer, Tokenizer
from mcsam_jax.errors import UserError


def prepare(config: ConfigDict, log: Callable[[str], None] = print) -> dict[str, dict]:
  """Builds records and tokenizer unless they are there, and shows what they hold.

  Returns:
    For each split its `studies`, `images`, `mean_words` and `distinct_reports`.

  Raises:
    UserError: faults of the source, damaged records, no space left; nothing half-built stays.
  """
  started = time.monotonic()
  builder = datasets.make_builder(config)
  if is_prepared(builder):
    log(f"Records are in {builder.data_dir}")
  else:
    with _writing(builder.data_dir):
      build(config, log)
  builder = datasets.make_builder(config)
  splits = {name: open_split(config, name) for name in builder.info.splits}     # counts the records
  tokenizer = load_or_build_tokenizer(config)
  counts = counted(builder, {name: skipped(builder, name, config.data) for name in splits})
  summary = _load_or_make_summary(tokenizer_dir(config) / "summary.json", splits, tokenizer, counts)
  if counts:
    log(counts_table(builder, counts))
  log(_table(summary))
  log(f"{tokenizer.kind} tokenizer of {tokenizer.vocab_size} ids: {tokenizer_dir(config)}")
  log(f"Done in {time.monotonic() - started:.0f} s. Next, with the same --config:\n"
       "  mcsam init-memory --config C --workdir W\n"
       "  mcsam train --config C --workdir W")
  return summary


def dataset_dir(config: ConfigDict) -> epath.Path:
  """Returns the folder of the records, whether they are there or not."""
  return epath.Path(datasets.make_builder(config).data_dir)


def tokenizer_dir(config: ConfigDict) -> epath.Path:
  """Returns the folder of the tokenizer, whether it is there or not."""
  settings = {**config.tokenizer.to_dict(), "cleaning": config.data.cleaning, "target": config.data.target}
  if config.data.min_words:
    settings["min_words"] = config.data.min_words
  del settings["max_length"]                        # cuts reports, not the vocabulary
  digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
  return dataset_dir(config) / f"tokenizer-{digest}"


def load_or_build_tokenizer(config: ConfigDict, log: Callable[[str], None] = lambda line: None) -> Tokenizer:
  """Returns the tokenizer of the prepared records, trained on their train reports the first time.

  `log` receives lines of progress while these are read.
  """
  directory = tokenizer_dir(config)
  if directory.exists():
    return load_tokenizer(directory)
  tokenizer = build_tokenizer(config, open_split(config, "train").read_reports(log))
  unfinished = directory.parent / f"incomplete.{directory.name}.{os.getpid()}"
  with _writing(directory):
    try:
      unfinished.mkdir(parents=True, exist_ok=True)
      tokenizer.save(unfinished)
      with contextlib.suppress(FileExistsError):    # another process was faster; its files are the same
        unfinished.rename(directory)
    finally:
      if unfinished.exists():
        unfinished.rmtree()
  return tokenizer


@contextlib.contextmanager
def _writing(path):
  """Turns a full or a closed disk into a line for the user."""
  try:
    yield
  except BrokenPipeError:         # of whoever reads our output
    raise
  except Exception as error:      # ArrayRecord's own writer raises no OSError
    if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
      raise UserError(f"no space left for {path}: free some and run the same command, which goes on "
                      "from what is whole, or set --config.data.data_dir to another disk") from error
    if isinstance(error, OSError):
      raise UserError(f"{path} cannot be written ({error.strerror or error}); set --config.data.data_dir "
                      "to a folder that can") from error
    raise


def _load_or_make_summary(path: epath.Path, splits: dict[str, Split], tokenizer: Tokenizer,
                          counts: dict[str, dict]) -> dict[str, dict]:
  """Returns the summary of each split; it is kept, as it takes a pass over all records."""
  with contextlib.suppress(FileNotFoundError, ValueError):
    return json.loads(path.read_text())
  summary = {name: _summary(split, tokenizer) | ({"of_studies": counts[name]} if counts else {})
             for name, split in splits.items()}
  with _writing(path):
    path.write_text(json.dumps(summary, indent=1) + "\n")
  return summary


def _summary(split: Split, tokenizer: Tokenizer) -> dict:
  cleaned = [tokenizer.clean(report) for report in split.reports]
  return {
      "studies": len(split),
      "images": int((load_or_build(split, tokenizer).views >= 0).sum()),
      "mean_words": sum(len(report.split()) for report in cleaned) / len(cleaned),
      "distinct_reports": len(set(cleaned)),
  }


def _table(summary: dict[str, dict]) -> str:
  lines = [f"{'split':8}{'studies':>10}{'images':>10}{'mean words':>12}{'distinct reports':>18}"]
  lines += [f"{split:8}{row['studies']:>10,}{row['images']:>10,}{row['mean_words']:>12.1f}"
            f"{row['distinct_reports']:>18,}" for split, row in summary.items()]
  return "\n".join(lines)
