"""Three protocols for preparing references and hypotheses before they are compared.

Scores in different papers differ more by protocol than by model:

  r2gen  what the literature reports: references are cleaned and truncated to the model's maximum length, and their rare
         words are `<unk>`, because R2Gen scores against ids decoded by its own tokenizer. Favorable to the model.
  clean  references are only cleaned.
  raw    references as they were written, in lower case, as Penn Treebank tokens without punctuation. Needs Java.

Hypotheses of any model and tokenizer are cleaned in the same way and keep the `<unk>` that they contain. Their rare
words are not replaced, as that would turn a wrong word into a match.
"""

from collections.abc import Sequence

from input_pipeline import text
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.metrics.meteor import ptb_tokenize

PROTOCOLS = ("r2gen", "clean", "raw")
UNKNOWN = "<unk>"
DESCRIPTIONS = {
    "r2gen": "cleaned, truncated to the maximum length, decoded from the tokenizer's ids (rare words are <unk>)",
    "clean": "cleaned",
    "raw": "as written, in lower case, PTB tokens without punctuation",
}


def apply_protocol(name: str, references: Sequence[str], hypotheses: Sequence[str], tokenizer: Tokenizer | None,
                   cleaning: str, max_length: int) -> tuple[list[str], list[str]]:
  """Returns references and hypotheses in the form that `compute_nlg` takes.

  Args:
    name: one of PROTOCOLS.
    references: reports as they were written.
    hypotheses: reports as they were generated.
    tokenizer: the model's tokenizer; only r2gen uses it.
    cleaning: one of `text.RULES`.
    max_length: tokens per report, eos included; hypotheses are truncated to as many words.

  Raises:
    JavaUnavailable: the protocol is raw and Java is unavailable.
    ValueError: the name is unknown.
  """
  if name == "r2gen":
    assert tokenizer is not None
    return ([prepare_r2gen_reference(report, tokenizer, cleaning, max_length) for report in references],
            [truncate(clean_hypothesis(report, cleaning), max_length) for report in hypotheses])
  if name == "clean":
    return ([collapse_whitespace(text.clean(report, cleaning)) for report in references],
            [clean_hypothesis(report, cleaning) for report in hypotheses])
  if name == "raw":
    tokens = ptb_tokenize([*references, *hypotheses])
    return tokens[:len(references)], tokens[len(references):]
  raise ValueError(f"protocol {name}: expected one of {', '.join(PROTOCOLS)}")


def prepare_r2gen_reference(report: str, tokenizer: Tokenizer, cleaning: str, max_length: int) -> str:
  """Returns a report encoded and decoded by the tokenizer: the best that a model could generate."""
  return tokenizer.decode(tokenizer.encode(text.clean(report, cleaning))[:max_length - 1])


def clean_hypothesis(report: str, cleaning: str) -> str:
  """Returns a generated report cleaned like a reference; an empty one stays empty, and `<unk>` is kept."""
  if not report.strip():
    return ""
  # Cleaning leaves NUL alone; a NUL of the report itself is a blank.
  protected = text.clean(report.replace("\0", " ").replace(UNKNOWN, "\0"), cleaning)
  return collapse_whitespace(protected.replace("\0", UNKNOWN))


def truncate(report: str, max_length: int) -> str:
  """Returns the first `max_length - 1` words: as many as a word-level model can generate before eos.

  This also removes the full stop that cleaning appends to a report that ended within a sentence.
  """
  return " ".join(report.split()[:max_length - 1])


def collapse_whitespace(report: str) -> str:
  """Returns the words of a report separated by single spaces."""
  return " ".join(report.split())
