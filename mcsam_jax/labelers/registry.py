"""Makes the labeler that `eval.labeler` names.

  phantom   the grammar of the phantom reports; exact
  rules     terms, negation and uncertainty, sentence by sentence (rules.py); for any report, without a model
  chexbert  CheXbert on the accelerator (chexbert.py), with the authors' weights
  none      no labels, and no label scores
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.splits import Split
from input_pipeline.token_table import load_token_table
from input_pipeline.tokenizer import Tokenizer
from mcsam_jax.findings import FINDINGS, LABEL_VALUES
from mcsam_jax.labelers.labeler import Labeler


def make_labeler(config: ConfigDict, mesh: Mesh | None = None) -> Labeler | None:
  """Returns the labeler that `eval.labeler` names; None for `none`.

  Args:
    mesh: devices that CheXbert runs on; None: this host's devices, without the other hosts.

  Raises:
    UserError: `eval.chexbert` is not set, or its file is missing, damaged or of another kind.
  """
  name = config.eval.labeler
  if name == "none":
    return None
  if name == "phantom":
    from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
    from input_pipeline.datasets.phantom.reports import read_labels
    return Labeler.from_function(name, tuple(PHANTOM_FINDINGS), read_labels)
  if name == "rules":
    from mcsam_jax.labelers.rules import make_rules_labeler
    return make_rules_labeler()
  from mcsam_jax.labelers.chexbert import CheXbertClassifier, load_chexbert
  mesh = mesh or Mesh(np.array(jax.local_devices()), ("rows",))
  classifier = CheXbertClassifier(*load_chexbert(config.eval.chexbert), mesh, jnp.dtype(config.eval.chexbert_dtype))
  return Labeler(name, FINDINGS, classifier.classify)


def get_true_labels(labeler: Labeler | None, config: ConfigDict, split: Split) -> list[Mapping[str, str]] | None:
  """Returns the true labels of a split's records if the data set knows them, else None.

  Phantoms are drawn from known findings. With `data.target=impression` the reports mention only some of them, so the
  labels are read from the reports instead.
  """
  if labeler and labeler.name == "phantom" and config.data.target == "findings":
    return [record["labels"] for record in split.metadata]
  return None


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
