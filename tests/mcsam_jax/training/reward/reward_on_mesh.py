"""Takes steps of reward fine-tuning over a mesh, and prints metrics and parameters as JSON for test_reward_run.py.

    python reward_on_mesh.py STEPS MESH...           MESH: sizes of data,fsdp,tensor
"""

import functools
import json
import math
import sys

import jax
import numpy as np

B, K = 8, 3


class CountingScorer:
  """Rewards reports for one token, and for agreeing with the reference."""

  def score(self, samples: np.ndarray, references: np.ndarray) -> np.ndarray:
    return np.stack([(samples == 5).mean(-1), (samples == references[:, None, 1:]).mean(-1)], -1).astype(np.float32)


def run(mesh_sizes: str, num_steps: int) -> dict:
  """Returns the metrics of all steps, and the parameters and samples after them."""
  from mcsam_jax.distributed.mesh import local_rows, make_mesh, shard_batch, state_shardings
  from mcsam_jax.training.reward.reward_state import init_reward_state
  from mcsam_jax.training.reward.reward_step import RewardStep
  from tests.testing.random_network import RandomNetwork
  sizes = [int(size) for size in mesh_sizes.split(",")]
  network = RandomNetwork(
      B, train__batch_size=B, train__num_steps=1000, optimizer__warmup_steps=0, train__objective="reward",
      train__init_from="w", reward__num_samples=K, reward__kl_weight=0.1, train__compute_dtype="float64",
      optimizer__learning_rate=0.01, mesh__data=sizes[0], mesh__fsdp=sizes[1], mesh__tensor=sizes[2])
  mesh = make_mesh(network.config, jax.devices()[:math.prod(sizes)][::-1])
  with jax.set_mesh(mesh):
    rows = local_rows(mesh, B)
    batches = [shard_batch(mesh, {name: array[rows] for name, array in batch.items()})
               for batch in network.make_batches((num_steps + 1) * B)]
    init = functools.partial(init_reward_state, network.model, network.config, next(network.make_batches(1)))
    shardings = state_shardings(mesh, jax.eval_shape(init))
    init = jax.jit(init, out_shardings=shardings)
    step = RewardStep(network.model, network.config, network.tokenizer, CountingScorer(), mesh, shardings,
                      init().params, 0)
    state, history = init(), []
    for pair in zip(batches, batches[1:]):
      state, metrics = step(state, pair)
      history.append({name: float(value) for name, value in metrics.items()})
  return {"metrics": history, "ids": np.asarray(state.samples.ids).tolist(),
          "params": [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state.params)]}


if __name__ == "__main__":
  print(json.dumps({mesh: run(mesh, int(sys.argv[1])) for mesh in sys.argv[2:]}))
