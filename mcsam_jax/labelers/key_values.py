"""Reads pairs such as "Pneumothorax: No", "Effusion - small" or "| Edema | Yes |", and headings of lists.

All functions take lower-case text without markup.
"""

import re
from typing import NamedTuple

from mcsam_jax.findings import FINDINGS
from mcsam_jax.labelers.term_scanner import compile_terms, find_cues, find_organs, find_terms

MAX_KEY_WORDS = 8
_EVIDENCE = (r"(?:seen|identified|visuali[sz]ed|evident|present|appreciated|demonstrated|noted|apparent|detected|"
             r"observed|found|shown|visible|confirmed)")
_ASSESSED = (r"(?:assess|evaluat|mention|report|applicab|specifi|availab|determin|document|address|imag|includ|"
             r"comment)\w*")
# (label, values of a key). "ignore" says nothing about the finding. A blank matches any number of blanks.
_VALUES = (
    ("ignore", (rf"(?:not|un|non|in|cannot|can not|can't|could not|unable to)[ \-]*(?:be )?(?:\w+ly )?{_ASSESSED}",
                r"unknown", r"n\s?/\s?a", r"nan|null|blank|unspecified")),
    ("uncertain", (r"(?:not|cannot be|can't be|could not be|cannot|can not be) (?:\w+ )?"
                   r"(?:excluded?|ruled out|rule out)",
                   r"possibl[ey]", r"probabl[ey]", r"uncertain", r"maybe|may be(?: present)?", r"perhaps", r"equivocal",
                   r"indeterminate", r"question(?:able|ed)?", r"suspected", r"unlikely", r"unclear", r"borderline",
                   r"-1(?:\.0*)?", r"\?+")),
    ("negative", (rf"no(?: (?:evidence|signs?|one|\w+ly {_EVIDENCE}|{_EVIDENCE}))?", rf"none(?: {_EVIDENCE})?",
                  rf"not (?:\w+ly )?{_EVIDENCE}", r"absent", r"neg(?:ative)?", r"nil", r"n", r"false", r"0(?:\.0*)?",
                  r"never", r"nope", r"normal", r"unremarkable", r"clear", r"within normal limits", r"wnl",
                  r"(?:excluded|ruled out|denied|free)")),
    ("positive", (r"yes", r"y", r"pos(?:itive)?", r"true", r"1(?:\.0*)?", rf"{_EVIDENCE}", r"\+")),
)
_VALUE = re.compile(r"[\s\"']*(?:" + "|".join(
    f"(?P<{label}>{'|'.join(words)})".replace(" ", r"\s+") for label, words in _VALUES)
    + r")(?=[\s\"']*(?:$|[.,;:()\[\]{}|/!]|[-\u2013\u2014]+\s))")
# What separates a key from its value: a colon always does, the others only before one of _VALUES.
_COLON_PAIR = re.compile(r"[\s\"'{(\[,]*(?P<key>[a-z][a-z0-9\s,/&()'\-]{0,80}?)[\s\"']*"
                         r"(?::|=+>?)[\s\"'\[]*(?P<value>.*)", re.DOTALL)
_OTHER_PAIR = re.compile(r"[\s\"']*(?P<key>[a-z][a-z0-9\s,/&()'\-]{1,80}?)(?:\s+[-\u2014]{1,3}>?\s+|"
                         r"\s*(?:->|\u2192|\||\?|\t|\u2014)\s*|\s{3,})(?P<value>.*)", re.DOTALL)
_BRACKET_PAIR = re.compile(r"[\s\"']*(?P<key>[a-z][a-z0-9\s,/&'\-]{1,80}?)\s*[(\[](?P<value>[^()\[\]]*)[)\]][\s.]*")
_WORD_PAIR = re.compile(r"\s*(?P<key>[a-z][a-z0-9\s/&'\-]{1,60}?)\s+"
                        r"(?P<value>(?:yes|no|none|absent|present|negative|positive)[\s.]*)")
_COMMA_PAIR = re.compile(r"[\s\"']*(?P<key>[a-z][a-z0-9\s/&'\-]{1,60}?)[\s\"']*,[\s\"']*(?P<value>[\w.\-]+)[\s\"']*")
_OTHER_PAIRS = ((_OTHER_PAIR, re.compile(r"[-\u2014\u2192|?\t]|\s{3}")), (_BRACKET_PAIR, re.compile(r"[)\]]")),
                (_COMMA_PAIR, re.compile(r",")),
                (_WORD_PAIR, re.compile(r"(?:yes|no|none|absent|present|negative|positive)[\s.]*$")))
_QUESTION = re.compile(r"\W*(?:size|enlarged|clear|in place|seen|present|visible)?\W*")
_FINDING_NAMES = {name.lower(): name for name in FINDINGS} | {
    "enlarged cardiomediastinal silhouette": "Enlarged Cardiomediastinum", "lung opacities": "Lung Opacity",
    "lung lesions": "Lung Lesion", "pleural effusions": "Pleural Effusion", "fractures": "Fracture",
    "support device": "Support Devices", "no findings": "No Finding", "other pleural abnormality": "Pleural Other"}

# Keys below the name of a finding, whose value is that of the finding.
_STATUS_KEY = re.compile(r"(?:present|presence|status|answer|result|finding|label|value|detected|seen|identified)")

# ---- Headings --------------------------------------------------------------------------------------------------------
_ANY = r"(?: (?:of|for|seen|present|identified|detected|found|noted|visible|evident|evidence|signs?|findings?|the|" \
       r"following|any|an?|features?|abnormalit(?:y|ies)|diagnos[ie]s))*"
_HEADING_LABELS = (
    # Sections about something other than this film.
    ("ignore", compile_terms(
        r"(?:(?:clinical|patient|medical|relevant|brief) )*(?:indications?|history|hx|information|details|question|"
        r"context|symptoms|reason(?: for .{1,40})?|technique|procedure|comparisons?|prior(?: \w+)?|recommendations?|"
        r"limitations?)(?: (?:and|/|&) (?:history|technique|comparisons?|indications?))?")),
    ("ignore", compile_terms(rf"(?:.* )?(?:not|cannot be|unable to) (?:be )?{_ASSESSED}(?: findings?)?", re.DOTALL)),
    ("uncertain", compile_terms(
        r"(?:possibl[ey]|probabl[ey]|uncertain|suspected|indeterminate|equivocal|questionable|differential|"
        r"consider(?:ations?)?|cannot (?:be )?(?:excluded?|ruled? out)|not excluded|unclear|may (?:be|represent))"
        + _ANY)),
    ("negative", compile_terms(
        r"(?:(?!.*positive).* )?(?:no|not|without|absent|absence|negatives?|none|denie[sd]|excluded|ruled out|free)"
        + _ANY, re.DOTALL)),
)


class Pair(NamedTuple):
  """A key and its value, as offsets in a text."""
  key: str
  key_start: int
  label: str | None            # that the value gives to the key; None: it has to be read as a sentence
  value_start: int             # where the rest of the value starts


def match_value(text: str) -> tuple[str, int] | None:
  """Returns the label that a value such as "no" or "not seen" gives to its key, and where it ends; None for others."""
  match = _VALUE.match(text)
  return (match.lastgroup or "", match.end()) if match else None


def split_pair(text: str) -> Pair | None:
  """Returns the key and the value of a statement; None if it isn't a pair."""
  if (":" in text or "=" in text) and (match := _COLON_PAIR.fullmatch(text)):
    if len(match["key"].split()) > MAX_KEY_WORDS:
      return None
    value = match_value(match["value"])
    return Pair(match["key"], match.start("key"), value and value[0], match.start("value") + (value[1] if value else 0))
  for pattern, separators in _OTHER_PAIRS:
    match = pattern.fullmatch(text) if separators.search(text) else None
    if match and len(match["key"].split()) <= MAX_KEY_WORDS and (value := match_value(match["value"])) and (
        ends_in_name(match["key"]) or get_finding(match["key"])):
      return Pair(match["key"], match.start("key"), value[0], match.start("value") + value[1])
  return None


def ends_in_name(key: str) -> bool:
  """Returns whether a text ends in the name of a finding or an organ, or in what is asked about it."""
  names = [*find_terms(key), *find_organs(key)]
  return bool(names) and bool(_QUESTION.fullmatch(key, max(name.end for name in names)))


def join_heading(heading: str, text: str) -> str:
  """Returns an item with its heading as the key: "effusion: small" for "small" or "status: small" below "effusion"."""
  pair = _COLON_PAIR.fullmatch(text)
  return f"{heading}: {pair['value'] if pair and _STATUS_KEY.fullmatch(pair['key']) else text}"


def get_finding(key: str) -> str | None:
  """Returns the finding of CheXpert that a key names word for word, such as "pleural other"; None for other keys."""
  return _FINDING_NAMES.get(" ".join(key.split()))


def find_heading_label(heading: str) -> str | None:
  """Returns the label that a heading such as "negative findings" gives to what is listed below it.

  "ignore": the section isn't about this film. None: the heading doesn't change labels.
  """
  heading = heading.strip(" \t\n:")
  if not heading or len(heading) > 80 or find_terms(heading) or get_finding(heading) == "No Finding":
    return None
  return next((label for label, pattern in _HEADING_LABELS if pattern.fullmatch(heading)), None)


def is_title(line: str) -> bool:
  """Returns whether a line is a name without a statement: "lungs and pleura", "pneumothorax", not "no pneumothorax"."""
  return 0 < len(line.split()) <= 6 and not find_cues(line) and not re.search(r"[.,;!?]", line)
