"""Normalizes reports for pattern matching: lower case, and ASCII apostrophes and hyphens."""

import string

# Each character is replaced by exactly one, which keeps character offsets. U+2019, U+02BC and U+2018 are typographic
# apostrophes; U+2010, U+2011 and U+2013 are hyphens and a dash used as a hyphen.
_REPLACEMENTS = str.maketrans(string.ascii_uppercase + "\u2019\u02bc\u2018\u2010\u2011\u2013",
                              string.ascii_lowercase + "'''---")


def normalize_text(report: str) -> str:
  """Returns `report` in lower case with ASCII apostrophes and hyphens; character offsets do not change."""
  return report.translate(_REPLACEMENTS)
