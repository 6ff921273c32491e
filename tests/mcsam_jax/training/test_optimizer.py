"""Learning rates follow the configured schedules, the encoder has its own, and weight decay applies to kernels only."""

import jax.numpy as jnp
import numpy as np
import pytest

from mcsam_jax import config as configs
from mcsam_jax.training.optimizer import learning_rate, make_optimizer


def load_config(**fields):
  overrides = [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]
  return configs.load_config("phantom", overrides)


@pytest.mark.parametrize("schedule, halfway", [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_schedule(schedule, halfway):
  rate = learning_rate(load_config(optimizer__schedule=schedule, optimizer__warmup_steps=10, train__num_steps=110,
                                   optimizer__final_fraction=0.1), peak=2.0)
  assert rate(0) == 0 and rate(5) == pytest.approx(1.0) and rate(10) == pytest.approx(2.0)
  assert rate(60) == pytest.approx(2.0 * halfway) and rate(110) == pytest.approx(0.2 if schedule != "constant" else 2.0)


def compute_first_update(gradient, **fields):
  optimizer = make_optimizer(load_config(optimizer__warmup_steps=0, optimizer__learning_rate=0.01,
                                         optimizer__encoder_learning_rate=0.001, **fields))
  params = {"visual_encoder": {"conv": {"kernel": jnp.ones((2, 2))}},
            "token_embedding": {"embedding": jnp.ones((2, 2))},
            "decoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  gradients = {name: {leaf: jnp.full_like(value, gradient) if hasattr(value, "shape") else
                      {"kernel": jnp.full_like(value["kernel"], gradient)} for leaf, value in tree.items()}
               for name, tree in params.items()}
  return optimizer.update(gradients, optimizer.init(params), params)[0]


def test_the_encoder_has_its_own_learning_rate():
  updates = compute_first_update(1.0, optimizer__weight_decay=0, optimizer__clip_norm=0)
  np.testing.assert_allclose(updates["decoder"]["kernel"], -0.01, rtol=1e-4)
  np.testing.assert_allclose(updates["visual_encoder"]["conv"]["kernel"], -0.001, rtol=1e-4)


def test_weight_decay_applies_to_kernels_only():
  updates = compute_first_update(0.0, optimizer__weight_decay=0.5)
  np.testing.assert_allclose(updates["decoder"]["kernel"], -0.01 * 0.5, rtol=1e-5)
  np.testing.assert_allclose(updates["visual_encoder"]["conv"]["kernel"], -0.001 * 0.5, rtol=1e-5)
  assert not np.any(updates["decoder"]["bias"]) and not np.any(updates["token_embedding"]["embedding"])
