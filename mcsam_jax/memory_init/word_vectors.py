"""Word vectors and word masses of the training reports: what the topics are learned from.

A report comes in as a cleaned string and leaves as a distribution over the content
words, weighted by tf-idf. Content words are found by rule, not by list: function
words, numbers, marks of de-identification and words that too few or too many reports
hold are left out. The vectors are those of a file (MedCLIP's or BERT's embeddings) or
are made here from the co-occurrences of the reports themselves.

Shapes: R reports, W content words, D vector width, U words of one report (padded).
"""

import collections
import dataclasses
import io
import itertools
import re

from etils import epath
import numpy as np
from scipy import linalg, sparse

from mcsam_jax.atomic_io import NPZ_ERRORS
from mcsam_jax.errors import UserError

# Words of grammar, and those by which a report speaks of itself rather than of the chest.
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
_DEIDENTIFIED = re.compile(r"x{2,}.*")          # IU X-Ray's "xxxx", also with an ending; "_" is no word

MIN_REPORTS = 5             # a word of fewer reports has no co-occurrences to speak of
MAX_SHARE = 0.5             # a word of more than half of the reports is boilerplate: it tells few apart
MAX_WORDS = 40              # of one report, the heaviest; 99 in 100 reports of IU X-Ray have fewer
WINDOW = 10                 # content words to each side that count as context
CONTEXT_POWER = 0.75        # smoothing of context counts (Levy, Goldberg & Dagan, TACL 2015)
SINGULAR_POWER = 0.5        # exponent of the singular values, the better choice in the same study


@dataclasses.dataclass(frozen=True)
class WordVectors:
  """W words and their vectors [W, D], float32, each of length one."""
  words: tuple[str, ...]
  vectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class WordMasses:
  """Each report as a distribution: `indices` of its words [R, U] and their `masses` [R, U], which sum to 1.

  Padding is index 0 with mass 0.
  """
  indices: np.ndarray
  masses: np.ndarray

  def total(self, num_words: int) -> np.ndarray:
    """Returns the mass of each word over all reports, [W]."""
    return np.bincount(self.indices.ravel(), self.masses.ravel(), num_words)


def find_content_words(reports: list[str]) -> tuple[str, ...]:
  """Returns the words that topics are made of, the most frequent first, ties in alphabetical order."""
  fewest = min(MIN_REPORTS, max(2, len(reports) // 20))            # less is asked of a handful of reports
  counts = collections.Counter(word for report in reports for word in set(report.split()))
  kept = [word for word, count in counts.items()
          if fewest <= count <= MAX_SHARE * len(reports) and word not in FUNCTION_WORDS
          and _WORD.fullmatch(word) and not _DEIDENTIFIED.fullmatch(word)]
  return tuple(sorted(kept, key=lambda word: (-counts[word], word)))


def count_words(reports: list[str], words: tuple[str, ...]) -> sparse.csr_array:
  """Returns how often each word stands in each report, [R, W]."""
  index = {word: i for i, word in enumerate(words)}
  ids = [[index[word] for word in report.split() if word in index] for report in reports]
  rows = np.repeat(np.arange(len(reports)), [len(row) for row in ids])
  columns = np.fromiter(itertools.chain.from_iterable(ids), np.int64)
  counts = sparse.coo_array((np.ones(len(rows)), (rows, columns)), (len(reports), len(words)))
  return counts.tocsr()                                 # the entries of one place are summed


def compute_tf_idf(reports: list[str], words: tuple[str, ...]) -> WordMasses:
  """Returns the tf-idf distribution of each report over its words; reports without any are left out."""
  counts = count_words(reports, words)
  rarity = np.log(len(reports) / np.maximum((counts > 0).sum(0), 1))                    # [W], idf
  width = min(MAX_WORDS, int(np.diff(counts.indptr).max()))
  indices, masses = [], []
  for start, stop in zip(counts.indptr, counts.indptr[1:]):
    ids = counts.indices[start:stop]
    weights = counts.data[start:stop] * rarity[ids]
    heaviest = np.lexsort((ids, -weights))[:width]
    if len(heaviest):
      padding = (0, width - len(heaviest))
      indices.append(np.pad(ids[heaviest], padding))
      masses.append(np.pad(weights[heaviest] / weights[heaviest].sum(), padding))
  return WordMasses(np.array(indices, np.int32), np.array(masses, np.float32))


def make_word_vectors(reports: list[str], path: str, width: int) -> WordVectors:
  """Returns the content words with their unit vectors, of the file at `path`, or made from the reports.

  Content words without a vector are left out.

  Raises:
    UserError: no such file, one that holds no vectors, or vectors of another width.
  """
  words = find_content_words(reports)
  vectors = _read_vectors(epath.Path(path), words, width) if path else _ppmi_vectors(reports, words, width)
  lengths = np.linalg.norm(vectors, axis=1)
  known = np.flatnonzero(lengths > 1e-6)
  unit = vectors[known] / lengths[known, None]
  return WordVectors(tuple(words[i] for i in known), unit.astype(np.float32))


def _read_vectors(path: epath.Path, words: tuple[str, ...], width: int) -> np.ndarray:
  """Returns the vectors [W, width] of `words`, zeros for those that the file doesn't know."""
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      known, vectors = file["words"].tolist(), file["vectors"].astype(np.float32)
  except FileNotFoundError as error:
    raise UserError(f"memory_init.word_vectors: {path} not found") from error
  except NPZ_ERRORS as error:
    raise UserError(f"memory_init.word_vectors: {path} is no .npz of `words` [W] and `vectors` [W, D]: "
                    f"{error}") from error
  if vectors.ndim != 2 or len(known) != len(vectors):
    raise UserError(f"memory_init.word_vectors: {path} holds {len(known)} words but vectors of shape "
                    f"{vectors.shape}; expected a row a word")
  if vectors.shape[1] != width:
    raise UserError(f"memory_init.word_vectors: the vectors of {path} are {vectors.shape[1]} wide, "
                    f"memory.slot_width is {width}; set --config.memory.slot_width={vectors.shape[1]}")
  vector_of = dict(zip(known, vectors))
  return np.array([vector_of.get(word, np.zeros(width)) for word in words]).reshape(-1, width)


def _ppmi_vectors(reports: list[str], words: tuple[str, ...], width: int) -> np.ndarray:
  """Returns vectors [W, width] from the truncated SVD of positive pointwise mutual information.

  Rows are the content words, columns their contexts: content words at most
  WINDOW places away, the words between them that carry no content skipped.
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
  # The left half of the SVD by way of the square: dense and direct, so that equal reports give equal vectors,
  # which the iterations of a sparse solver do not promise where singular values repeat.
  squares, left = linalg.eigh((ppmi @ ppmi.T).toarray(), subset_by_index=(len(words) - rank, len(words) - 1))
  vectors = left[:, ::-1] * np.maximum(squares[::-1], 0) ** (SINGULAR_POWER / 2)
  return np.pad(vectors, ((0, 0), (0, width - rank)))  # a small vocabulary has no more directions than words
