"""The findings of the training studies, which the findings head and `align_targets=label_similarity` learn from.

Shapes: n studies, F findings.
"""

from collections.abc import Callable

from ml_collections import ConfigDict
import numpy as np

from input_pipeline.splits import Split
from input_pipeline.token_table import load_token_table
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.labelers.registry import make_labeler


def load_finding_labels(config: ConfigDict, split: Split, tokenizer: Tokenizer,
                        log: Callable[[str], None]) -> np.ndarray:
  """Returns the labels of all studies of a split, int8 [n, F], index in LABEL_VALUES.

  With `train.labels=records` they are those of the prepared records. Otherwise a labeler reads them from the reports;
  findings that it doesn't know are absent.

  Raises:
    UserError: see `make_labeler`.
  """
  if config.train.labels == "records":
    return load_token_table(split, tokenizer, log).labels
  with_labeler = config.copy_and_resolve_references()
  with_labeler.eval.labeler = config.train.labels
  labeler = make_labeler(with_labeler)
  assert labeler is not None, "config rules allow no other value"
  log(f"reading the findings of {len(split)} reports with the labeler {labeler.name}")
  labels = labeler.label(split.read_reports(log))
  values = [[LABEL_VALUES.index(study.get(finding, "absent")) for finding in FINDINGS] for study in labels]
  return np.array(values, np.int8).reshape(len(split), len(FINDINGS))
