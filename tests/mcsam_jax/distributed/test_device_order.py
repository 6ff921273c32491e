"""On TPU the devices of a run's mesh follow the wires, in another order than `jax.devices()`: all that a host computes
beside the steps has to work under such a mesh too."""

import os
import pathlib
import subprocess
import sys

from tests.testing import simulated_devices

PROGRAM = """
import signal
import jax
import numpy as np
from mcsam_jax import config as configs
from mcsam_jax.models.visual_encoders.registry import make_encoder
from mcsam_jax.distributed import multihost
from mcsam_jax.inference.feature_cache import pooled_features
from mcsam_jax.distributed.preemption import _Voting
from mcsam_jax.distributed.mesh import decode_batch_size, make_mesh
from mcsam_jax.checkpoints.workdir import random_encoder
import cv2

config = configs.load_config("phantom", ["--config.encoder.name=resnet_tiny", "--config.encoder.weights=",
                                         "--config.data.image_size=32", "--config.decode.batch_size=6"])
shade = lambda level: cv2.imencode(".jpg", np.full((40, 40), level, np.uint8))[1].tobytes()
split = [{"images": [shade(level)]} for level in (10, 200, 90)]
encoder, variables = make_encoder("resnet_tiny"), random_encoder(config)
alone = pooled_features(config, split, encoder, variables, lambda line: None)
mesh = make_mesh(config, jax.devices()[::-1])
assert [device.id for device in mesh.devices.flat] == [3, 2, 1, 0] and decode_batch_size(config, mesh.shape) == 8
with jax.set_mesh(mesh):
  votes = _Voting()
  assert votes.read(None, 0) is None and votes.read(signal.SIGTERM, 0) == signal.SIGTERM
  np.testing.assert_array_equal(pooled_features(config, split, encoder, variables, lambda line: None), alone)
assert np.ptp(alone, 0).max() > 0
print("all of it")
"""


def test_votes_and_features_under_a_mesh_in_another_order():
  root = pathlib.Path(__file__).parents[3]
  done = subprocess.run(
      [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False,
      env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                        "XLA_FLAGS": simulated_devices.flags(4)})
  assert done.stdout == "all of it\n", done.stderr[-3000:]
