"""Minimum Bayes risk decoding: of several samples, chooses the one with the highest expected utility.

The expectation is over what the true report may be (Kumar and Byrne, NAACL 2004), which is represented by the samples
themselves (Eikema and Aziz, EMNLP 2022) and, where the model retrieves training reports for the images, by those too,
weighted by their probabilities.

Shapes: K samples, R retrieved training reports.
"""

import numpy as np

MAX_RETRIEVED = 2048     # training reports per study; less probable ones are left out


def retrieve_most_probable(probs: np.ndarray, max_retrieved: int = MAX_RETRIEVED) -> tuple[np.ndarray, np.ndarray]:
  """Returns the indices of the most probable training reports, and their weights, which sum to 1.

  Args:
    probs: probabilities of all training reports for one study, on any scale.
    max_retrieved: upper bound of R.

  Returns:
    int [R] and float [R], most probable first; of equally probable ones the first.
  """
  indices = np.argsort(-probs, kind="stable")[:max_retrieved]
  return indices, probs[indices] / probs[indices].sum()


def select_sample(utilities: np.ndarray, retrieved_utilities: np.ndarray | None = None,
                  retrieved_weights: np.ndarray | None = None, retrieval_weight: float = 0.0) -> int:
  """Returns the index of the sample with the highest expected utility; of equal ones the first.

  Args:
    utilities: [K, K], of each sample (rows) if another one (columns) were the true report.
    retrieved_utilities: [K, R], the same for retrieved training reports.
    retrieved_weights: [R], which sum to 1.
    retrieval_weight: from 0 to 1, the weight of the retrieved reports; the samples have the rest.
  """
  expected = utilities.mean(axis=1)
  if retrieval_weight and retrieved_utilities is not None and retrieved_weights is not None:
    retrieved = retrieval_weight * retrieved_utilities @ retrieved_weights
    expected = (1 - retrieval_weight) * expected + retrieved
  return int(expected.argmax())
