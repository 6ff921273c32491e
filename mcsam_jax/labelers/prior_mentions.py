"""Finds mentions of an earlier study, which a model that sees one study can't know: "unchanged", "interval increase".

The patterns come from reading the training reports of IU X-Ray, and cover the kinds of comparison that Ramesh et al.
(ML4H 2022) removed from the reports of MIMIC-CXR: a named earlier image, a change since then, and the absence of a
change.

Not counted are events that merely happened earlier ("prior sternotomy", "old fracture"), words of increase without a
comparison ("increased markings"), and images that are missing or wished for ("no prior for comparison", "follow up to
resolution").
"""

import re

from mcsam_jax.labelers.normalize_text import normalize_text

# A space matches any run of spaces and line breaks; "~" matches the same, hyphens, or nothing. Entries match whole
# words.
_FILM = (r"(?:stud(?:y|ies)|exam(?:s|inations?)?|radiographs?|films?|x~rays?|images?|imaging|ct|cxr|scans?|"
         r"comparisons?|reports?|xxxx|_+)")
_EARLIER = r"(?:prior|previous|earlier|preceding|recent|last|outside|old|comparison)"
_HOW = r"(?:slight(?:ly)?|mild(?:ly)?|significant(?:ly)?|marked(?:ly)?|minimal(?:ly)?|somewhat|further|also|now|again)"
_CHANGED = (r"(?:increased|decreased|improved|worsened|progressed|resolved|cleared|enlarged|developed|grown|changed|"
            r"regressed|diminished|disappeared|appeared)")
_SEEN = r"(?:seen|noted|demonstrated|identified|visuali[sz]ed|present|evident|described|reported|observed)"
_EXCEPTIONS = (                                  # hide words that would otherwise count
    # A missing or desired image.
    rf"no {_EARLIER}(?: \w+){{0,2}}(?: for)?(?: comparison)?", r"no comparisons?(?: \w+){0,2}",
    r"(?:without|absence of|lack of)(?: \w+)?(?: \w+)?(?: for)? comparisons?",
    rf"(?:absence|lack) of (?:any )?{_EARLIER} {_FILM}", rf"if (?:\w+ )?{_EARLIER} {_FILM}",
    rf"{_EARLIER} (?:\w+ )?{_FILM} (?:(?:would|may|might|could) be|(?:is|are) (?:not |un)available)",
    r"comparison (?:with|to) (?:\w+ ){0,4}(?:may|might|would|could)",
    rf"(?:recommend\w*|may|might|could|would|should)(?: \w+){{0,3}} (?:compar\w+|correlation)"
    rf"(?: (?:with|to))?(?: \w+)?(?: {_FILM})?",
    # A future change, or one that is not seen on an image.
    r"(?:document|ensure|to|until) (?:\w+ )?(?:resolution|clearing|stability)",
    r"(?:appropriate|short|regular) interval(?: \w+)?", r"stable (?:patient|condition)", r"has developed symptoms",
    # An event that merely happened earlier.
    r"residuals? (?:to|of|from)",
    rf"(?:from|of|to) {_EARLIER} (?:\w+ )?"
    r"(?:granulom|fractur|infect|surg|trauma|inflam|histoplas|tubercul|gunshot|cabg|injur)\w*",
)
_COMPARISONS = (
    # A named earlier image.
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
    rf"(?:has|have|had)(?: {_HOW})* {_CHANGED}", r"improved|worsened|resolved", r"improvement (?:in|of)",
    rf"(?:increased|decreased)(?: {_HOW})* (?:since|from|compared|in (?:size|extent|number))",
    r"(?:increas|decreas|improv|worsen|progress|resolv|enlarg|clear)ing",
    r"(?:in|de)crease in (?:the )?(?:size|extent|number|amount|volume)",
    r"(?:resolution|progression|worsening|clearing|development|removal) of",
)
_PATTERN = re.compile(r"(?<!\w)(?:(?P<exception>{})|{})(?!\w)".format(
    *("|".join(words).replace(" ", r"\s+").replace("~", r"[\s\-]*") for words in (_EXCEPTIONS, _COMPARISONS))))


def find_prior_mentions(report: str) -> list[tuple[int, int]]:
  """Returns the (start, end) character offsets of comparisons with an earlier study, in order and without overlaps."""
  return [match.span() for match in _PATTERN.finditer(normalize_text(report)) if not match["exception"]]
