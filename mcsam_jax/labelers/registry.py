"""Which reader of findings a config asks for: `eval.labeler`.

  phantom   the grammar of the phantoms' reports, exact
  rules     terms, negation and uncertainty, sentence by sentence (labeler.py); for any report, without a model
  chexbert  CheXbert on the accelerator (chexbert.py), with the authors' weights
  none      no labels, and no scores of them
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.splits import Split
from mcsam_jax.findings import FINDINGS

ReadMany = Callable[[Sequence[str]], Sequence[Mapping[str, str]]]


@dataclasses.dataclass(frozen=True)
class Labeler:
  """Reads findings from reports.

  Attributes:
    name: of its kind.
    findings: those that it reads, and that count in scores.
  """
  name: str
  findings: tuple[str, ...]
  read_distinct: ReadMany

  def read(self, reports: Sequence[str]) -> list[Mapping[str, str]]:
    """Returns {finding: one of LABEL_VALUES} for each report; equal ones are read once, all others together."""
    distinct = list(dict.fromkeys(reports))
    labels = dict(zip(distinct, self.read_distinct(distinct) if distinct else []))
    return [labels[report] for report in reports]

  def __call__(self, report: str) -> Mapping[str, str]:
    """Returns the labels of one report."""
    return self.read([report])[0]


def get_true_labels(labeler: Labeler | None, config: ConfigDict, split: Split) -> list[Mapping[str, str]] | None:
  """Returns the labels of a split's records where they are known better than from its reports, else None.

  Those of phantoms are what was drawn; an impression tells less of it.
  """
  if labeler and labeler.name == "phantom" and config.data.target == "findings":
    return [record["labels"] for record in split.metadata]
  return None


def make_labeler(config: ConfigDict, mesh: Mesh | None = None) -> Labeler | None:
  """Returns the labeler that `eval.labeler` names; None for none.

  Args:
    mesh: over whose devices CheXbert is spread; None: over those of this host, which then reads alone.

  Raises:
    UserError: eval.chexbert is missing, or damaged.
  """
  kind = config.eval.labeler
  if kind == "none":
    return None
  if kind == "phantom":
    from input_pipeline.datasets.phantom.patient import PHANTOM_FINDINGS
    from input_pipeline.datasets.phantom.reports import read_labels
    return Labeler(kind, tuple(PHANTOM_FINDINGS), lambda reports: list(map(read_labels, reports)))
  if kind == "rules":
    from mcsam_jax.labelers.rules import read_labels
    return Labeler(kind, FINDINGS, lambda reports: list(map(read_labels, reports)))
  from mcsam_jax.labelers.chexbert import CheXbertReader, load_chexbert
  variables, pieces, sizes = load_chexbert(config.eval.chexbert)
  mesh = mesh or Mesh(np.array(jax.local_devices()), ("rows",))
  return Labeler(kind, FINDINGS, CheXbertReader(variables, pieces, sizes, mesh,
                                                jnp.dtype(config.eval.chexbert_dtype)).read)
