"""What tells the class of a document in the labelled text bench, of every method alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from hyperdp.eval.text_recipe import TextClassifierConfig

CLASSIFIER_STEPS = 1000  # at most, of the solver; it stops where it has converged


def classify(
    texts: Sequence[str],
    labels: NDArray[np.int64],
    asked: Sequence[str],
    config: TextClassifierConfig,
) -> NDArray[np.int64]:
    """Classes of documents, by logistic regression on the TF-IDF features of others.

    Args:
        texts: N documents.
        labels: [N]; classes weigh the same whatever their sizes.
        asked: M documents.
        config: see `TextClassifierConfig`.

    Returns:
        [M].
    """
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, config.words)),
        LogisticRegression(
            C=config.strength, class_weight="balanced", max_iter=CLASSIFIER_STEPS, random_state=0
        ),
    )
    found: NDArray[np.int64] = model.fit(list(texts), labels).predict(list(asked))
    return found


def zero_shot_accuracy(losses: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    """Balanced share of documents that the right class's adapter finds the most likely.

    No class is likelier than another beforehand; a draw counts in equal parts, so that adapters
    which are the same come to chance.

    Args:
        losses: [L, N], nats a token; a document has as many tokens for one class as for another, so
            the order is that of its whole likelihood.
        truth: [N], classes, each of which occurs.
    """
    best = losses == losses.min(0)  # [L, N]
    share = best[truth, np.arange(len(truth))] / best.sum(0)  # [N]
    return float(np.mean([share[truth == c].mean() for c in range(len(losses))]))
