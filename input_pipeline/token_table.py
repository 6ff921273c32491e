"""Everything that batches need from the records of a split except images, in a few arrays.

Reading, cleaning and tokenizing a report in Python takes as long as libjpeg takes for a fifth of an image, and holds
the interpreter lock meanwhile. It is done once per split and tokenizer, and the result is stored beside the records:

  ids     int32, the tokens of all reports one after another, without bos and eos, not truncated
  ends    int64 [n], the end of each report in `ids`
  views   int8 [n, V], index in VIEWS of each view, -1 for absent ones; V is the largest number of views of a record
  labels  int8 [n, 14], index in LABEL_VALUES, in the order of FINDINGS

Shapes: n records, V views.
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
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.files.untrusted import open_npz
from mcsam_jax.findings import FINDINGS, LABEL_VALUES, VIEWS


class TokenTable:
  """Tokens, views and labels of all records of a split. Use `load_token_table` to get one."""

  def __init__(self, ids: np.ndarray, ends: np.ndarray, views: np.ndarray, labels: np.ndarray):
    """Takes the arrays that the module describes."""
    self.ids, self.ends, self.views, self.labels = ids, ends, views, labels

  def make_tokens(self, indices: np.ndarray, tokenizer: Tokenizer, max_length: int) -> np.ndarray:
    """Returns int32 [B, max_length + 1]: for each record bos, up to max_length - 1 tokens, eos, padding."""
    indices = np.asarray(indices)
    starts, ends = np.where(indices > 0, self.ends[indices - 1], 0), self.ends[indices]
    lengths = np.minimum(ends - starts, max_length - 1)[:, None]
    columns = np.arange(max_length)
    padded = np.full((len(indices), max_length + 1), tokenizer.pad_id, np.int32)
    padded[:, 0] = tokenizer.bos_id
    is_report, is_end = columns < lengths, columns == lengths
    padded[:, 1:][is_report] = self.ids[(starts[:, None] + columns)[is_report]]
    padded[:, 1:][is_end] = tokenizer.eos_id
    return padded


def load_token_table(split: Split, tokenizer: Tokenizer, log: Callable[[str], None] = lambda line: None) -> TokenTable:
  """Returns the table of a split for a tokenizer: from memory, from its file, or built by reading all records.

  Args:
    log: receives lines of progress while the records are read.

  Raises:
    UserError: a record is corrupt.
  """
  table = split.token_tables.get(tokenizer)
  if table is None:
    table = _load(_path(split, tokenizer), len(split), tokenizer.vocab_size) or _build(split, tokenizer, log)
    split.token_tables[tokenizer] = table
  return table


def _path(split: Split, tokenizer: Tokenizer) -> epath.Path:
  """Returns the path of the table, which changes with everything that the table depends on."""
  dependencies = json.dumps([tokenizer.kind, tokenizer.cleaning, tokenizer.get_vocabulary(), *split.selection])
  digest = hashlib.sha256(dependencies.encode()).hexdigest()[:10]
  return epath.Path(split.directory) / f"table-{digest}-{split.name}.npz"


def _load(path: epath.Path, num_records: int, vocab_size: int) -> TokenTable | None:
  """Returns the table in a file, or None if it is missing, damaged or belongs to other records."""
  try:
    with open_npz(path) as stored:
      ids, ends, views, labels = (stored.read(name) for name in ("ids", "ends", "views", "labels"))
  except (OSError, ValueError):
    return None
  is_valid = (
      all(array.dtype.kind == "i" for array in (ids, ends, views, labels))
      and ids.ndim == ends.ndim == 1 and views.ndim == 2 and len(ends) == len(views) == num_records
      and labels.shape == (num_records, len(FINDINGS)) and np.diff(ends, prepend=0).min() >= 0 and ends[-1] == len(ids)
      and _is_within(ids, 0, vocab_size) and _is_within(views, -1, len(VIEWS))
      and _is_within(labels, 0, len(LABEL_VALUES)))
  return TokenTable(ids, ends, views, labels) if is_valid else None


def _is_within(array: np.ndarray, start: int, end: int) -> bool:
  """Returns whether all integers of an array are in range(start, end)."""
  return start <= array.min(initial=start) and array.max(initial=start) < end


def _build(split: Split, tokenizer: Tokenizer, log: Callable[[str], None]) -> TokenTable:
  """Builds the table of a split by reading all records, and writes its file."""
  reports, views, labels = [], [], []
  for block in split.read_blocks(log):
    for record in block:
      reports.append(np.array(tokenizer.encode(split.get_target(record)), np.int32))
      views.append([VIEWS.index(view) for view in record["views"]])
      labels.append([LABEL_VALUES.index(value) for value in record["labels"].values()])
  most_views = max(map(len, views))
  padded_views = [record_views + [-1] * (most_views - len(record_views)) for record_views in views]
  table = TokenTable(np.concatenate(reports), np.cumsum([len(report) for report in reports]),
                     np.array(padded_views, np.int8), np.array(labels, np.int8))
  stored = io.BytesIO()
  np.savez(stored, ids=table.ids, ends=table.ends, views=table.views, labels=table.labels)
  with contextlib.suppress(OSError):                # a read-only folder: the table is built again in every run
    atomic_write(_path(split, tokenizer), stored.getvalue())
  return table
