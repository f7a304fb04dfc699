"""Paired tests: against counts done by hand, and against what chance alone would bring."""

import numpy as np
import pytest

from hmtl_dist.export.paired import compare_errors, compare_right


def right(only_champion: int, only_candidate: int, both: int = 50, neither: int = 10) -> tuple[np.ndarray, np.ndarray]:
    champion = [True] * only_champion + [False] * only_candidate + [True] * both + [False] * neither
    candidate = [False] * only_champion + [True] * only_candidate + [True] * both + [False] * neither
    return np.array(champion), np.array(candidate)


@pytest.mark.parametrize(
    ("only_champion", "only_candidate", "p_value", "verdict"),
    [
        (0, 5, 2 * 0.5**5, "no difference"),  # 0.0625
        (0, 6, 2 * 0.5**6, "better"),  # 0.03125
        (6, 0, 2 * 0.5**6, "worse"),
        (1, 9, 2 * 11 * 0.5**10, "better"),  # (C(10,0) + C(10,1)) / 2^10, twice
        (4, 4, 1.0, "no difference"),
        (0, 0, 1.0, "no difference"),
    ],
)
def test_the_exact_form_of_mcnemars_test(only_champion: int, only_candidate: int, p_value: float, verdict: str) -> None:
    found = compare_right("mood", *right(only_champion, only_candidate))
    assert found.verdict == verdict
    assert f"p={p_value:.3g}:" in found.evidence
    assert found.num_samples == only_champion + only_candidate + 60
    assert found.candidate - found.champion == pytest.approx((only_candidate - only_champion) / found.num_samples)


def test_a_stricter_alpha_asks_for_more() -> None:
    assert compare_right("mood", *right(0, 6), alpha=0.01).verdict == "no difference"


def test_errors_that_are_lower_on_the_same_pictures_are_better() -> None:
    noise = np.random.default_rng(0)
    hard = noise.exponential(10, 200)  # how hard a picture is hides the difference from an unpaired look
    champion, candidate = hard + 1, hard + noise.normal(0, 1, 200).clip(-0.5, 0.5)
    found = compare_errors("age", champion, candidate)
    assert found.verdict == "better"
    assert found.champion - found.candidate == pytest.approx(1, abs=0.1)
    assert compare_errors("age", candidate, champion).verdict == "worse"


def test_chance_alone_is_a_difference_about_as_often_as_alpha_says() -> None:
    noise = np.random.default_rng(1)
    verdicts = [compare_right("mood", noise.random(200) < 0.7, noise.random(200) < 0.7).verdict for _ in range(400)]
    share = np.mean([verdict != "no difference" for verdict in verdicts])
    assert share <= 0.08  # exact tests keep below 0.05; 400 draws add at most 0.03


@pytest.mark.parametrize("errors", [[], [1.0], [2.0, 2.0]])
def test_too_few_or_equal_errors_are_no_difference(errors: list[float]) -> None:
    assert compare_errors("age", np.array(errors), np.array(errors)).verdict == "no difference"
