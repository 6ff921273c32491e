"""Tokenizers of reports: the word vocabulary of R2Gen, or SentencePiece trained on the same reports.

Both implement `Tokenizer`, as does a class of the user's own, which `tokenizer.kind` names as `package.module:Class`. A
report is always cleaned first (`text.clean`), and runs of whitespace count as one space,
so decode(encode(report)) == " ".join(clean(report).split()) if the report has no unknown words. A tokenizer is stored
as a folder with `tokenizer.json` (its `kind` tells the class) and, for SentencePiece, `sentencepiece.model`.

Lengths: `max_length` counts the tokens after bos, eos included. A longer report loses its last words and always ends in
eos. R2Gen truncates the ids, including bos and eos, to its `max_seq_length`, so a long report has one word less there,
and no eos.
"""

import abc
import collections
from collections.abc import Iterable
import hashlib
import io
import json

from etils import epath
from ml_collections import ConfigDict
import numpy as np
import sentencepiece

from input_pipeline import text
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import printable, UserError
from mcsam_jax.extensions.by_name import call_by_name, is_import_name
from mcsam_jax.files.untrusted import read_json, read_regular_file

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_FILE = "tokenizer.json"
_MODEL_FILE = "sentencepiece.model"
_MAX_MODEL_BYTES = 2 ** 28
# The printable ASCII characters that cleaning keeps: they are in the vocabulary even if no training report has them.
_REQUIRED_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.-#$`|~"


class Tokenizer(abc.ABC):
  """Interface of all tokenizers.

  Attributes:
    kind: value of `tokenizer.kind`.
    cleaning: the cleaning rules, one of `text.RULES`.
    pad_id, bos_id, eos_id, unk_id: ids of the special tokens; the first three may be equal.
    vocab_size: number of ids, including special tokens.
  """
  kind: str
  cleaning: str
  pad_id: int = 0
  bos_id: int = 1
  eos_id: int = 2
  unk_id: int = 3
  vocab_size: int

  @classmethod
  def build(cls, reports: Iterable[str], config: ConfigDict) -> "Tokenizer":
    """Returns a tokenizer trained on raw reports; tokenizers of the user's own implement it."""
    raise NotImplementedError(f"{cls.__name__}.build")

  @classmethod
  def load(cls, description: dict, directory: epath.Path) -> "Tokenizer":
    """Returns a tokenizer from its tokenizer.json and its folder; tokenizers of the user's own implement it."""
    raise NotImplementedError(f"{cls.__name__}.load")

  @abc.abstractmethod
  def encode(self, report: str) -> list[int]:
    """Returns the ids of a raw or cleaned report, without bos and eos, not truncated."""

  @abc.abstractmethod
  def get_vocabulary(self) -> list[str]:
    """Returns the vocabulary: the string of each id, in the order of ids."""

  @abc.abstractmethod
  def save(self, directory: epath.Path) -> None:
    """Writes the files that `load_tokenizer` reads, tokenizer.json by `write_description`."""

  @abc.abstractmethod
  def _join(self, ids: list[int]) -> str:
    """Returns the text of ids that contain no special tokens."""

  def clean(self, report: str) -> str:
    """Returns a report cleaned by the rules of this tokenizer."""
    return text.clean(report, self.cleaning)

  def encode_for_training(self, report: str, max_length: int) -> np.ndarray:
    """Returns int32 [T + 1] with T = max_length: bos, up to T - 1 tokens of the report, eos, padding."""
    ids = [self.bos_id, *self.encode(report)[:max_length - 1], self.eos_id]
    padded = np.full(max_length + 1, self.pad_id, np.int32)
    padded[:len(ids)] = ids
    return padded

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text before the first eos, without a leading bos and padding.

    If bos, eos and pad share an id, it means bos at the first position and eos at all others.
    """
    text_ids = []
    for position, token in enumerate(map(int, ids)):
      if position == 0 and token == self.bos_id:
        continue
      if token == self.eos_id:
        break
      if token not in (self.pad_id, self.bos_id):
        text_ids.append(token)
    return self._join(text_ids)


class WordTokenizer(Tokenizer):
  """The tokenizer of R2Gen: the sorted words of the cleaned reports; rare words are <unk>."""
  kind = "word"

  def __init__(self, words: list[str], cleaning: str, shared_special_ids: bool):
    """Creates a tokenizer from its words.

    Args:
      words: sorted. With `shared_special_ids` they include <unk> at its sorted position, otherwise they do not.
      cleaning: one of `text.RULES`.
      shared_special_ids: whether bos and eos have the id of padding, as in R2Gen.
    """
    self.cleaning = cleaning
    self.shared_special_ids = shared_special_ids
    if shared_special_ids:
      self.bos_id = self.eos_id = self.pad_id
      self._words = [PAD, *words]
    else:
      self._words = [PAD, BOS, EOS, UNK, *words]
    self.vocab_size = len(self._words)
    self._ids = {word: token for token, word in enumerate(self._words)}
    self.unk_id = self._ids[UNK]

  @classmethod
  def train(cls, reports: Iterable[str], cleaning: str, threshold: int,
            shared_special_ids: bool) -> "WordTokenizer":
    """Returns a tokenizer of the words that occur at least `threshold` times in `reports`.

    No word can be confused with a special token, because cleaning deletes "<".

    Raises:
      UserError: no word occurs that often.
    """
    counts = collections.Counter()
    for report in reports:
      counts.update(text.clean(report, cleaning).split())
    words = [word for word, count in counts.items() if count >= threshold]
    if not any(map(_is_word, words)):
      highest = max((count for word, count in counts.items() if _is_word(word)), default=0)
      raise UserError(f"threshold {threshold}: no word occurs that often in the training reports, where the "
                      f"most frequent one occurs {highest:,} times: lower tokenizer.threshold (`mcsam score`: "
                      "--threshold)")
    return cls(sorted([*words, UNK] if shared_special_ids else words), cleaning, shared_special_ids)

  def encode(self, report: str) -> list[int]:
    return [self._ids.get(word, self.unk_id) for word in self.clean(report).split()]

  def get_vocabulary(self) -> list[str]:
    return list(self._words)

  def save(self, directory: epath.Path) -> None:
    words = self._words[1:] if self.shared_special_ids else self._words[4:]
    write_description(directory, {"kind": self.kind, "cleaning": self.cleaning,
                            "shared_special_ids": self.shared_special_ids, "words": words})

  def _join(self, ids: list[int]) -> str:
    return " ".join(self._words[token] for token in ids)


class SentencePieceTokenizer(Tokenizer):
  """Byte-pair encoding (Sennrich et al., ACL 2016), trained on the reports with SentencePiece.

  The unigram model of SentencePiece would need more tokens: with 1,000 pieces, 55 for an average report of IU X-Ray,
  because it splits even "is", where byte-pair encoding needs 41.
  """
  kind = "sentencepiece"

  def __init__(self, model: bytes, cleaning: str):
    """Creates a tokenizer from a serialized SentencePiece model and the cleaning rules, one of `text.RULES`.

    Raises:
      RuntimeError, ValueError: the model is damaged, or has other special tokens.
    """
    self.cleaning = cleaning
    self._model = model
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab_size = self._processor.vocab_size()
    pieces = self.get_vocabulary()                  # raises UnicodeDecodeError, a ValueError, if one is no text
    self._processor.decode([[token] for token in range(self.vocab_size)])                     # does so, too
    if pieces[:4] != [PAD, BOS, EOS, UNK] or len(set(pieces)) != len(pieces):
      raise ValueError(f"its pieces aren't {PAD}, {BOS}, {EOS}, {UNK} and others, each once")

  @classmethod
  def train(cls, reports: Iterable[str], cleaning: str, vocab_size: int) -> "SentencePieceTokenizer":
    """Returns a tokenizer of at most `vocab_size` pieces, fewer if the reports do not contain more.

    The result depends only on the reports and their order.

    Raises:
      UserError: SentencePiece can't be trained with this size.
    """
    model = io.BytesIO()
    try:
      sentencepiece.SentencePieceTrainer.train(
          sentence_iterator=(" ".join(text.clean(report, cleaning).split()) for report in reports),
          model_writer=model, model_type="bpe", vocab_size=vocab_size, hard_vocab_limit=False,
          pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece=PAD, bos_piece=BOS, eos_piece=EOS, unk_piece=UNK,
          unk_surface=UNK, normalization_rule_name="identity", required_chars=_REQUIRED_CHARACTERS,
          character_coverage=1.0,
          max_sentencepiece_length=32,     # characters; the default of 16 splits "cardiomediastinal"
          max_sentence_length=1 << 20,     # bytes; longer reports would be ignored
          minloglevel=2)
    except RuntimeError as error:
      raise UserError(f"tokenizer.vocab_size={vocab_size}: SentencePiece can't be trained on these reports "
                      f"({str(error).strip().splitlines()[-1]}); choose another size, or tokenizer.kind=word"
                      ) from error
    return cls(model.getvalue(), cleaning)

  def encode(self, report: str) -> list[int]:
    return self._processor.encode(" ".join(self.clean(report).split()))

  def get_vocabulary(self) -> list[str]:
    return [self._processor.id_to_piece(token) for token in range(self.vocab_size)]

  def save(self, directory: epath.Path) -> None:
    atomic_write(directory / _MODEL_FILE, self._model)
    write_description(directory, {"kind": self.kind, "cleaning": self.cleaning,
                            "model_sha256": hashlib.sha256(self._model).hexdigest()})

  def _join(self, ids: list[int]) -> str:
    return self._processor.decode(ids)


def build_tokenizer(config: ConfigDict, reports: Iterable[str]) -> Tokenizer:
  """Returns a tokenizer trained on `reports` with the settings `config.tokenizer` and `config.data.cleaning`.

  Raises:
    UserError: a setting is unknown or can't be used.
  """
  kind, cleaning = config.tokenizer.kind, config.data.cleaning
  if cleaning not in text.RULES:
    raise UserError(f"data.cleaning={cleaning}: expected one of {', '.join(text.RULES)}")
  if kind == "word":
    return WordTokenizer.train(reports, cleaning, config.tokenizer.threshold,
                               config.tokenizer.shared_special_ids)
  if is_import_name(kind):
    tokenizer = call_by_name("tokenizer.kind", kind, reports, config, returns=Tokenizer, method="build")
    tokenizer.kind, tokenizer.cleaning = kind, cleaning
    return tokenizer
  if kind != "sentencepiece":
    raise UserError(f"tokenizer.kind={kind}: expected word or sentencepiece, or package.module:Class for your own")
  if config.tokenizer.shared_special_ids:
    raise UserError("tokenizer.shared_special_ids=True needs tokenizer.kind=word")
  return SentencePieceTokenizer.train(reports, cleaning, config.tokenizer.vocab_size)


def load_tokenizer(directory: epath.Path) -> Tokenizer:
  """Returns a tokenizer from the folder that `Tokenizer.save` wrote.

  Raises:
    UserError: a file is missing or damaged; the message names it.
  """
  path = epath.Path(directory) / _FILE
  try:
    stored = _check_description(read_json(path))
    if stored["kind"] == "word":
      return WordTokenizer(stored["words"], stored["cleaning"], stored["shared_special_ids"])
    if is_import_name(stored["kind"]):
      tokenizer = call_by_name("tokenizer.kind", stored["kind"], stored, path.parent, returns=Tokenizer, method="load")
      tokenizer.kind, tokenizer.cleaning = stored["kind"], stored["cleaning"]
      return tokenizer
    path = path.parent / _MODEL_FILE
    model = read_regular_file(path, _MAX_MODEL_BYTES)
    if hashlib.sha256(model).hexdigest() != stored["model_sha256"]:
      raise ValueError(f"its SHA-256 differs from that in {_FILE}")
    return SentencePieceTokenizer(model, stored["cleaning"])
  except FileNotFoundError as error:
    raise UserError(f"{path} not found: restore it, or run `mcsam prepare` and train in a new workdir"
                    ) from error
  except (OSError, ValueError, RuntimeError) as error:        # SentencePiece raises RuntimeError
    raise UserError(f"{path} is damaged ({printable(str(error))}): restore it or delete its folder and run "
                    "`mcsam prepare`") from error


def measure_unk_fraction(tokenizer: Tokenizer, reports: Iterable[str]) -> float:
  """Returns the fraction of the tokens of raw or cleaned reports that are <unk>."""
  num_tokens = num_unknown = 0
  for report in reports:
    ids = tokenizer.encode(report)
    num_tokens += len(ids)
    num_unknown += ids.count(tokenizer.unk_id)
  return num_unknown / max(num_tokens, 1)


def _is_word(token: str) -> bool:
  """Returns whether a token is more than punctuation."""
  return any(map(str.isalnum, token))


def _check_description(stored: object) -> dict:
  """Returns the content of tokenizer.json if it describes a tokenizer.

  Raises:
    ValueError: a field is missing or has another type; the message names it.
  """
  kind = stored.get("kind") if isinstance(stored, dict) else None
  if not isinstance(stored, dict) or kind not in ("word", "sentencepiece") and not (
      isinstance(kind, str) and is_import_name(kind)):
    raise ValueError("kind isn't word, sentencepiece or package.module:Class")
  if stored.get("cleaning") not in tuple(text.RULES):
    raise ValueError(f"cleaning isn't one of {', '.join(text.RULES)}")
  if stored["kind"] == "sentencepiece" and not isinstance(stored.get("model_sha256"), str):
    raise ValueError("model_sha256 isn't a text")
  if stored["kind"] == "word":
    words = stored.get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) and [word] == word.split() for word in words):
      raise ValueError("words isn't a list of words")
    if len(set(words)) < len(words):
      raise ValueError("words has a word twice")
    if not isinstance(stored.get("shared_special_ids"), bool):
      raise ValueError("shared_special_ids isn't true or false")
    if stored["shared_special_ids"] != (UNK in words) or {PAD, BOS, EOS} & set(words):
      raise ValueError("words doesn't fit shared_special_ids")
  return stored


def write_description(directory: epath.Path, stored: dict) -> None:
  """Writes tokenizer.json; `stored` has the tokenizer's `kind` and `cleaning` and whatever else it is made of."""
  atomic_write(directory / _FILE, json.dumps(stored, indent=1) + "\n")
