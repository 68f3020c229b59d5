"""Average precision over tasks with missing labels."""

import numpy as np
from sklearn.metrics import average_precision_score


def mean_average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Mean over tasks of the average precision; labels, scores and weights are [n_graphs, n_tasks].

    Only entries with a positive weight count. A task without both a positive and a negative label is left out. The mean
    is NaN if no task remains, or if a score that counts is not finite. Source: ogbg-molpcba's metric (Hu et al. 2020,
    arXiv 2005.00687).
    """
    if not labels.shape == scores.shape == weights.shape:
        raise ValueError(f"labels {labels.shape}, scores {scores.shape} and weights {weights.shape} differ in shape")
    present = weights > 0
    if not np.isfinite(scores[present]).all():
        return float("nan")
    precisions = []
    for task in range(labels.shape[1]):
        task_labels = labels[present[:, task], task]
        if (task_labels == 0).any() and (task_labels == 1).any():
            precisions.append(average_precision_score(task_labels, scores[present[:, task], task]))
    return float(np.mean(precisions)) if precisions else float("nan")
