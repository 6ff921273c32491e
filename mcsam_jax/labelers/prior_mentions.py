"""Claims about an earlier study, which a model that sees one study can't know: "unchanged", "interval increase".

A report comes in, raw or cleaned; out come the character spans of the words that
compare. They come from reading the training reports of IU X-Ray, along the kinds
of comparison that Ramesh et al. (ML4H 2022) removed from MIMIC-CXR's reports:
an earlier film that is named, a change since it, and a lack of change.

What merely happened earlier is no comparison ("prior sternotomy", "old
fracture"), nor is a word of growth without a before ("increased markings"), nor
a missing or wished-for film ("no prior for comparison", "follow up to resolution").
"""

import re

from mcsam_jax.labelers.normalize_text import normalize_text

# A blank stands for any run of blanks and line breaks, "~" for the same, hyphens too, or nothing; entries match whole
# words.
_FILM = (r"(?:stud(?:y|ies)|exam(?:s|inations?)?|radiographs?|films?|x~rays?|images?|imaging|ct|cxr|scans?|"
         r"comparisons?|reports?|xxxx|_+)")
_EARLIER = r"(?:prior|previous|earlier|preceding|recent|last|outside|old|comparison)"
_HOW = r"(?:slight(?:ly)?|mild(?:ly)?|significant(?:ly)?|marked(?:ly)?|minimal(?:ly)?|somewhat|further|also|now|again)"
_TURN = (r"(?:increased|decreased|improved|worsened|progressed|resolved|cleared|enlarged|developed|grown|changed|"
         r"regressed|diminished|disappeared|appeared)")
_SEEN = r"(?:seen|noted|demonstrated|identified|visuali[sz]ed|present|evident|described|reported|observed)"
_NOT_MEANT = (                                   # hide what would compare
    # A film that is missing or wished for.
    rf"no {_EARLIER}(?: \w+){{0,2}}(?: for)?(?: comparison)?", r"no comparisons?(?: \w+){0,2}",
    r"(?:without|absence of|lack of)(?: \w+)?(?: \w+)?(?: for)? comparisons?",
    rf"(?:absence|lack) of (?:any )?{_EARLIER} {_FILM}", rf"if (?:\w+ )?{_EARLIER} {_FILM}",
    rf"{_EARLIER} (?:\w+ )?{_FILM} (?:(?:would|may|might|could) be|(?:is|are) (?:not |un)available)",
    r"comparison (?:with|to) (?:\w+ ){0,4}(?:may|might|would|could)",
    rf"(?:recommend\w*|may|might|could|would|should)(?: \w+){{0,3}} (?:compar\w+|correlation)"
    rf"(?: (?:with|to))?(?: \w+)?(?: {_FILM})?",
    # What is still to come, or isn't seen on a film.
    r"(?:document|ensure|to|until) (?:\w+ )?(?:resolution|clearing|stability)",
    r"(?:appropriate|short|regular) interval(?: \w+)?", r"stable (?:patient|condition)", r"has developed symptoms",
    # What merely happened earlier.
    r"residuals? (?:to|of|from)",
    rf"(?:from|of|to) {_EARLIER} (?:\w+ )?"
    r"(?:granulom|fractur|infect|surg|trauma|inflam|histoplas|tubercul|gunshot|cabg|injur)\w*",
)
_CLAIMS = (
    # A film that is named.
    rf"(?:compar(?:ed|ing)|in comparison|relative|similar)(?: \w+)? (?:to|with) (?:\w+ ){{0,2}}{_EARLIER}(?: {_FILM})?",
    r"(?:as )?compared (?:to|with)(?! (?:the )?(?:left|right|contralateral|opposite|other))",
    r"in comparison (?:to|with)",
    rf"(?:since|from|than|on|to|and) (?:the |an? |patient'?s )?(?:most )?{_EARLIER}(?: \w+){{0,2}}? {_FILM}",
    rf"(?:since|from|than) (?:the )?{_EARLIER}", r"on (?:the )?prior(?=\s*[.,;]|$)",
    r"since (?:the|_+|xxxx|yesterday)", rf"{_EARLIER} {_FILM}", rf"previously(?: {_SEEN})?", r"similar (?:in|to)",
    # No change.
    r"(?:no|without|little)(?: \w+){0,3} change", r"no progression", r"not(?: \w+){0,2} changed", r"stably",
    r"(?:has|have) not (?:\w+ )?changed",
    r"(?:(?:grossly|essentially|relatively|overall) )?(?:unchanged|unaltered|stable)",
    rf"(?:(?:are|is) )?again(?: (?:is|are|shows?|{_SEEN}))?", r"re~demonstrat\w+", r"persist(?:s|ent|ently|ence|ing)?",
    r"remains?(?: \w+)?", r"continu(?:ed|es|ing)", r"residual", r"longstanding",
    # A change.
    rf"(?:{_HOW} )*interval(?: \w+)?", r"in the interim", r"new|newly", r"no longer",
    r"(?:has|have|had) been (?:removed|placed|extubated|withdrawn|advanced|replaced)",
    rf"(?:has|have|had)(?: {_HOW})* {_TURN}", r"improved|worsened|resolved", r"improvement (?:in|of)",
    rf"(?:increased|decreased)(?: {_HOW})* (?:since|from|compared|in (?:size|extent|number))",
    r"(?:increas|decreas|improv|worsen|progress|resolv|enlarg|clear)ing",
    r"(?:in|de)crease in (?:the )?(?:size|extent|number|amount|volume)",
    r"(?:resolution|progression|worsening|clearing|development|removal) of",
)
_PATTERN = re.compile(r"(?<!\w)(?:(?P<other>{})|{})(?!\w)".format(
    *("|".join(words).replace(" ", r"\s+").replace("~", r"[\s\-]*") for words in (_NOT_MEANT, _CLAIMS))))


def find_prior_mentions(report: str) -> list[tuple[int, int]]:
  """Returns the spans of `report` that compare with an earlier study, in their order; none overlap."""
  return [match.span() for match in _PATTERN.finditer(normalize_text(report)) if not match["other"]]
