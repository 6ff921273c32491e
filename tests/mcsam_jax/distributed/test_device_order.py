"""On TPU the run's mesh follows the physical topology, in another device order than `jax.devices()`.

All computations that a host does besides the training steps have to work under such a mesh, too.
"""

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
from mcsam_jax.inference.image_encoder import compute_pooled_features
from mcsam_jax.distributed.preemption import _SignalVotes
from mcsam_jax.distributed.mesh import decode_batch_size, make_mesh
from mcsam_jax.checkpoints.encoder_weights import init_encoder_variables
from tests.testing.fake_split import FakeSplit
import cv2

config = configs.load_config("phantom", ["--config.encoder.name=resnet_tiny", "--config.encoder.weights=",
                                         "--config.data.image_size=32", "--config.decode.batch_size=6"])
encode_gray = lambda level: cv2.imencode(".jpg", np.full((40, 40), level, np.uint8))[1].tobytes()
split = FakeSplit([[encode_gray(level)] for level in (10, 200, 90)])
encoder, variables = make_encoder("resnet_tiny"), init_encoder_variables(config)
compute = lambda: compute_pooled_features(config, split, encoder, variables, lambda line: None)
without_mesh = compute()
mesh = make_mesh(config, jax.devices()[::-1])
assert [device.id for device in mesh.devices.flat] == [3, 2, 1, 0] and decode_batch_size(config, mesh.shape) == 8
with jax.set_mesh(mesh):
  votes = _SignalVotes()
  assert votes.vote(None, 0) is None and votes.vote(signal.SIGTERM, 0) == signal.SIGTERM
  np.testing.assert_array_equal(compute(), without_mesh)
assert np.ptp(without_mesh, 0).max() > 0
print("completed")
"""


def test_votes_and_features_work_under_a_mesh_in_another_device_order():
  root = pathlib.Path(__file__).parents[3]
  process = subprocess.run(
      [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False,
      env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                        "XLA_FLAGS": simulated_devices.make_xla_flags(4)})
  assert process.stdout == "completed\n", process.stderr[-3000:]
