"""Which view and which part of the body a text names: a field of a DICOM header, or a file name.

Headers are filled in by people and machines in many ways: "LAT", "AP ERECT", "CHEST PA", "Thorax p.a.", "poumons
(face)". So their words are looked up, in the languages of the countries where most radiographs are taken.
"""

import re
import unicodedata

_PA = frozenset("pa posteroanterior dv dorsoventral 後前 后前".split())
_FRONTAL = _PA | frozenset(
    "ap frontal front anteroposterior vd ventrodorsal face frontale frontaal frontalna 正位 正面 前后 前後 "
    "прямая".split())
_LATERAL = frozenset(
    "lat lateral ll rl llat rlat lateralis laterale laterolateral seitlich seitenaufnahme profil profile perfil dwars "
    "zijdelings boczna boczne boczny yan sida 側位 侧位 側面 侧面 боковая".split())
# Words that make it another view, whatever else the text says: a patient who lies on a side, or is turned.
_OTHER = frozenset("decubitus decub lld rld oblique obl obliqua oblicua rao lao rpo lpo swimmers schrag 斜位".split())
_ONLY_IN_HEADERS = frozenset("dv vd face profile yan sida lld rld obl rao lao rpo lpo".split())  # in file names: people
# Languages without spaces: words that may be a part of another.
_WITHOUT_SPACES = frozenset("後前 后前 正位 正面 前后 前後 側位 侧位 側面 侧面 斜位".split())
# Beginnings of words for the chest and what is in it.
_CHEST = re.compile(
    r"\b(?:chest|chst|cxr|thora|torax|torac|toraks|lung|pulmo|heart|cardi|ribs?\b|ribcage|costa|stern|poitrine|poumon|"
    r"brust|lunge|rippen|borst|brost|bryst|keuhko|pluc|klatk|pecho|peito|pulmao|polmon|gogus|akciger|hrudn|mellkas|"
    r"груд|легки|ребр)|胸|肺|가슴|흉부|صدر")


def find_view(text: str, is_file_name: bool = False) -> tuple[str, bool]:
  """Returns the view that a text names, and whether it is known to be postero-anterior.

  Args:
    text: a header field, or a file name without its suffix.
    is_file_name: whether it is a file name, in which a short word may be anything.

  Returns:
    frontal, lateral, or other; "" if the text names none, or both frontal and lateral.
  """
  words = set(split_words(text)) - (_ONLY_IN_HEADERS if is_file_name else set())
  words |= {word for word in _WITHOUT_SPACES if word in text}
  if words & _OTHER:
    return "other", False
  frontal, lateral = bool(words & _FRONTAL), bool(words & _LATERAL)
  if frontal == lateral:
    return "", False
  return ("frontal", bool(words & _PA)) if frontal else ("lateral", False)


def remove_view(text: str) -> str:
  """Returns the words of a file name except those that name a view."""
  views = (_FRONTAL | _LATERAL) - _ONLY_IN_HEADERS
  return " ".join(word for word in split_words(text) if word not in views)


def split_words(text: str) -> list[str]:
  """Returns the words and numbers of a text in lower case, without accents and the points of abbreviations."""
  plain = _simplify(text)
  plain = re.sub(r"\b([a-z])[.\-/]([a-z])\b\.?", r"\1\2", plain)         # p.a., a-p, l/l
  plain = re.sub(r"\b(antero|postero|dorso|ventro|latero)[ \-]+", r"\1", plain)
  return re.findall(r"[^\W\d_]+|[0-9]+", plain)


def shows_chest(body_part: str) -> bool:
  """Returns whether a text, BodyPartExamined, names the chest, or nothing."""
  text = _simplify(body_part)
  return not re.search(r"[^\W\d_]", text) or _CHEST.search(text.replace("_", " ")) is not None


def _simplify(text: str) -> str:
  """Returns a text in lower case without accents."""
  if not text.isascii():
    try:                                            # UTF-8 where the standard allows ASCII only
      text = text.encode("latin-1").decode()
    except UnicodeError:
      pass
  decomposed = unicodedata.normalize("NFKD", text.lower().replace("ı", "i").replace("ł", "l").replace("ø", "o"))
  return "".join(letter for letter in decomposed if not unicodedata.combining(letter))
