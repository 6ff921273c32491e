"""Splits a report into statements: sentences, items of lists, rows of tables, and pairs such as "Heart: normal".

People end their sentences with a full stop; language models also write lists, headings, Markdown and HTML, whose lines
mostly end without one. A line break in wrapped prose, as in MIMIC-CXR, ends nothing. A line begins a new statement

  after an empty line, <br> and the like, a heading or a row of a table,
  if it begins with a bullet, a number, a check box or a key ("Heart:"), or
  if it begins like a statement (a capital letter, "no", "there is"), and the line before it can't be continued: it
  doesn't end with a comma or a word such as "or", "the" or "left".
"""

import re
from typing import NamedTuple

from mcsam_jax.labelers import statement_terms
from mcsam_jax.labelers.key_values import (
  ends_in_name,
  find_heading_label,
  is_title,
  match_value,
  MAX_KEY_WORDS,
  split_pair,
)
from mcsam_jax.labelers.normalize_text import blank_markup, HARD_BREAK, normalize_text
from mcsam_jax.labelers.term_scanner import find_organs, find_terms

MAX_LENGTH = 2000          # characters; a longer sentence is cut, because the time of some patterns grows faster


class ReportStatement(NamedTuple):
  """A part of a report that is read by itself."""
  text: str                # in lower case, without markup; as long as the part of the report
  start: int               # offset in the report
  heading: str = ""        # the heading above it, in lower case
  label: str = ""          # that a check box gives to its findings; "": none
  is_heading: bool = False      # a bold line or a heading, which may be a finding without a statement below it


class _Line(NamedTuple):
  """A line, without what marks it as an item."""
  text: str
  start: int
  is_item: bool
  is_heading: bool         # marked as one, as "# Findings"
  label: str               # label that the check box gives
  follows_gap: bool        # an empty line or a hard break precedes it


_LINE = re.compile(rf"([^\n{HARD_BREAK}]*)([\n{HARD_BREAK}]|$)")
_RULE = re.compile(r"[\s|:+_]*(?:[-=*#~][\s|:+_]*){3,}")                          # "-----", "|---|---|"
_BOXES = {"[ ]": "negative", "[]": "negative", "[-]": "negative", "(-)": "negative", "\u2610": "negative",
          "\u2717": "negative", "\u2718": "negative", "\u274c": "negative", "[?]": "uncertain", "[x]": "", "[+]": "",
          "(+)": "", "\u2611": "", "\u2612": "", "\u2713": "", "\u2714": "", "\u2705": ""}
_BOX = re.compile("|".join(map(re.escape, _BOXES)), re.IGNORECASE)
_MARKER = re.compile(
    r"\s*(?:(?P<heading>#{1,6})(?=\s|\w)|[-+*\u2013\u2014o](?=\s)|[-*\u2013\u2014](?=(?-i:[A-Z]))|"
    r"[>|\u2022\u2023\u2043\u25e6\u25cf\u25cb\u25aa\u25ab\u25a0\u25a1\u25b6\u25ba\u00b7\u2192\u00bb]+|"
    rf"(?P<box>{_BOX.pattern})|\(?\d{{1,2}}[.)](?=\s|(?-i:[A-Z]))|\(?(?:[a-h]|i{{1,3}}|iv|v)\)(?=\s)|"
    r"(?:q(?:uestion)?|a(?:nswer)?)\s?\d{0,2}:(?=\s))", re.IGNORECASE)
_PROSE_END = r"(?<!\b[Vv]s)(?<!\b[Dd]r)[.!](?=\s|$)|(?<=[a-zA-Z)])\.(?=[A-Z])|;"
_SENTENCE_END = re.compile(
    _PROSE_END + r"|\s{40,}|-{4,}|[\u2022\u25aa\u25cf\u25e6\u2023]|"
    r"(?<=\s)\(?\d{1,2}\)(?=\s)|(?P<cell>\|)|[(\[](?P<answer>[^()\[\]]{1,30})[)\]],|"
    r"(?P<comma>,|\t|\s{3,})(?=\s*[\"']?[A-Za-z][A-Za-z /\-]{1,40}[\"']?\s*[:=])|"
    r"(?P<dash>\s[-\u2013\u2014])(?=\s+[A-Z])")
NARROWEST_PROSE = 60       # columns; a line break before them wasn't made by wrapping
# Most texts are prose without any of these, which needs the first alternatives of _SENTENCE_END alone.
_LAYOUT = re.compile(r"[|:=\t\u2022\u25aa\u25cf\u25e6\u2023]|[)\]],|\s{3}|-{4}|\s[-\u2013\u2014]\s|\d\)")
_FAST_SENTENCE_END = re.compile(_PROSE_END)


def split_statements(report: str) -> list[ReportStatement]:
  """Returns the statements of a report in the order of the text."""
  lines = _read_lines(blank_markup(report))
  statements: list[ReportStatement] = []
  width = max((len(line.text.rstrip()) for line in lines), default=0)
  heading, index, has_content = "", 0, False
  while index < len(lines):
    line = lines[index]
    if has_content and not line.is_item and (line.follows_gap or lines[index - 1].is_item):
      heading = ""
    if _is_heading(lines, index):
      text = normalize_text(line.text)
      heading, has_content = text.strip(" \t:"), False
      if line.is_heading and not text.rstrip().endswith(":"):
        statements.append(ReportStatement(text, line.start, is_heading=True))
      index += 1
      continue
    end = index + 1
    while end < len(lines) and not _begins_statement(lines, end, width):
      end += 1
    heading = _split_sentences(lines[index:end], heading, statements)
    index, has_content = end, True
  return statements


def _read_lines(text: str) -> list[_Line]:
  """Returns the lines of a text that hold more than markup."""
  lines, follows_gap = [], True
  for match in _LINE.finditer(text):
    content, start, end = match[1], match.start(), match.end(1)
    if not content.strip() or _RULE.fullmatch(content):
      follows_gap = True
      continue
    is_item = is_heading = False
    label = ""
    for _ in range(4):
      marker = _MARKER.match(text, start, end)
      if not marker:
        break
      is_item, is_heading, start = True, is_heading or bool(marker["heading"]), marker.end()
      if marker["box"]:
        label = _BOXES[marker["box"].lower()]
    if text[start:end].strip():
      lines.append(_Line(text[start:end], start, is_item and not is_heading, is_heading, label, follows_gap))
    follows_gap = match[2] == HARD_BREAK
  return lines


def _is_heading(lines: list[_Line], index: int) -> bool:
  """Returns whether a line only names what the lines below it are about."""
  line, text = lines[index], normalize_text(lines[index].text).strip()
  if index + 1 == len(lines):
    return False
  next_line = lines[index + 1]
  if text.endswith(":"):
    return len(text.split()) <= MAX_KEY_WORDS and not (find_terms(text) and next_line.text.rstrip().endswith(":"))
  is_capital, next_text = line.text.lstrip()[:1].isupper(), next_line.text.lstrip()
  if statement_terms.TITLE_LINE.fullmatch(text):
    return is_capital and (next_line.is_item or next_line.follows_gap or not next_text[:1].islower())
  if not is_title(text):
    return False
  value = match_value(normalize_text(next_line.text))
  if value and not find_terms(normalize_text(next_line.text)) and ends_in_name(text) and (
      line.follows_gap or is_capital == next_text[:1].isupper()):
    return True                                        # "Pneumothorax", and "None" in the next line
  return line.is_heading and not next_line.is_heading


def _begins_statement(lines: list[_Line], index: int, width: int) -> bool:
  """Returns whether a line begins a new statement, instead of continuing the one before it.

  Args:
    width: the length of the longest line. If the line before is shorter than wrapping to this width would have made it,
      it was ended on purpose.
  """
  before, line = lines[index - 1], lines[index]
  if before.text.rstrip().endswith("?") and match_value(normalize_text(line.text)):
    return False                                       # the answer to a question
  if line.follows_gap or line.is_item or line.is_heading or before.is_heading or _is_heading(lines, index):
    return True
  text = line.text.lstrip()
  if split_pair(normalize_text(before.text)) and (
      statement_terms.KEY_LINE.match(text) or split_pair(normalize_text(text))):
    return True
  if statement_terms.CONTINUES.search(before.text):                   # "Fracture: no" is complete, "there is no" is not
    return not text[:1].islower() and any(
        pair and pair.label for pair in (split_pair(normalize_text(before.text)), split_pair(normalize_text(text))))
  if statement_terms.KEY_LINE.match(text) or statement_terms.CAPITAL.match(text):
    return True
  states = lambda text: bool(find_terms(text) or find_organs(text))
  length = len(before.text.rstrip()) + 1 + len(text.split()[0])
  if not states(re.split(r"[.;:]\s", normalize_text(before.text))[-1]):
    return False
  return (length <= NARROWEST_PROSE and bool(statement_terms.BEGINS.match(text))
          or length <= width and len(before.text.split()) > 1 and not statement_terms.CONTINUATION.match(text)
          and states(normalize_text(text)))


def _split_sentences(lines: list[_Line], heading: str, statements: list[ReportStatement]) -> str:
  """Appends the sentences of lines that belong together; returns the heading of what follows."""
  first, parts = lines[0], [lines[0].text]
  for before, line in zip(lines, lines[1:]):
    parts += ["\n" + " " * (line.start - before.start - len(before.text) - 1), line.text]
  text = "".join(parts)
  normalized = normalize_text(text)
  start, has_list_key = 0, False
  for end, next_start in [*_find_sentence_ends(text, normalized, first.is_item), (len(text), len(text))]:
    while section := statement_terms.SECTION.match(normalized, start, end):
      heading, start = " ".join(section[1].split()), section.end()
    for part_start in range(start, end, MAX_LENGTH):
      part = normalized[part_start:min(end, part_start + MAX_LENGTH)]
      if part.strip():
        statements.append(ReportStatement(part, first.start + part_start, heading, first.label))
    pair = split_pair(normalized[start:end]) if ":" in normalized[start:end] else None
    if pair and normalized[end:next_start] == ";" and find_heading_label(pair.key) in ("negative", "uncertain"):
      heading, has_list_key = pair.key, True           # "absent: effusion; edema"
    elif has_list_key and normalized[end:next_start] != ";":
      heading, has_list_key = "", False
    if find_heading_label(heading) == "ignore":
      if pair and not find_terms(pair.key) and find_heading_label(pair.key) is None:
        heading = pair.key                             # another section
        statements[-1] = statements[-1]._replace(heading=heading)
    start = next_start
  return heading


def _find_sentence_ends(text: str, normalized: str, is_item: bool) -> list[tuple[int, int]]:
  """Returns (end of a sentence, start of the next one) for each end of a sentence inside a text."""
  if not _LAYOUT.search(text):
    return [match.span() for match in _FAST_SENTENCE_END.finditer(text)]
  ends, start = [], 0
  for match in _SENTENCE_END.finditer(text):
    if match["comma"] and not re.search(r"[:=]", text[start:match.start()]):
      continue                                         # "Pneumothorax: no, effusion: yes", but not prose with a colon
    value = match_value(normalized[match.end():match.end() + 60])
    if match["answer"]:                                # "effusion (no), edema (yes)"
      if match_value(match["answer"].lower()):
        ends.append((match.end() - 1, match.end()))
        start = match.end()
      continue
    if match["dash"] and (not is_item or value):
      continue                                         # "- No edema - No effusion", but not "Edema - No"
    if match["cell"] and value and not re.search(r"[:=|]", text[start:match.start()]):
      continue                                         # the cell beside the name of a finding
    ends.append(match.span())
    start = match.end()
  return ends
