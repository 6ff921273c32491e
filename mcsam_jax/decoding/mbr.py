"""Minimum Bayes risk decoding: of several candidate reports, chooses the one with the highest expected utility.

The expectation is over what the true report may be (Kumar and Byrne, NAACL 2004), which is represented by samples of
the model (Eikema and Aziz, EMNLP 2022) and, where the model retrieves training reports for the images, by those too,
weighted by their probabilities. docs/decoding.md has the formula.

Shapes: C candidates, K samples, R retrieved training reports, F findings.
"""

import numpy as np

MAX_RETRIEVED = 512      # training reports per study; less probable ones are left out


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


def expect_over_reports(values: np.ndarray, retrieved_values: np.ndarray | None = None,
                        retrieved_weights: np.ndarray | None = None, retrieval_weight: float = 0.0,
                        sample_weights: np.ndarray | None = None) -> np.ndarray:
  """Returns the expected value [...] over the distribution of the true report.

  Args:
    values: [..., K], the value if the true report were each of the samples.
    retrieved_values: [..., R], the same for retrieved training reports.
    retrieved_weights: [R], which sum to 1.
    retrieval_weight: from 0 to 1, the weight of the retrieved reports; the samples have the rest.
    sample_weights: [K], which sum to 1; None: equal.
  """
  expected = values.mean(axis=-1) if sample_weights is None else values @ sample_weights
  if retrieval_weight and retrieved_values is not None and retrieved_weights is not None:
    expected = (1 - retrieval_weight) * expected + retrieval_weight * (retrieved_values @ retrieved_weights)
  return expected


def compute_findings_gain(stated: np.ndarray, probabilities: np.ndarray, threshold: float) -> np.ndarray:
  """Returns what each candidate gains by the findings that it states, [C].

  A stated finding of probability p adds p - threshold. F1 = 2 TP / (P + H), with TP stated findings that are right, P
  findings in the references and H stated findings. One more statement adds 2 p to the numerator on average and 1 to the
  denominator, so it raises F1 if p > F1 / 2: the best threshold is half of the F1 that is reached (Lipton et al., ECML
  2014).

  Args:
    stated: bool [C, F], whether each candidate states each finding.
    probabilities: [F], that each finding is present, or these times the value of each finding.
    threshold: see above.
  """
  return stated @ (probabilities - threshold)
