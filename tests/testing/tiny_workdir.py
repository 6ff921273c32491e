"""A workdir with random weights and the records of a few phantoms, made without training."""

import pathlib

from etils import epath
import jax

from input_pipeline.batch import empty_batch
from input_pipeline.builder.prepare import prepare
from input_pipeline.pipeline import eval_batches
from input_pipeline.splits import Split
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.checkpoints.workdir import create_workdir, Workdir
from mcsam_jax.distributed.mesh import make_mesh
from mcsam_jax.inference.feature_cache import load_split_features
from mcsam_jax.inference.generate import GeneratedReport, ReportGenerator
from mcsam_jax.inference.load import load_model
from mcsam_jax.inference.ood import load_or_fit_detector
from mcsam_jax.models.initialize import make_model
from mcsam_jax.models.visual_encoders.registry import frozen_feature_shape
from mcsam_jax.training.train_state import init_train_state
from tests.testing.tiny import make_config, NETWORK

FIELDS = NETWORK | {
    "data.phantom.num_train": 20, "data.phantom.num_val": 10, "data.phantom.num_test": 1, "data.image_size": 32,
    "data.short_side": 64, "encoder.name": "resnet_tiny", "encoder.frozen": True, "memory_init.kind": "random",
    "tokenizer.threshold": 1, "tokenizer.max_length": 12, "train.host_threads": 1, "decode.beam_size": 2,
    "decode.batch_size": 4, "prepare.num_workers": 1,
}
STEP = 7


def make_tiny_workdir(root: pathlib.Path, **changes) -> epath.Path:
  """Returns a workdir below `root` whose random weights give different studies different reports.

  Its checkpoint is of step STEP; the records are in root/data. `changes` are config fields, spelled `section__field`.
  """
  config = make_config(FIELDS, {"data.data_dir": root / "data", "encoder.weights": root / "encoder.npz"}, **changes)
  save_weights(root / "encoder.npz", init_encoder_variables(config), {
      "architecture": "resnet_tiny", "source": "/home/someone/resnet.pth", "sha256": "0" * 64,
      "pretraining_data": "none"})
  prepare(config, log=lambda line: None)
  work = create_workdir(str(root / "run"), config, log=lambda line: None)
  model = make_model(config, work.tokenizer.vocab_size, work.patch_grid)
  sample = empty_batch(config, 1, frozen_feature_shape(config))
  state = jax.jit(lambda: init_train_state(model, config, sample))()
  state.params["decoder"]["logits"]["kernel"] *= 20
  checkpoints = Checkpoints(work.path, 1)
  checkpoints.save(STEP, state, {})
  checkpoints.close()
  load_or_fit_detector(work, lambda line: None)            # so that nothing needs the records any more
  return work.path


def generate_as_evaluate(work: Workdir, split: Split) -> list[GeneratedReport]:
  """Returns the reports that `mcsam evaluate` generates of a split: from its records, in batches of the pipeline."""
  mesh = make_mesh(work.config)
  with jax.set_mesh(mesh):
    loaded = load_model(work, mesh, None, lambda line: None)
    features = load_split_features(work, split, lambda line: None)
    reports = ReportGenerator([loaded.model], work.config, work.tokenizer, mesh, "beam")(
        [loaded.variables], eval_batches(split, work.tokenizer, work.config, work.config.decode.batch_size, features))
  assert len({report.text for report in reports}) > 3
  return reports
