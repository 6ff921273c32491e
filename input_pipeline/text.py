r"""R2Gen's cleaning of reports, which every published score of this field is computed on.

A raw report comes in; out comes lower-case text without punctuation, in which
each sentence ends in " .". Words are what `str.split` finds in it. Two sets of
rules exist, `iu_xray` and `mimic_cxr` (Chen et al., EMNLP 2020); MIMIC-CXR's
also joins lines and runs of "_", blanks and dots.

The rules are kept with their quirks, as vocabulary and scores hang on them: an
item number is dropped wherever it ends in ". " ("of T1. No" -> "of tno"), "1.5"
becomes "15", sentences end at ". " but not at a line break, and the class that
lists punctuation holds `:-\[`, a range, so that "<", "=", ">" and "@" go and
"-" stays.

Cleaning is idempotent up to runs of whitespace: clean(clean(x)).split() equals
clean(x).split(). So a generated report, which is clean already, may be cleaned
once more, with one exception: `<unk>` loses its brackets.
"""

import re

# Replacements in their order, repeated as often as R2Gen repeats them: what is left of a longer run stays.
_ITEM_NUMBERS = (("1. ", ""),
                 *((f". {n}. ", ". ") for n in range(2, 6)),
                 *((f" {n}. ", ". ") for n in range(2, 6)))
_REPLACEMENTS = {
    "iu_xray": (*[("..", ".")] * 3, *_ITEM_NUMBERS),
    "mimic_cxr": (("\n", " "), *[("__", "_")] * 7, *[("  ", " ")] * 6, *[("..", ".")] * 8, *_ITEM_NUMBERS),
}
RULES = tuple(_REPLACEMENTS)
_QUOTES_AND_SLASHES = str.maketrans("", "", "\"'/\\")     # go before the ends are stripped, the rest after it
_PUNCTUATION = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")


def clean(report: str, rules: str) -> str:
  """Returns `report` cleaned by `rules`, one of RULES; an empty report gives " ."."""
  for old, new in _REPLACEMENTS[rules]:
    report = report.replace(old, new)
  return " . ".join(map(_clean_sentence, report.strip().lower().split(". "))) + " ."


def _clean_sentence(sentence: str) -> str:
  return _PUNCTUATION.sub("", sentence.translate(_QUOTES_AND_SLASHES).strip())
