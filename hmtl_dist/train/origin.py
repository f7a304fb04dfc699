"""Where a trained model comes from, in the words that are stored with it."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, cast

from hmtl_dist.config.io import to_dict
from hmtl_dist.data.config import DataConfig
from hmtl_dist.data.dataset.schema import Field
from hmtl_dist.data.stream.selection import Selection
from hmtl_dist.inference.info import Origin, TestSet, Weights
from hmtl_dist.run_config import RunConfig
from hmtl_dist.tracking.facts import versions
from hmtl_dist.tracking.redact import redact_named

ELSEWHERE = ("launch", "tracking")
"""Sections that say where a run ran and was recorded: no fact about the model."""


def origin_of(
    config: RunConfig,
    training: tuple[str, str],
    evaluation: Selection,
    fields: Mapping[str, Field],
    *,
    global_step: int,
    weights: Weights,
    metrics: Mapping[str, float],
    trained_with: Mapping[str, str] | None = None,
) -> Origin:
    """Say where a model comes from.

    Args:
        config: The configuration it was trained with.
        training: Name and digest of the data it was trained on.
        evaluation: What it is evaluated on.
        fields: Labels of the data.
        global_step: Optimizer steps it was trained for.
        weights: Which of the run's weights it has.
        metrics: The run's last evaluation.
        trained_with: Versions of the packages; this process's by default.
    """
    recipe = {name: section for name, section in to_dict(config).items() if name not in ELSEWHERE}
    return Origin(
        run=config.name,
        global_step=global_step,
        weights=weights,
        dataset=training[0],
        data_digest=training[1],
        fields=dict(fields),
        test_set=evaluated_on(config.data, evaluation),
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},  # JSON has no other numbers
        recipe=cast("dict[str, Any]", _without_secrets("", recipe)),
        versions=dict(trained_with or versions()),
    )


def evaluated_on(config: DataConfig, evaluation: Selection) -> TestSet:
    """Say which pictures a configuration evaluates on."""
    source = evaluation.sources[0]
    digest = source.digest
    if config.folds is not None:
        fold = [digest, config.folds, config.fold, config.fold_seed, config.stratify_by]
        digest = hashlib.sha256(json.dumps(fold).encode()).hexdigest()
    return TestSet(dataset=source.dataset, url=source.url, split=source.split, digest=digest, num_samples=source.chosen)


def _without_secrets(name: str, value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_secrets(key, item) for key, item in cast("dict[str, object]", value).items()}
    if isinstance(value, list):
        return [_without_secrets(name, item) for item in cast("list[object]", value)]
    return redact_named(name, value) if isinstance(value, str) else value
