"""What batches need of the records of a split besides pixels, in a few arrays.

Reading a report, cleaning it and looking its words up takes Python as long as libjpeg takes for a fifth of an image,
and holds up every other thread meanwhile. It is done once, and kept beside the records.

  ids     int32, the tokens of all reports one after the other, without bos and eos, not cut
  ends    int64 [n], where each report's end
  views   int8 [n, V], index in VIEWS of each view, -1 where there is none; V as many as any record has
  labels  int8 [n, 14], index in LABEL_VALUES, in the order of FINDINGS
"""

from collections.abc import Callable
import contextlib
import hashlib
import io
import json

from etils import epath
import numpy as np

from input_pipeline.splits import Split
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.atomic_io import atomic_write, NPZ_ERRORS
from mcsam_jax.findings import LABEL_VALUES, VIEWS


class TokenTable:
  """The table of a split; `load_or_build` gives it."""

  def __init__(self, ids: np.ndarray, ends: np.ndarray, views: np.ndarray, labels: np.ndarray):
    self.ids, self.ends, self.views, self.labels = ids, ends, views, labels

  def tokens(self, indices: np.ndarray, tokenizer: Tokenizer, max_length: int) -> np.ndarray:
    """Returns int32 [B, max_length + 1]: of each record bos, at most max_length - 1 tokens, eos, padding."""
    padded = np.full((len(indices), max_length + 1), tokenizer.pad_id, np.int32)
    padded[:, 0] = tokenizer.bos_id
    for row, index in zip(padded, indices):
      start, end = self.ends[index - 1] if index else 0, self.ends[index]
      length = min(int(end - start), max_length - 1)
      row[1:length + 1] = self.ids[start:start + length]
      row[length + 1] = tokenizer.eos_id
    return padded


def load_or_build(split: Split, tokenizer: Tokenizer, log: Callable[[str], None] = lambda line: None) -> TokenTable:
  """Returns the table of a split for a tokenizer: from memory, from its file, or made by a pass over the records.

  `log` receives lines of progress of such a pass.

  Raises:
    UserError: a record is damaged.
  """
  known = split.tables.get(tokenizer)
  if known is None:
    known = split.tables[tokenizer] = _load(_path(split, tokenizer), len(split)) or _build(
        split, tokenizer, log)
  return known


def _path(split: Split, tokenizer: Tokenizer) -> epath.Path:
  """Returns a path whose name changes with all that the table depends on."""
  all_of_it = json.dumps([tokenizer.kind, tokenizer.cleaning, tokenizer.words(), *split.chosen_by])
  digest = hashlib.sha256(all_of_it.encode()).hexdigest()[:10]
  return epath.Path(split.directory) / f"table-{digest}-{split.name}.npz"


def _load(path: epath.Path, num_records: int) -> TokenTable | None:
  """Returns the table of a file, None where it is missing or of no use."""
  with contextlib.suppress(*NPZ_ERRORS):
    with path.open("rb") as file, np.load(file) as stored:
      table = TokenTable(*(stored[name] for name in ("ids", "ends", "views", "labels")))
    if len(table.ends) == len(table.views) == len(table.labels) == num_records:
      return table
  return None


def _build(split: Split, tokenizer: Tokenizer, log: Callable[[str], None]) -> TokenTable:
  reports, views, labels = [], [], []
  for block in split.blocks(log):
    for record in block:
      reports.append(np.array(tokenizer.encode(split.target(record)), np.int32))
      views.append([VIEWS.index(view) for view in record["views"]])
      labels.append([LABEL_VALUES.index(value) for value in record["labels"].values()])
  most = max(map(len, views))
  table = TokenTable(np.concatenate(reports), np.cumsum([len(report) for report in reports]),
                np.array([found + [-1] * (most - len(found)) for found in views], np.int8), np.array(labels, np.int8))
  stored = io.BytesIO()
  np.savez(stored, ids=table.ids, ends=table.ends, views=table.views, labels=table.labels)
  with contextlib.suppress(OSError):                # records that may not be written beside are read each time
    atomic_write(_path(split, tokenizer), stored.getvalue())
  return table
