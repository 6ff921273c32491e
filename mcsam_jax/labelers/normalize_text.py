"""Reports as the patterns of `labeler` and `priors` are written: in lower case, with ASCII's apostrophe and hyphen."""

import string

# One character for one, so that places stay: U+2019, 02BC and 2018 are typographic apostrophes, U+2010, 2011 and 2013
# hyphens and a dash that stands for one.
_PLAIN = str.maketrans(string.ascii_uppercase + "\u2019\u02bc\u2018\u2010\u2011\u2013",
                       string.ascii_lowercase + "'''---")


def normalize_text(report: str) -> str:
  """Returns `report` in lower case; every character keeps its place."""
  return report.translate(_PLAIN)
