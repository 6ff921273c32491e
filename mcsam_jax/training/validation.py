"""A look at val while a model trains: how likely its reports are, and how good those are that are written.

The loss takes the whole split, the scores the reports of `train.eval_studies` studies. For TensorBoard a look holds the
labels finding by finding and, where the data set isn't restricted, the same few studies each time: images, reference
and what is written now.
"""

from collections.abc import Iterator, Mapping, Sequence
import io
from typing import NamedTuple

from clu import metric_writers
import jax
from ml_collections import ConfigDict
import numpy as np
import PIL.Image

from input_pipeline.pipeline import eval_batches, Split
from mcsam_jax.distributed.mesh import decode_batch_size, local_rows, replicated, shard_batches
from mcsam_jax.distributed.preemption import PreemptionGuard, VOTE_LAG
from mcsam_jax.distributed.watchdog import Watchdog
from mcsam_jax.errors import UserError
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.labelers.registry import drawn_labels, make_labeler
from mcsam_jax.metrics.clinical_f1 import label_scores
from mcsam_jax.metrics.nlg import nlg_scores
from mcsam_jax.metrics.protocols import apply_protocol
from mcsam_jax.training.train_step import make_eval_step

METRICS = ("BLEU_1", "BLEU_4", "ROUGE_L", "CIDEr")     # METEOR takes a Java that a pod's host may lack
NUM_SAMPLES = 4                                        # studies that TensorBoard shows


def check_best_metric(config: ConfigDict) -> None:
  """Raises UserError where the best checkpoint is to be known by findings that nothing reads."""
  if config.train.best_metric.endswith("_F1") and config.eval.labeler == "none":
    raise UserError(f"train.best_metric={config.train.best_metric} counts findings, which eval.labeler=none doesn't "
                    "read: set another labeler, or train.best_metric=CIDEr")


class EvalResult(NamedTuple):
  """What one look at val found."""
  scores: dict[str, float]          # token_loss, METRICS, distinct_reports; micro_F1, macro_F1, CIDEr_macro_F1 with labels
  texts: dict[str, str]             # Markdown, by TensorBoard's tag
  images: dict[str, np.ndarray]     # uint8 [V, H, W, 1], by TensorBoard's tag

  def write(self, writer: metric_writers.MetricWriter, step: int) -> None:
    writer.write_scalars(step, {f"val/{name}": value for name, value in self.scores.items()})
    if self.texts:
      writer.write_texts(step, {f"val/{name}": text for name, text in self.texts.items()})
    if self.images:
      writer.write_images(step, {f"val/{name}": images for name, images in self.images.items()})


class Validation:
  """Looks at val, compiled once. All hosts call it."""

  def __init__(self, model, config: ConfigDict, tokenizer, mesh: jax.sharding.Mesh, split: Split,
               features: np.ndarray | None, train_reports: Sequence[str], stop: PreemptionGuard, watchdog: Watchdog):
    self.config, self.tokenizer, self.mesh, self.split, self.features = config, tokenizer, mesh, split, features
    self.stop, self.watchdog = stop, watchdog
    self.eval_step = jax.jit(make_eval_step(model, config, tokenizer.eos_id), out_shardings=replicated(mesh))
    self.write = ReportGenerator([model], config, tokenizer, mesh, config.train.eval_search, train_reports)
    self.labeler = make_labeler(config, mesh)

  def __call__(self, variables: dict) -> EvalResult:
    """Returns what is found with these variables.

    Raises:
      Preempted: a host was asked to stop meanwhile.
    """
    batches = self.stop.check_before_each(shard_batches(self.mesh, self.batches("val loss")), lag=VOTE_LAG)
    sums = [self.eval_step(variables, batch) for batch in batches]
    loss, tokens = np.sum(jax.device_get(sums), axis=0)
    written = self.write([variables], self.stop.check_before_each(
        self.batches("writing val reports", self.config.train.eval_studies)))
    self.stop.check()

    references, hypotheses = apply_protocol(
        "r2gen", [self.split.reports[report.record] for report in written], [report.text for report in written],
        self.tokenizer, self.config.data.cleaning, self.config.tokenizer.max_length)
    scores = {"token_loss": float(loss / tokens), **nlg_scores(references, hypotheses, metrics=METRICS).corpus,
              "distinct_reports": len(set(hypotheses))}
    texts = {}
    if self.labeler:
      self.watchdog.beat("reading findings from val reports")
      labels = label_scores(self.reference_labels(written), self.labeler.read([report.text for report in written]),
                            self.labeler.findings)
      scores |= {"micro_F1": labels["micro"]["f1"], "macro_F1": labels["macro"]["f1"],
                 "CIDEr_macro_F1": (scores["CIDEr"] + labels["macro"]["f1"]) / 2}
      texts["findings"] = findings_table(labels["per_finding"])
    images = {}
    if not self.config.data.restricted and jax.process_index() == 0:
      texts["reports"] = "\n\n---\n\n".join(sample_text(self.split, report) for report in samples(written))
      images = {f"images_{place}": views_of(self.split[report.record])
                for place, report in enumerate(samples(written), 1)}
    return EvalResult(scores, texts, images)

  def reference_labels(self, written: Sequence[GeneratedReport]) -> list[Mapping[str, str]]:
    """Returns the labels of the studies: those of their records where these count, else what is read from reports."""
    drawn = drawn_labels(self.labeler, self.config, self.split)
    if drawn is not None:
      return [drawn[report.record] for report in written]
    return self.labeler.read([self.split.reports[report.record] for report in written])

  def batches(self, phase: str, limit: int = 0) -> Iterator[dict]:
    """Yields this host's rows of the batches of val, of all its studies or the first `limit`."""
    size = decode_batch_size(self.config, self.mesh.shape)
    batches = eval_batches(self.split, self.tokenizer, self.config, size, self.features, limit,
                           local_rows(self.mesh, size))
    return self.watchdog.beat_each(batches, phase)


def samples(written: Sequence[GeneratedReport]) -> list[GeneratedReport]:
  """Returns the same few reports at every look, evenly from all."""
  places = np.linspace(0, len(written) - 1, min(NUM_SAMPLES, len(written))).round().astype(int)
  return [written[place] for place in places]


def sample_text(split: Split, report: GeneratedReport) -> str:
  return (f"**Reference** {split.reports[report.record]}\n\n**Written** {report.text}\n\n"
          f"log-probability {report.log_prob:.1f}")


def views_of(record: Mapping) -> np.ndarray:
  """Returns the images of a record as squares of one size, uint8 [V, 256, 256, 1]."""
  views = [PIL.Image.open(io.BytesIO(image)).convert("L").resize((256, 256)) for image in record["images"]]
  return np.stack([np.asarray(view) for view in views])[..., None]


def findings_table(per_finding: Mapping[str, Mapping[str, float]]) -> str:
  """Returns the label scores finding by finding, in Markdown."""
  rows = [f"| {finding} | {row['support']} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} |"
          for finding, row in per_finding.items()]
  return "\n".join(["| finding | in references | precision | recall | F1 |", "| --- | --- | --- | --- | --- |", *rows])
