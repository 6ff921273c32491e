"""`mcsam prepare`: builds the records and the tokenizer of a data set, and shows what they contain.

Both are built once. The records are in a folder below `data.data_dir` that is named after their source, the tokenizer
is in a subfolder of it that is named after the settings of the tokenizer. Each folder gets its final name only when
it is complete, so an interrupted run leaves nothing that looks finished.
"""

from collections.abc import Callable
import contextlib
import json
import time
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from input_pipeline import datasets
from input_pipeline.builder.build import build
from input_pipeline.builder.record_counts import count_records, format_record_counts
from input_pipeline.builder.tokenizer import load_or_build_tokenizer, tokenizer_dir
from input_pipeline.builder.write_errors import explain_write_errors
from input_pipeline.splits import count_skipped, is_prepared, open_split, Split
from input_pipeline.token_table import load_token_table
from input_pipeline.tokenizer import measure_unk_fraction, Tokenizer
from mcsam_jax.files.untrusted import read_json

SUMMARY_FIELDS = ("studies", "images", "mean_words", "distinct_reports", "unk_fraction")
MANY_UNKNOWN = 0.1            # fraction of <unk> in a split above which a warning is logged


def prepare(config: ConfigDict, log: Callable[[str], None] = print) -> dict[str, dict]:
  """Builds the records and the tokenizer unless they exist, and logs a summary.

  Returns:
    For each split a dictionary with `studies`, `images`, `mean_words`, `distinct_reports` and `unk_fraction`.

  Raises:
    UserError: the source is invalid, records are corrupt, or the disk is full. Nothing that looks finished is left.
  """
  started = time.monotonic()
  builder = datasets.make_builder(config)
  if is_prepared(builder):
    log(f"Records are in {builder.data_dir}")
  else:
    with explain_write_errors(builder.data_dir):
      build(config, log)
  builder = datasets.make_builder(config)
  splits = {name: open_split(config, name) for name in builder.info.splits}     # checks the number of records
  tokenizer = load_or_build_tokenizer(config)
  counts = count_records(builder, {name: count_skipped(builder, name, config.data) for name in splits})
  summary = _load_or_make_summary(tokenizer_dir(config) / "summary.json", splits, tokenizer, counts)
  if counts:
    log(format_record_counts(builder, counts))
  log(_format_summary(summary))
  for name, row in summary.items():
    if row["unk_fraction"] > MANY_UNKNOWN:
      log(f"warning: {row['unk_fraction']:.0%} of the words of {name} become <unk>, because they occur less than "
          f"tokenizer.threshold={config.tokenizer.threshold} times in the training reports: lower it, or check the "
          "reports and data.cleaning")
  log(f"{tokenizer.kind} tokenizer with {tokenizer.vocab_size} ids: {tokenizer_dir(config)}")
  log(f"Done in {time.monotonic() - started:.0f} s.")
  return summary


def _load_or_make_summary(path: epath.Path, splits: dict[str, Split], tokenizer: Tokenizer,
                          counts: dict[str, dict]) -> dict[str, dict]:
  """Returns the summary of each split from the file `path`, or computes it by a pass over all records and writes it."""
  with contextlib.suppress(OSError, ValueError):
    saved = read_json(path)
    if _is_summary(saved, splits):
      return saved
  summary = {name: _summarize(split, tokenizer) | ({"study_counts": counts[name]} if counts else {})
             for name, split in splits.items()}
  with explain_write_errors(path):
    path.write_text(json.dumps(summary, indent=1) + "\n")
  return summary


def _is_summary(saved: Any, splits: dict[str, Split]) -> bool:
  """Returns whether a file holds the summary of these splits."""
  return isinstance(saved, dict) and set(saved) == set(splits) and all(
      isinstance(row, dict) and all(isinstance(row.get(name), (int, float)) for name in SUMMARY_FIELDS)
      for row in saved.values())


def _summarize(split: Split, tokenizer: Tokenizer) -> dict:
  cleaned = [tokenizer.clean(report) for report in split.reports]
  return {
      "studies": len(split),
      "images": int((load_token_table(split, tokenizer).views >= 0).sum()),
      "mean_words": sum(len(report.split()) for report in cleaned) / len(cleaned),
      "distinct_reports": len(set(cleaned)),
      "unk_fraction": measure_unk_fraction(tokenizer, cleaned),
  }


def _format_summary(summary: dict[str, dict]) -> str:
  lines = [f"{'split':8}{'studies':>10}{'images':>10}{'mean words':>12}{'distinct reports':>18}"]
  lines += [f"{split:8}{row['studies']:>10,}{row['images']:>10,}{row['mean_words']:>12.1f}"
            f"{row['distinct_reports']:>18,}" for split, row in summary.items()]
  return "\n".join(lines)
