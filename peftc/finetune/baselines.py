"""What a result is measured against: the majority class, and a logistic regression on frozen features.

Trains nothing of the model itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from peftc.errors import PeftcError
from peftc.finetune.encoding import Collator, Encoded, batches_by_length
from peftc.finetune.pooling import MeanPooledClassifier, masked_mean

BATCH_SIZE = 64


def majority(training: Sequence[int], evaluation: Sequence[int]) -> float:
    """Accuracy on the evaluation labels of always answering the training labels' most frequent class."""
    most_frequent = Counter(training).most_common(1)[0][0]
    return sum(label == most_frequent for label in evaluation) / len(evaluation)


def frozen_features(encoder: nn.Module, encoded: Encoded, collator: Collator) -> torch.Tensor:
    """Masked means of the encoder's last hidden states, float32 [rows d]."""
    encoder.eval()
    device = next(encoder.parameters()).device
    rows: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for batch in batches_by_length(encoded, BATCH_SIZE):
            inputs = collator([encoded[index] for index in batch])
            inputs.pop("labels", None)
            inputs = {name: value.to(device) for name, value in inputs.items()}
            hidden = encoder(**inputs).last_hidden_state
            rows |= dict(zip(batch, masked_mean(hidden, inputs["attention_mask"]).float().cpu(), strict=True))
    return torch.stack([rows[index] for index in range(len(encoded))])


def frozen_probe(model: nn.Module, training: Encoded, evaluation: Encoded, collator: Collator) -> float:
    """Accuracy on the evaluation examples of a logistic regression on the plain model's frozen mean-pooled
    features.
    """
    try:
        from sklearn.linear_model import LogisticRegressionCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise PeftcError("--baselines needs scikit-learn", hint='pip install "peftc[finetune]"') from error
    encoder = model.encoder if isinstance(model, MeanPooledClassifier) else model.base_model
    assert isinstance(encoder, nn.Module)
    # Its one setting is chosen by cross-validation on the training rows: held-out rows are only scored.
    regression = LogisticRegressionCV(
        Cs=(0.01, 0.1, 1.0, 10.0),
        cv=3,
        l1_ratios=(0,),
        scoring="accuracy",
        use_legacy_attributes=False,
        max_iter=2000,
    )
    probe = make_pipeline(StandardScaler(), regression)
    labels = [example["labels"] for example in training.examples]
    probe.fit(frozen_features(encoder, training, collator).numpy(), labels)
    features = frozen_features(encoder, evaluation, collator).numpy()
    return float(probe.score(features, [example["labels"] for example in evaluation.examples]))
