"""Normalizes reports for pattern matching: lower case, ASCII apostrophes, hyphens and spaces, no markup.

Every function returns a text of the same length, so that character offsets do not change.
"""

import re
import string

# U+2019, U+02BC and U+2018 are typographic apostrophes; U+2010, U+2011, U+2013 and U+2212 are hyphens, a dash used as a
# hyphen, and the minus sign.
_REPLACEMENTS = str.maketrans(string.ascii_uppercase + "\u2019\u02bc\u2018\u2010\u2011\u2013\u2212",
                              string.ascii_lowercase + "'''----")
# A statement ends at HARD_BREAK; at a line break only if the lines around it look like items of a list.
HARD_BREAK = "\f"
_SPACES = "\u00a0\u1680\u180e\u200b\u202f\u205f\u2060\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200b)))
_CHARACTERS = str.maketrans({
    **dict.fromkeys(_SPACES, " "), "\r": "\n", "\v": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": HARD_BREAK,
    "\x1c": "\n", "\x1d": "\n", "\x1e": "\n",
    "\uff1a": ":", "\uff1b": ";", "\uff0c": ",", "\u3002": ".", "\uff0e": ".", "\uff08": "(", "\uff09": ")",
    "\uff1f": "?", "\uff5c": "|", "\uff1d": "="})
_ESCAPES = {r"\n": " \n", r"\r": "  ", r"\t": "  ", "\r\n": " \n"}
_TAGS = re.compile(
    r"<(?P<close>/?)(?:(?P<heading>h[1-6])|(?P<item>li|dd)|(?P<cell>td|th)|"
    r"(?P<block>br|hr|p|div|section|ul|ol|dl|dt|table|thead|tbody|tr|html|body)|"
    r"b|i|u|s|em|strong|span|font|small|big|mark|code|pre|sup|sub|a)(?:\s[^<>]{0,200})?/?>"
    r"|(?P<leader>\.{4,})|&(?:nbsp|ensp|emsp|thinsp|#160|#xa0);|\\[nr]|\\t(?![a-z])|\r\n", re.IGNORECASE)
_BOLD_LINE = re.compile(r"(?m)^([ \t>]*)(\*\*|__)(?=[^\s*_])([^\n*]{1,200}?)\2(:?[ \t]*)$")
_EMPHASIS = re.compile(r"(?<![*\w])(\*{1,3}|_{1,3}|`{1,3}|~~)(?=[^\s*_`~])([^\n*`]{1,400}?)(?<=[^\s*_`~])\1(?![*\w])")


def normalize_text(report: str) -> str:
  """Returns `report` in lower case with ASCII apostrophes and hyphens."""
  return report.translate(_REPLACEMENTS)


def blank_markup(report: str) -> str:
  """Returns `report` with Markdown and HTML replaced by what they mean in plain text, and line ends by line breaks.

  A list item begins with "- ", a heading or a bold line with "# "; cells of a table are separated by "|".
  """
  text = _TAGS.sub(_replace_tag, report).translate(_CHARACTERS)
  if "**" in text or "__" in text:
    text = _BOLD_LINE.sub(lambda match: f"{match[1]}# {match[3]}  {match[4]}", text)
  if "*" in text or "_" in text or "`" in text or "~" in text:
    text = _EMPHASIS.sub(lambda match: " " * len(match[1]) + match[2] + " " * len(match[1]), text)
  return text


def _replace_tag(match: re.Match) -> str:
  """Returns plain text of the same length for an HTML tag, an entity, a line of dots or a line end."""
  found, closes = match[0], match["close"]
  plain = _ESCAPES.get(found.lower(), "")
  if match["heading"] or match["item"]:
    plain = HARD_BREAK if closes else HARD_BREAK + ("# " if match["heading"] else "- ")
  elif match["block"]:
    plain = HARD_BREAK
  elif match["leader"]:                                # "Edema ........ No"
    plain = ":"
  elif match["cell"] and closes:
    plain = " |"
  return plain.ljust(len(found))
