"""A trained model in Python: generates, scores and explains reports, and encodes images.

Shapes: B studies, V views, N patches of a study, D width, S memory slots, T tokens, W words.
"""

from collections.abc import Iterator, Sequence
import functools
from typing import Any, cast, overload
import warnings

from etils import epath
import jax
from ml_collections import ConfigDict
import numpy as np

from input_pipeline.prefetch import ordered_map
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.user_images import UserStudy
from mcsam_jax import config as configs
from mcsam_jax.api.results import make_scored_report, ScoredReport, StudyExplanation, StudyReport
from mcsam_jax.api.studies import iterate_studies, read_study
from mcsam_jax.distributed.mesh import replicated, shard_batch
from mcsam_jax.errors import UserError
from mcsam_jax.explain.explanations import explain_reports
from mcsam_jax.explain.slots import describe_slots, SlotDescription
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.inference.predictor import batched, Prediction, Predictor
from mcsam_jax.inference.token_log_probs import make_token_log_probs_fn
from mcsam_jax.models.inputs import visual_inputs
from mcsam_jax.models.mcsam import EncodedImages, MCSAM

SEARCHES = ("beam", "greedy", "mbr")


class Model:
  """A trained model with its tokenizer; made by `mcsam_jax.load`. docs/python.md shows each method.

  Studies are given as paths, PIL images, NumPy arrays, bytes, lists of these (the views of one study) or prepared
  records; api/studies.py says how each is read.

  Attributes:
    path: the folder that it was loaded from.
    step: the training step of its checkpoint.
    config: the config of the run, locked.
    tokenizer: the tokenizer of the run.
    module: the Flax module `MCSAM`.
    variables: its variables, `params` and `batch_stats`.
  """

  def __init__(self, predictor: Predictor):
    """Wraps a loaded model; use `mcsam_jax.load`."""
    self._predictor = predictor
    self._generators: dict[Any, ReportGenerator] = {}

  def __repr__(self) -> str:
    return f"<mcsam_jax model {self.path}, step {self.step}>"

  @property
  def path(self) -> epath.Path:
    return self._predictor.workdir.path

  @property
  def step(self) -> int:
    return self._predictor.loaded.step

  @property
  def config(self) -> ConfigDict:
    return self._predictor.workdir.config

  @property
  def tokenizer(self) -> Tokenizer:
    return self._predictor.workdir.tokenizer

  @property
  def module(self) -> MCSAM:
    return self._predictor.loaded.model

  @property
  def variables(self) -> dict:
    return self._predictor.loaded.variables

  @property
  def encoder_variables(self) -> dict | None:
    """The pretrained image encoder that training started from; None if it started at random.

    If `config.encoder.frozen`, this is the encoder that the model uses, and `variables` has none; or, with
    `config.encoder.trained_stages`, these last stages alone.
    """
    return self._predictor.workdir.encoder_variables

  # Reports.

  def generate(self, studies: Any, *, search: str | None = None, beam_size: int | None = None, num_return: int = 1,
               token_log_probs: bool = True, **decode) -> list[StudyReport]:
    """Returns the reports of studies, in their order: those of `mcsam report` and `mcsam evaluate` by default.

    Args:
      studies: a list of studies, or one study.
      search: beam | greedy | mbr (minimum Bayes risk, which needs the training records); None: `decode.search`.
      beam_size: beams per study; None: `decode.beam_size`.
      num_return: number of best reports per study; at most `beam_size`, for mbr at most `num_samples`. A study has
        fewer if the search finds fewer different ones.
      token_log_probs: whether to compute the log-probability of each token too.
      **decode: further fields of `config.decode`, such as length_penalty=0.6, min_length=5, no_repeat_ngram_size=3.

    Raises:
      UserError: a study can't be read, or a setting is not possible.
    """
    return list(self.stream(studies, search=search, beam_size=beam_size, num_return=num_return,
                            token_log_probs=token_log_probs, **decode))

  def stream(self, studies: Any, *, search: str | None = None, beam_size: int | None = None, num_return: int = 1,
             token_log_probs: bool = True, **decode) -> Iterator[StudyReport]:
    """Yields what `generate` returns, each report as soon as its batch is finished, for any number of studies."""
    generator, chosen = self._choose_generator(search, beam_size, num_return, token_log_probs, **decode)
    predictions = self._predictor.predict(self._read(studies), generator)
    return (self._make_report(prediction, chosen) for prediction in predictions)

  @overload
  def log_probs(self, study: Any, text: str, truncate: bool = False) -> ScoredReport: ...

  @overload
  def log_probs(self, study: Any, text: Sequence[str], truncate: bool = False) -> list[ScoredReport]: ...

  def log_probs(self, study: Any, text: str | Sequence[str], truncate: bool = False
                ) -> ScoredReport | list[ScoredReport]:
    """Returns the log-probability of a report given the images of a study: a `ScoredReport`, or a list for a list.

    They are the model's own, whatever rules a search would apply. Words that the vocabulary lacks count as <unk>.

    Args:
      study: one study.
      text: one report or several, cleaned as for training.
      truncate: whether to score only the first tokens of a report that is too long for the model, as training does.

    Raises:
      UserError: the study can't be read, or a report is too long.
    """
    texts, tokenizer = [text] if isinstance(text, str) else list(text), self.tokenizer
    max_length = self.config.tokenizer.max_length
    for each in texts:
      length = len(tokenizer.encode(each)) + 1
      if length > max_length and not truncate:
        raise UserError(f"a report has {length} tokens, eos included, and the model writes at most {max_length}: "
                        "shorten it, or set truncate=True to score its first tokens")
    if not texts:
      return []
    ids = np.stack([tokenizer.encode_for_training(each, max_length)[1:] for each in texts])
    batch = self._make_batch([self._read_one(study)])
    repeated = np.zeros((self._predictor.batch_size, *ids.shape), np.int32)
    repeated[:] = ids
    log_probs = jax.device_get(self._apply(self._token_log_probs_fn, batch, repeated))[0]        # [texts, T]
    scored = [make_scored_report(tokenizer, tokenizer.decode(row), row, values, float(values.sum()))
              for row, values in zip(ids, log_probs)]
    return scored[0] if isinstance(text, str) else scored

  # Explanations.

  def explain(self, study: Any, text: str | None = None, **generate) -> StudyExplanation:
    """Returns what the model attended to when it wrote the report of a study.

    The maps show attention, which is not the same as evidence: docs/page.md says how often they point at a finding.

    Args:
      study: one study.
      text: the report to explain; None: the one that the model generates.
      **generate: how, as in `generate`.

    Raises:
      UserError: the study can't be read, or the text is too long.
    """
    tokenizer, max_length = self.tokenizer, self.config.tokenizer.max_length
    user_study = self._read_one(study)
    if text is None:
      generator, _ = self._choose_generator(**{"token_log_probs": False, **generate})
      prediction, = self._predictor.predict([user_study], generator)
      generated = prediction.report
    else:
      if generate:
        raise UserError(f"explain: {', '.join(generate)} can't be set for a given text")
      if (length := len(tokenizer.encode(text)) + 1) > max_length:
        raise UserError(f"the report has {length} tokens, eos included, and the model writes at most {max_length}")
      ids = tokenizer.encode_for_training(text, max_length)[1:]
      generated = GeneratedReport(0, tokenizer.decode(ids), ids, None)
    generated.record = 0
    batch = self._predictor.make_batch([user_study])[0]
    batch["record"] = np.zeros_like(batch["record"])          # the rows of the padding, too, take the only report
    predictor = self._predictor
    with jax.set_mesh(predictor.mesh):
      explanation, = explain_reports(predictor.loaded, self.config, tokenizer, predictor.mesh, [batch], [generated], ())
    slots = self.memory_topics() if explanation.slots else []
    grid = predictor.workdir.patch_grid
    maps = explanation.maps.astype(np.float32) / 255                                              # [W, V, P]
    return StudyExplanation(
        generated.text, explanation.words, explanation.log_probs, maps.reshape(*maps.shape[:2], grid, grid),
        list(user_study.decode(self.config.data.image_size)[..., 0]), [file.view for file in user_study.files],
        [(slot, weight, slots[slot]) for slot, weight in explanation.slots])

  def memory_topics(self) -> list[SlotDescription]:
    """Returns the words of each memory slot [S]: those of its topic before training, and those that select it now."""
    return self._slot_descriptions

  # Arrays.

  def preprocess(self, image: Any) -> np.ndarray:
    """Returns an image as the model sees it, uint8 [S, S, 1], by the steps that training and `mcsam report` take.

    The whole image becomes a square. `generate` takes the result, too, and uses it as it is.

    Args:
      image: a path, a PIL image, an array or bytes.
    """
    user_study = read_study("the image", image, self.config, "frontal")
    if len(user_study.files) + len(user_study.unused) > 1:
      raise UserError("preprocess takes one image; call it for each image of a study")
    return user_study.decode(self.config.data.image_size)[0]

  def encode(self, studies: Any) -> EncodedImages:
    """Returns the images of B studies as the decoder reads them, as NumPy arrays.

    Returns:
      patches [B, N, D], patch_mask bool [B, N] (False where a view is absent), image_embedding [B, D] (None without
      alignment): the vector that is compared with reports; finding_logits [B, F] (None without a findings head).
    """
    encoded = []
    for group in batched(self._read(studies), self._predictor.batch_size):
      arrays = jax.device_get(self._apply(self._encode_fn, self._make_batch(group)))
      encoded.append(jax.tree.map(lambda leaf: leaf[:len(group)], arrays))
    if not encoded:
      raise UserError("encode: no study was given")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *encoded)

  # Internals.

  def _choose_generator(self, search: str | None = None, beam_size: int | None = None, num_return: int = 1,
                        token_log_probs: bool = True, **decode) -> tuple[ReportGenerator, str]:
    """Returns a generator of reports, and its search; the arguments are those of `generate`.

    Generators are kept, as they hold compiled programs.
    """
    if search is not None and search not in SEARCHES:
      raise UserError(f"search={search}: must be one of {', '.join(SEARCHES)}")
    if not isinstance(num_return, int):
      raise UserError(f"num_return={num_return!r}: expected a whole number")
    greedy = search == "greedy"
    if greedy:
      if beam_size not in (None, 1):
        raise UserError(f"search=greedy has one beam, not beam_size={beam_size}")
      search, beam_size = "beam", 1
    for note in self._predictor.notes if search is None else ():
      warnings.warn(note, stacklevel=4)
    chosen: str = search or self._predictor.search
    fields = decode | ({} if beam_size is None else {"beam_size": beam_size})
    key = chosen, num_return, token_log_probs, tuple(sorted((name, str(value)) for name, value in fields.items()))
    if key not in self._generators:
      arguments = [f"--config.decode.{name}={value}" for name, value in fields.items()]
      config = configs.apply_overrides(self.config, arguments) if arguments else self.config
      train_reports = self._predictor.train_reports
      if chosen == "mbr" and not train_reports:
        train_reports = self._predictor.workdir.open_split("train").reports
      self._generators[key] = self._predictor.make_generator(config, chosen, num_return, token_log_probs, train_reports)
    return self._generators[key], "greedy" if greedy else chosen

  def _make_report(self, prediction: Prediction, search: str) -> StudyReport:
    study, report = prediction.study, prediction.report
    nbest = [make_scored_report(self.tokenizer, each.text, each.ids, each.token_log_probs, each.log_prob)
             for each in report.nbest]
    messages = [*study.warnings]
    if (detector := self._predictor.ood_detector) is not None:
      messages += [detector.describe_outlier(file.name, similarity)
                   for file, similarity in zip(study.files, prediction.similarity) if similarity < detector.threshold]
    return StudyReport(nbest, [file.view for file in study.files], prediction.similarity, messages, search,
                       report.finding_probs)

  @property
  def _default_view(self) -> str:
    """The view of a single image of which nothing is known."""
    detector = self._predictor.ood_detector
    return detector.first_view if detector else "frontal"

  def _read(self, studies: Any) -> Iterator[UserStudy]:
    """Yields the studies, read ahead by threads."""
    read = lambda item: read_study(item[0], item[1], self.config, self._default_view)
    yield from ordered_map(read, iterate_studies(studies), self.config.train.host_threads)

  def _read_one(self, study: Any) -> UserStudy:
    """Returns one study; a list holds its views."""
    return read_study("the study", study, self.config, self._default_view)

  def _make_batch(self, studies: Sequence[UserStudy]) -> dict:
    """Returns the images of at most B studies as global arrays, without reports."""
    batch = self._predictor.make_batch(studies)[0]
    return shard_batch(self._predictor.mesh, {name: array for name, array in batch.items() if name != "tokens"})

  def _apply(self, function, *args):
    """Returns function(variables, *args), computed on the model's devices."""
    with jax.set_mesh(self._predictor.mesh):
      return function(self.variables, *args)

  @functools.cached_property
  def _token_log_probs_fn(self):
    return jax.jit(make_token_log_probs_fn(self.module, self.config, self.tokenizer),
                   out_shardings=replicated(self._predictor.mesh))

  @functools.cached_property
  def _encode_fn(self):
    def encode(variables: dict, batch: dict) -> EncodedImages:
      memory = self.module.apply(variables, method="project_memory")
      return cast(EncodedImages, self.module.apply(variables, *visual_inputs(self.config, batch), memory, False,
                                                   method="encode_images"))
    return jax.jit(encode, out_shardings=replicated(self._predictor.mesh))

  @functools.cached_property
  def _slot_descriptions(self) -> list[SlotDescription]:
    predictor = self._predictor
    with jax.set_mesh(predictor.mesh):
      return describe_slots(predictor.loaded, self.config, self.tokenizer, predictor.workdir.initial_memory,
                            predictor.mesh)
