"""What the methods of a loaded model return.

Shapes: T tokens of a report, eos included; W words, V views, G rows (and columns) of patches per view.
"""

import dataclasses

import numpy as np
import PIL.Image

from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.api.heat_map import draw_heat_map
from mcsam_jax.evaluation.report_text import capitalize_report
from mcsam_jax.explain.slots import SlotDescription


@dataclasses.dataclass(frozen=True)
class ScoredReport:
  """A report with the model's log-probability of it, and of each of its tokens.

  Attributes:
    text: the tokens as text: lower-case words, as scores compare them. `str(report)` has capitals.
    ids: int32 [T], eos included unless the maximum length cut the report off.
    tokens: T strings of the vocabulary.
    token_log_probs: float32 [T], of each token given the images and the tokens before it; None if they were not asked
      for.
    log_prob: their sum; None for a training report that the search retrieved.
  """
  text: str
  ids: np.ndarray
  tokens: list[str]
  token_log_probs: np.ndarray | None
  log_prob: float | None

  def __str__(self) -> str:
    return capitalize_report(self.text)


@dataclasses.dataclass(frozen=True)
class StudyReport:
  """The reports of one study.

  Attributes:
    nbest: the best reports, the best first.
    views: the views that the model saw, in its order: frontal, lateral or other.
    similarity: of each of these images to the training images, a cosine; [] if the model compares none.
    warnings: what a reader of the report should know, such as an image unlike the training images.
    search: beam | greedy | mbr.
    finding_probs: probability of each abnormal finding, where the search estimates it (`decode.utility.findings`).
  """
  nbest: list[ScoredReport]
  views: list[str]
  similarity: list[float]
  warnings: list[str]
  search: str
  finding_probs: dict[str, float] | None = None

  @property
  def text(self) -> str:
    """The best report: lower-case words, as scores compare them. `str(report)` has capitals."""
    return self.nbest[0].text

  @property
  def log_prob(self) -> float | None:
    """Log-probability of the best report; None if the search retrieved it from the training reports."""
    return self.nbest[0].log_prob

  @property
  def tokens(self) -> list[str]:
    """Tokens of the best report."""
    return self.nbest[0].tokens

  @property
  def token_log_probs(self) -> np.ndarray | None:
    """Log-probability of each token of the best report."""
    return self.nbest[0].token_log_probs

  def __str__(self) -> str:
    return str(self.nbest[0])


@dataclasses.dataclass(frozen=True)
class StudyExplanation:
  """What the model attended to when it wrote a report.

  Attributes:
    text: the report.
    words: W words; joined by spaces they are the report.
    log_probs: float32 [W], of each word given those before it.
    heat_maps: float32 [W, V, G, G], attention of each word to the patches of each view; the largest value of a word
      is 1.
    images: V images, uint8 [S, S], as the model saw them.
    views: V views.
    slots: (slot, weight, description) of the memory slots with the most weight, most first; [] without memory.
  """
  text: str
  words: list[str]
  log_probs: np.ndarray
  heat_maps: np.ndarray
  images: list[np.ndarray]
  views: list[str]
  slots: list[tuple[int, float, SlotDescription]]

  def heat_map(self, word: int | str | None = None, view: int = 0) -> np.ndarray:
    """Returns float32 [G, G] in 0..1: the attention to one view of a word, or on average of all words.

    Args:
      word: its index, or the word itself, of which all occurrences are averaged; None: all words.
      view: index of the view.

    Raises:
      IndexError, KeyError: there is no such view or word.
    """
    maps = self.heat_maps[:, view]
    if isinstance(word, str):
      chosen = [index for index, each in enumerate(self.words) if each == word]
      if not chosen:
        raise KeyError(f"{word!r} is not among the words of this report: {', '.join(sorted(set(self.words)))}")
      maps = maps[chosen]
    elif word is not None:
      maps = maps[[word]]
    if not len(maps):
      return np.zeros(self.heat_maps.shape[2:], np.float32)
    return maps.mean(0)

  def overlay(self, word: int | str | None = None, view: int = 0, size: int = 512) -> PIL.Image.Image:
    """Returns the image of a view with the heat map of a word over it, in color, `size` pixels wide and high.

    The square is what the model saw: the whole image, whatever the shape of the film.

    Args:
      word, view: as in `heat_map`.
      size: pixels.
    """
    return draw_heat_map(self.images[view], self.heat_map(word, view), size)


def make_scored_report(tokenizer: Tokenizer, text: str, ids: np.ndarray, token_log_probs: np.ndarray | None,
                       log_prob: float | None) -> ScoredReport:
  """Returns a report without the padding of its ids [T'] and log-probabilities."""
  is_eos = np.flatnonzero(ids == tokenizer.eos_id)
  length = int(is_eos[0]) + 1 if is_eos.size else len(ids)
  ids = np.asarray(ids[:length], np.int32)
  vocabulary = tokenizer.get_vocabulary()
  return ScoredReport(text, ids, [vocabulary[token] for token in ids],
                      None if token_log_probs is None else np.asarray(token_log_probs[:length], np.float32), log_prob)
