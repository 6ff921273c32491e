r"""The report cleaning of R2Gen, on which the published scores of this field are computed.

Cleaning turns a raw report into lower-case text without punctuation in which each sentence ends in " .". Its words are
the result of `str.split`. There are two sets of rules, `iu_xray` and `mimic_cxr` (Chen et al., EMNLP 2020); those of
MIMIC-CXR also join lines and collapse runs of "_", spaces and dots.

The rules keep their quirks, because the vocabulary and the scores depend on them: an item number is deleted wherever
it ends in ". " ("of T1. No" -> "of tno"), "1.5" becomes "15", sentences end at ". " but not at a line break, and the
regular expression for punctuation contains the range `:-\[`, so "<", "=", ">" and "@" are deleted and "-" is kept.

Cleaning is idempotent up to runs of whitespace: clean(clean(x)).split() equals clean(x).split(). A generated report,
which is already clean, can therefore be cleaned again, with one exception: `<unk>` loses its brackets.
"""

import re

# Applied in this order and repeated as often as in R2Gen, so the rest of a longer run stays.
_ITEM_NUMBERS = (("1. ", ""),
                 *((f". {n}. ", ". ") for n in range(2, 6)),
                 *((f" {n}. ", ". ") for n in range(2, 6)))
_REPLACEMENTS = {
    "iu_xray": (*[("..", ".")] * 3, *_ITEM_NUMBERS),
    "mimic_cxr": (("\n", " "), *[("__", "_")] * 7, *[("  ", " ")] * 6, *[("..", ".")] * 8, *_ITEM_NUMBERS),
}
RULES = tuple(_REPLACEMENTS)
_QUOTES_AND_SLASHES = str.maketrans("", "", "\"'/\\")     # deleted before a sentence is stripped, other marks after
_PUNCTUATION = re.compile(r"[.,?;*!%^&_+():-\[\]{}]")


def clean(report: str, rules: str) -> str:
  """Returns a report cleaned by `rules`, one of RULES; an empty report becomes " ."."""
  for old, new in _REPLACEMENTS[rules]:
    report = report.replace(old, new)
  return " . ".join(map(_clean_sentence, report.strip().lower().split(". "))) + " ."


def _clean_sentence(sentence: str) -> str:
  return _PUNCTUATION.sub("", sentence.translate(_QUOTES_AND_SLASHES).strip())
