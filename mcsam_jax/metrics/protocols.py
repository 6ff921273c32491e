"""Three ways to prepare references and hypotheses before they are compared, by name.

Scores of different papers differ by this more than by their models:

  r2gen  what the literature reports: references are cleaned, cut to the model's
         maximum length, and their rare words are `<unk>`, since R2Gen scores
         against the decoded ids of its own tokenizer. Kind to the model.
  clean  references are cleaned and nothing else.
  raw    references as they were written, lower-cased, in Penn Treebank tokens
         without punctuation. It needs Java.

Hypotheses, whichever tokenizer or model they come from, pass the same cleaning
and keep the `<unk>` that they were written with; rare words of theirs are not
replaced, as that would turn a wrong word into a match.
"""

from collections.abc import Sequence

from input_pipeline import text
from mcsam_jax.metrics.meteor import ptb_tokenize

PROTOCOLS = ("r2gen", "clean", "raw")
UNKNOWN = "<unk>"
DESCRIPTIONS = {
    "r2gen": "cleaned, cut to the maximum length, decoded from the tokenizer's ids (rare words are <unk>)",
    "clean": "cleaned",
    "raw": "as written, lower-cased, PTB tokens without punctuation",
}


def apply_protocol(name: str, references: Sequence[str], hypotheses: Sequence[str], tokenizer, cleaning: str,
                   max_length: int) -> tuple[list[str], list[str]]:
  """Returns references and hypotheses as `compute_nlg` takes them.

  Args:
    name: one of PROTOCOLS.
    references: reports as they were written.
    hypotheses: reports as they were generated.
    tokenizer: the model's, an `input_pipeline.tokenizer.Tokenizer`; only r2gen uses it.
    cleaning: one of `text.RULES`.
    max_length: tokens of a report, eos included; hypotheses are cut to as many words.

  Raises:
    JavaUnavailable: raw, and there is no Java.
  """
  if name == "r2gen":
    return ([prepare_r2gen_reference(report, tokenizer, cleaning, max_length) for report in references],
            [truncate(clean_hypothesis(report, cleaning), max_length) for report in hypotheses])
  if name == "clean":
    return ([collapse_whitespace(text.clean(report, cleaning)) for report in references],
            [clean_hypothesis(report, cleaning) for report in hypotheses])
  if name == "raw":
    tokens = ptb_tokenize([*references, *hypotheses])
    return tokens[:len(references)], tokens[len(references):]
  raise ValueError(f"protocol {name}: expected one of {', '.join(PROTOCOLS)}")


def prepare_r2gen_reference(report: str, tokenizer, cleaning: str, max_length: int) -> str:
  """Returns what is left of a report once the tokenizer has seen it: the best a model could write."""
  return tokenizer.decode(tokenizer.encode(text.clean(report, cleaning))[:max_length - 1])


def clean_hypothesis(report: str, cleaning: str) -> str:
  """Returns a generated report cleaned as references are; an empty one stays empty, `<unk>` itself."""
  if not report.strip():
    return ""
  guarded = text.clean(report.replace(UNKNOWN, "\0"), cleaning)       # a character that cleaning doesn't know
  return collapse_whitespace(guarded.replace("\0", UNKNOWN))


def truncate(report: str, max_length: int) -> str:
  """Returns the first `max_length - 1` words: what a model of words could have written before its eos.

  It also takes back the stop that cleaning adds to a report that ended in the middle of a sentence.
  """
  return " ".join(report.split()[:max_length - 1])


def collapse_whitespace(report: str) -> str:
  return " ".join(report.split())
