"""The policy gradient of reward fine-tuning: pure functions of log-probabilities and rewards.

The policy is the model's distribution over reports at `reward.temperature`. Its expected reward E_y[R(y)] has the
gradient E_y[(R(y) - b) grad log p(y)] for any baseline b that doesn't depend on y. With K samples per study, the
baseline of a sample is the mean reward of the other K - 1 (leave-one-out; Kool et al., 2019; Ahmadian et al.,
ACL 2024).

The samples were drawn with the parameters of one update earlier. The weight p(y) / q(y) of a sample, with q the
probability with which it was drawn, makes the expectation exact again; MAX_WEIGHT bounds its variance.

Shapes: B studies, K samples, T tokens.
"""

import jax
import jax.numpy as jnp

from mcsam_jax.models.layers import at_least_float32

MAX_WEIGHT = 2.0              # bound on a sample's importance weight
_FORBIDDEN = -1e9             # logit of a token that is never sampled: probability 0, and finite, unlike -inf


def compute_policy_log_probs(logits: jax.Array, temperature: float, forbidden: tuple[int, ...]) -> jax.Array:
  """Returns the policy's log-probabilities [..., vocabulary] of the next token, in float32 or wider.

  Args:
    logits: [..., vocabulary].
    temperature: divides the logits.
    forbidden: tokens that are never sampled: bos and pad, unless they share the id of eos.
  """
  logits = at_least_float32(logits) / temperature
  token = jnp.arange(logits.shape[-1])
  is_forbidden = sum((token == other for other in forbidden), jnp.zeros(token.shape, bool))
  return jax.nn.log_softmax(jnp.where(is_forbidden, _FORBIDDEN, logits))


def sum_over_tokens(values: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns the sums [...] of per-token values [..., T] over the report, where mask [..., T] is True."""
  return jnp.where(mask, values, 0).sum(-1)


def subtract_baseline(rewards: jax.Array) -> jax.Array:
  """Returns each reward [B, K] minus the mean reward of the study's other samples; exactly 0 where all are equal."""
  relative = rewards - rewards[:, :1]                                     # exact zeros for equal rewards
  num_samples = rewards.shape[1]
  return (relative - relative.mean(1, keepdims=True)) * (num_samples / (num_samples - 1))


def compute_policy_loss(log_probs: jax.Array, draw_log_probs: jax.Array, rewards: jax.Array,
                        study_weights: jax.Array) -> jax.Array:
  """Returns a scalar whose gradient is an estimate of minus the gradient of the expected reward.

  Args:
    log_probs: [B, K], of the samples under the current policy, with gradient.
    draw_log_probs: [B, K], of the samples under the policy that drew them.
    rewards: [B, K].
    study_weights: [B], weights of the studies that sum to 1.
  """
  log_ratio = jax.lax.stop_gradient(log_probs) - draw_log_probs
  weights = jnp.minimum(jnp.exp(jnp.minimum(log_ratio, 1.0)), MAX_WEIGHT)        # no overflow in exp
  return -(study_weights * (weights * subtract_baseline(rewards) * log_probs).mean(1)).sum()


def compute_entropy(log_probs: jax.Array) -> jax.Array:
  """Returns the entropy [...] of distributions with log-probabilities [..., vocabulary], in nats."""
  return -(jnp.exp(log_probs) * log_probs).sum(-1)


def compute_kl(log_probs: jax.Array, other_log_probs: jax.Array) -> jax.Array:
  """Returns KL(p || q) [...], in nats, for log-probabilities of p and q, both [..., vocabulary]."""
  return (jnp.exp(log_probs) * (log_probs - other_log_probs)).sum(-1)
