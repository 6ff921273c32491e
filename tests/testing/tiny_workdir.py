"""A workdir with random weights and the records of a few phantoms, made without training."""

import pathlib

from etils import epath
import jax

from input_pipeline.batch import empty_batch
from input_pipeline.builder.prepare import prepare
from mcsam_jax.checkpoints.checkpoint import Checkpoints
from mcsam_jax.checkpoints.weights import save_weights
from mcsam_jax.checkpoints.workdir import create_workdir, init_encoder_variables
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
