"""`mcsam score`: all scores of any model's reports, given as files, without a checkpoint, JAX or TensorFlow."""

from collections.abc import Callable, Mapping
import json

from input_pipeline import text
from input_pipeline.tokenizer import WordTokenizer
from mcsam_jax.atomic_io import atomic_write
from mcsam_jax.errors import UserError
from mcsam_jax.evaluation.baselines import constant_baseline, constant_of_labels
from mcsam_jax.evaluation.report_files import match, NoSplit, note_of_copies, read_reports, Reports, stored_labels
from mcsam_jax.evaluation.score_table import format_table
from mcsam_jax.evaluation.scoring import other_studies, score_reports
from mcsam_jax.findings import FINDINGS
from mcsam_jax.labelers.rules import read_labels
from mcsam_jax.metrics.bootstrap import resample
from mcsam_jax.metrics.meteor import Meteor
from mcsam_jax.metrics.protocols import UNKNOWN
from mcsam_jax.metrics.radeval import add_radeval, score_names

R2GEN = {"iu_xray": (3, 60), "mimic_cxr": (10, 100)}     # R2Gen's threshold of words, and length of reports
LABELERS = ("rules", "none")
NUM_PERMUTATIONS = 10
MANY_UNKNOWN = 0.1            # share of the references' words, from which on the user is told


def score_files(predictions: str, references: str, *, train: str | None = None, split: str = "test",
                labeler: str = "rules", subjects: str | None = None, cleaning: str | None = None,
                threshold: int | None = None, max_length: int | None = None, prediction_field: str | None = None,
                reference_field: str | None = None, id_field: str | None = None, radeval: str = "", seed: int = 0,
                json_path: str | None = None, with_texts: bool = False, log=print) -> dict:
  """Scores a file of predictions against a file of references; returns what `scoring.score_reports` does.

  Args:
    predictions, references, train: files as `report_files` reads them. With the training reports come the protocol
      r2gen, the constant baseline (the best on val where `train` has that split, else on train), the share of copies
      and the scores on references that aren't in train.
    split: of an annotation.json that holds the references.
    labeler: rules | none.
    subjects: a file with the subject of each study, by id, or in the order of references without ids; None: as the
      references have them, else a study is a subject.
    cleaning: iu_xray | mimic_cxr, as R2Gen cleans them; None: iu_xray.
    threshold: words that stand less often in train are <unk> under r2gen; None: R2Gen's for `cleaning`.
    max_length: words of a report under r2gen, one more than are kept; None: R2Gen's for `cleaning`.
    radeval: names of further scores, with commas (see radeval.py).
    json_path: where the scores are written.
    with_texts: among them the commonest report and the constant ones. Not of a data set that must not be shared.

  Raises:
    UserError: a file or a value at fault.
  """
  cleaning, threshold, max_length = preparation(cleaning, threshold, max_length)
  radeval_names = score_names(radeval)
  truth = read_reports(references, "references", split, reference_field, id_field)
  written = read_reports(predictions, "predictions", split, prediction_field, id_field)
  log(f"predictions: field {written.text_field} of {written.path}; references: field {truth.text_field} of "
       f"{truth.path}")
  order = match(truth, written)
  hypotheses = [written.texts[row] for row in order]
  by_order = ""
  if truth.ids is None or written.ids is None:
    by_order = (f"{truth.path if truth.ids is None else written.path} has no ids: reports are compared in the order of "
                "both files; a field that holds ids can be named with --id-field")
    log(by_order)
  ids = truth.ids or written.ids or truth.places
  subject_of_each = _subjects(truth, subjects, split, id_field)

  train_reports = val = tokenizer = constant = None
  if train:
    train_reports, val = _train_and_val(train, reference_field, id_field)
    tokenizer = WordTokenizer.train(train_reports, cleaning, threshold, False)
  reader = make_reader(labeler)
  with Meteor() as meteor:
    meteor.start()
    if train:
      log(f"looking for the constant report that is best on {'val' if val else 'train'}, for each metric "
           "(a minute or more)")
      prepared = train_reports, val or train_reports, tokenizer, cleaning, max_length
      constant = constant_baseline(*prepared, meteor)
      if reader:
        constant |= constant_of_labels(*prepared, reader, FINDINGS)
    others = other_studies(len(ids), NUM_PERMUTATIONS, seed)
    scores, rows, _ = score_reports(
        ids=ids, references=truth.texts, hypotheses=hypotheses,
        shuffled_hypotheses=[[hypotheses[row] for row in other] for other in others], train_reports=train_reports,
        pooled=None, constant=constant, tokenizer=tokenizer, cleaning=cleaning, max_length=max_length,
        read_labels=reader, restricted=not with_texts, seed=seed, subjects=subject_of_each,
        meteor=meteor)
  if radeval_names:
    add_radeval(scores, rows, radeval_names, truth.texts, hypotheses, resample(subject_of_each or ids, seed), log)
  if not train:
    scores["notes"] |= {"r2gen": "left out: its references need the vocabulary of the training reports; give --train",
                        "constant": "left out, as are copies of training reports: give --train"}
  else:
    scores["baselines"]["constant"]["chosen_on"] = "val" if val else "train"
    if not val:
      scores["notes"]["constant"] = f"chosen on the training reports themselves: {train} has none of val"
      for entry in filter(None, scores["baselines"]["constant"]["chosen_for"].values()):
        entry["train_score"] = entry.pop("val_score")
  unknown = scores["references"]["unk_share"]
  if unknown and unknown > MANY_UNKNOWN:
    scores["notes"]["r2gen"] = (f"{unknown:.0%} of the references' words are {UNKNOWN}, as they stand less than "
                                f"{threshold} times in the {len(train_reports)} training reports: --threshold 1 keeps "
                                "all that stand there at all")
  if labeler == "rules" and stored_labels(written.rows[0]):
    scores["notes"]["labels"] = (f"read anew by the rules: those that `mcsam evaluate` stored in {written.path} may be "
                                 "of another labeler")
  scores["notes"] |= note_of_copies(truth, written, order)
  if by_order:
    scores["notes"]["order"] = by_order
  scores = {"predictions": str(predictions), "references_file": str(references),
            "fields": {"predictions": written.text_field, "references": truth.text_field},
            **({"train": str(train), "threshold": threshold} if train else {}), "labeler": labeler, **scores}
  log(format_table(scores))
  if json_path:
    atomic_write(json_path, json.dumps(scores, indent=2) + "\n")
    log(f"scores: {json_path}")
  return scores


def preparation(cleaning: str | None, threshold: int | None, max_length: int | None) -> tuple[str, int, int]:
  """Returns how reports are prepared: what was asked for, and R2Gen's values for what is None."""
  cleaning = cleaning or "iu_xray"
  if cleaning not in text.RULES:
    raise UserError(f"--cleaning {cleaning}: expected one of {', '.join(text.RULES)}")
  threshold, max_length = (usual if asked is None else asked
                           for asked, usual in zip((threshold, max_length), R2GEN[cleaning]))
  if threshold < 1:
    raise UserError(f"--threshold {threshold}: at least 1, which keeps every word of train")
  if max_length < 2:
    raise UserError(f"--max-length {max_length}: at least 2, a word and the end of the report")
  return cleaning, threshold, max_length


def make_reader(labeler: str) -> Callable[[str], Mapping[str, str]] | None:
  """Returns what reads {finding: label} from a report; None for none."""
  if labeler not in LABELERS:
    raise UserError(f"--labeler {labeler}: expected one of {', '.join(LABELERS)}")
  return read_labels if labeler == "rules" else None


def _train_and_val(path: str, reference_field, id_field) -> tuple[list[str], list[str] | None]:
  """Returns the training reports, and those of val, None where the file is no annotation.json that has them."""
  train = read_reports(path, "references", "train", reference_field, id_field)
  if not train.places[0].endswith(" of train"):
    return train.texts, None
  try:
    return train.texts, read_reports(path, "references", "val", reference_field, id_field).texts
  except NoSplit:
    return train.texts, None


def _subjects(references: Reports, path: str | None, split: str, id_field: str | None) -> list[str] | None:
  """Returns the subject of each study, None where nobody says."""
  if path is None:
    return references.subjects
  given = read_reports(path, "subjects", split, id_field=id_field)
  if references.ids and given.ids is None:
    raise UserError(f"{given.path} has no ids, which {references.path} has: add them, or name their field with "
                    "--id-field; by order alone, studies could get the subjects of others")
  return [given.texts[row] for row in match(references, given, "subject")]
