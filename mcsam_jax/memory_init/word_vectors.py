"""Inputs of topic learning: word vectors, and each training report as a tf-idf distribution over words.

Only content words are used: function words, numbers, de-identification marks, and
words in too few or too many reports are excluded. The word vectors are read from a
file (embeddings of MedCLIP or BERT) or computed from co-occurrences in the reports.

Shapes: R reports, W content words, D vector width, U words of a report (padded).
"""

import collections
import dataclasses
import itertools
import re

from etils import epath
import numpy as np
from scipy import linalg, sparse

from mcsam_jax.errors import printable, UserError
from mcsam_jax.files.untrusted import open_npz

# Function words, and words by which a report refers to itself rather than to the chest.
FUNCTION_WORDS = frozenset("""
    a about above again all also although am an and any are as at be because been before being below between
    both but by can cannot could did do does doing down due during each either few for from further had has
    have having he her here his how however i if in into is it its itself just may might more most must my nor
    no not of off on once only onto or other our out over own per same she should since so some such than that
    the their them then there therefore these they this those through thus to too toward towards under until
    up upon very via was we were what when where whether which while who will with within without would yet
    you your
""".split())
_WORD = re.compile(r"[a-z][a-z'-]*[a-z]")
_DEIDENTIFIED = re.compile(r"x{2,}.*")          # IU X-Ray's "xxxx", also with a suffix; "_" doesn't match _WORD

MIN_REPORTS = 5             # words in fewer reports have too few co-occurrences
MAX_REPORT_FRACTION = 0.5   # words in a larger fraction of reports are boilerplate
MAX_WORDS = 40              # words kept per report, those with the highest tf-idf; 99 % of IU X-Ray reports have fewer
WINDOW = 10                 # context size: content words on each side
CONTEXT_POWER = 0.75        # smoothing of context counts (Levy, Goldberg & Dagan, TACL 2015)
SINGULAR_POWER = 0.5        # exponent of the singular values, the best choice in the same study


@dataclasses.dataclass(frozen=True)
class WordVectors:
  """W words and their unit vectors, float32 [W, D]."""
  words: tuple[str, ...]
  vectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class TfIdfReports:
  """Reports as distributions over words.

  Attributes:
    indices: words of each report, int32 [R, U]; 0 for padding.
    masses: tf-idf masses of these words, float32 [R, U], which sum to 1 per report; 0 for padding.
  """
  indices: np.ndarray
  masses: np.ndarray

  def sum_by_word(self, num_words: int) -> np.ndarray:
    """Returns the mass of each word summed over all reports, [W]."""
    return np.bincount(self.indices.ravel(), self.masses.ravel(), num_words)


def find_content_words(reports: list[str]) -> tuple[str, ...]:
  """Returns the content words of the reports, the most frequent first, ties in alphabetical order."""
  min_reports = min(MIN_REPORTS, max(2, len(reports) // 20))       # lower for small data sets
  counts = collections.Counter(word for report in reports for word in set(report.split()))
  kept = [word for word, count in counts.items()
          if min_reports <= count <= MAX_REPORT_FRACTION * len(reports) and word not in FUNCTION_WORDS
          and _WORD.fullmatch(word) and not _DEIDENTIFIED.fullmatch(word)]
  return tuple(sorted(kept, key=lambda word: (-counts[word], word)))


def count_words(reports: list[str], words: tuple[str, ...]) -> sparse.csr_array:
  """Returns the number of occurrences of each word in each report, [R, W]."""
  index = {word: i for i, word in enumerate(words)}
  ids = [[index[word] for word in report.split() if word in index] for report in reports]
  rows = np.repeat(np.arange(len(reports)), [len(row) for row in ids])
  columns = np.fromiter(itertools.chain.from_iterable(ids), np.int64)
  counts = sparse.coo_array((np.ones(len(rows)), (rows, columns)), (len(reports), len(words)))
  return counts.tocsr()                                 # sums duplicate entries


def compute_tf_idf(reports: list[str], words: tuple[str, ...]) -> TfIdfReports:
  """Returns the tf-idf distribution of each report; reports without any of `words` are skipped."""
  counts = count_words(reports, words)
  idf = np.log(len(reports) / np.maximum(counts.astype(bool).sum(0), 1))                    # [W]
  width = min(MAX_WORDS, int(np.diff(counts.indptr).max()))
  indices, masses = [], []
  for start, stop in zip(counts.indptr, counts.indptr[1:]):
    ids = counts.indices[start:stop]
    weights = counts.data[start:stop] * idf[ids]
    heaviest = np.lexsort((ids, -weights))[:width]
    if len(heaviest):
      padding = (0, width - len(heaviest))
      indices.append(np.pad(ids[heaviest], padding))
      masses.append(np.pad(weights[heaviest] / weights[heaviest].sum(), padding))
  return TfIdfReports(np.array(indices, np.int32), np.array(masses, np.float32))


def make_word_vectors(reports: list[str], path: epath.PathLike, width: int) -> WordVectors:
  """Returns the content words of the reports that have a vector, and their unit vectors.

  Args:
    reports: cleaned training reports.
    path: .npz file of word vectors (`memory_init.word_vectors`); "" to compute them from the reports.
    width: D.

  Raises:
    UserError: the file is missing or invalid, or its vectors have another width.
  """
  words = find_content_words(reports)
  vectors = _read_vectors(epath.Path(path), words, width) if path else _compute_ppmi_vectors(reports, words, width)
  lengths = np.linalg.norm(vectors, axis=1)
  known = np.flatnonzero(lengths > 1e-6)
  unit = vectors[known] / lengths[known, None]
  return WordVectors(tuple(words[i] for i in known), unit.astype(np.float32))


def _read_vectors(path: epath.Path, words: tuple[str, ...], width: int) -> np.ndarray:
  """Returns the vectors [W, width] of `words` from a file, with zeros for words that are not in it."""
  try:
    with open_npz(path) as file:
      known, vectors = file.read("words"), file.read("vectors")
  except FileNotFoundError as error:
    raise UserError(f"memory_init.word_vectors: {path} not found") from error
  except (OSError, ValueError) as error:
    raise UserError(f"memory_init.word_vectors: {path} is not an .npz file with `words` [W] and `vectors` "
                    f"[W, D]: {printable(str(error))}") from error
  if known.ndim != 1 or vectors.ndim != 2 or len(known) != len(vectors):
    raise UserError(f"memory_init.word_vectors: {path} has {known.size} words but vectors of shape "
                    f"{vectors.shape}; expected one row per word")
  if known.dtype.kind != "U" or vectors.dtype.kind not in "fiu" or not np.isfinite(vectors).all():
    raise UserError(f"memory_init.word_vectors: {path} has words that aren't texts, or vectors that aren't finite "
                    "numbers; write it again")
  if vectors.shape[1] != width:
    raise UserError(f"memory_init.word_vectors: the vectors in {path} have width {vectors.shape[1]}, but "
                    f"memory.slot_width is {width}; set --config.memory.slot_width={vectors.shape[1]}")
  vectors_by_word = dict(zip(known.tolist(), vectors.astype(np.float32)))
  return np.array([vectors_by_word.get(word, np.zeros(width)) for word in words]).reshape(-1, width)


def _compute_ppmi_vectors(reports: list[str], words: tuple[str, ...], width: int) -> np.ndarray:
  """Computes word vectors [W, width] by truncated SVD of positive pointwise mutual information (PPMI).

  Rows are content words, columns their contexts: content words within a distance of
  WINDOW, not counting the other words in between.
  """
  index = {word: i for i, word in enumerate(words)}
  pairs = collections.Counter()
  for report in reports:
    ids = [index[word] for word in report.split() if word in index]
    for offset in range(1, WINDOW + 1):
      pairs.update(zip(ids, ids[offset:]))
  rank = min(width, len(words))
  if not pairs:
    return np.zeros((len(words), width))
  (rows, columns), counts = np.array(list(pairs)).T, np.array(list(pairs.values()), np.float64)
  counts = sparse.coo_array((counts, (rows, columns)), (len(words),) * 2)
  counts = (counts + counts.T).tocoo()
  word_share = counts.sum(1) / counts.sum()
  context_share = counts.sum(0) ** CONTEXT_POWER / (counts.sum(0) ** CONTEXT_POWER).sum()
  rows, columns = counts.coords
  pmi = np.log(counts.data / counts.data.sum() / (word_share[rows] * context_share[columns]))
  ppmi = sparse.csr_array((np.maximum(pmi, 0), (rows, columns)), counts.shape)
  # Left singular vectors from an eigendecomposition of the dense Gram matrix. It is deterministic, whereas an iterative
  # sparse solver isn't if singular values are repeated.
  squares, left = linalg.eigh((ppmi @ ppmi.T).toarray(), subset_by_index=(len(words) - rank, len(words) - 1))
  vectors = left[:, ::-1] * np.maximum(squares[::-1], 0) ** (SINGULAR_POWER / 2)
  return np.pad(vectors, ((0, 0), (0, width - rank)))  # the rank is at most the number of words
