"""The alias `champion` moves to the version called `candidate`, where that is better on the same test set.

candidate, champion = the registered versions
refuse unless both were evaluated on the same test set, and it is still there
ask both about every picture of it
better at the deciding head, and worse at none?  ->  move the alias
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.errors import UserError, unknown
from hmtl_dist.export.folder import open_model
from hmtl_dist.export.paired import Compared, compare_errors, compare_right
from hmtl_dist.inference.info import ModelInfo, TestSet, read_info
from hmtl_dist.launch.asked import Asked, ask, metric_of
from hmtl_dist.launch.models import open_test_set
from hmtl_dist.tasks.reading import HeadOutput
from hmtl_dist.temporary import temporary_folder
from hmtl_dist.tracking.config import TrackingConfig
from hmtl_dist.tracking.registry import SCHEME, NoSuchVersionError, Version, download_version, find_version, move_alias

CANDIDATE, CHAMPION = "candidate", "champion"
ALPHA = 0.05


class NoSuchHeadError(UserError):
    """A mistake in what was asked, over which `force` does not help."""


@dataclass(frozen=True)
class Promotion:
    """What was found, and done."""

    outcome: Literal["moved", "kept"]
    candidate: str
    """Version of the candidate."""
    champion: str | None
    """Version that was champion before."""
    reason: str
    heads: tuple[Compared, ...] = ()
    """The heads that both have, the deciding one first."""


def promote(
    name: str,
    *,
    head: str | None = None,
    alpha: float = ALPHA,
    data: str | None = None,
    force: bool = False,
    tracking: TrackingConfig | None = None,
) -> Promotion:
    """Let the alias `champion` of a registered model move to its `candidate`, if that is better.

    Args:
        name: The registered model.
        head: Head that decides; the champion's first one by default.
        alpha: Chance of a difference that is none, at each head.
        data: Where the test set is now; where it was by default.
        force: Move the alias whatever is found.
        tracking: Where MLflow is.

    Raises:
        UserError: There is no candidate, or the two cannot be compared on the same test set.
        NoSuchHeadError: They have no such head in common.
    """
    tracking = tracking or TrackingConfig()
    candidate = find_version(tracking, f"{SCHEME}{name}@{CANDIDATE}")
    try:
        champion = find_version(tracking, f"{SCHEME}{name}@{CHAMPION}")
    except NoSuchVersionError:
        champion = None
    before = champion.version if champion else None
    if champion is None:
        reason = "there was no champion to compare with"
        move_alias(tracking, candidate, CHAMPION, {"promote.reason": reason})
        return Promotion("moved", candidate.version, None, reason)
    if champion.version == candidate.version:
        return Promotion("moved", candidate.version, before, "the candidate is the champion already")
    heads: tuple[Compared, ...] = ()
    try:
        heads = _compare(champion, candidate, head, alpha, data, tracking)
        better, reason = judge(heads)
    except NoSuchHeadError:
        raise
    except UserError as error:
        if not force:
            raise UserError(f"{error}; or move the alias with --force") from error
        better, reason = False, f"not compared: {error}"
    if not better and not force:
        return Promotion("kept", candidate.version, before, reason, heads)
    if not better:
        reason = f"forced; {reason}"
    notes = {f"promote.{one.head}": f"{one.champion:.4f} -> {one.candidate:.4f}; {one.evidence}" for one in heads}
    move_alias(tracking, candidate, CHAMPION, {"promote.reason": reason, "promote.before": before or "", **notes})
    return Promotion("moved", candidate.version, before, reason, heads)


def judge(heads: Sequence[Compared]) -> tuple[bool, str]:
    """Say whether a candidate is better, and why: at the first head, and at no other one worse."""
    deciding, *others = heads
    if worse := [one.head for one in others if one.verdict == "worse"]:
        return False, f"worse at {', '.join(worse)}"
    if deciding.verdict != "better":
        return False, f"{deciding.verdict} at {deciding.head}"
    return True, f"better at {deciding.head}, worse at none"


def _compare(
    champion: Version, candidate: Version, head: str | None, alpha: float, data: str | None, tracking: TrackingConfig
) -> tuple[Compared, ...]:
    with temporary_folder("promote") as work:
        folders = [
            download_version(tracking, version, work / role)
            for version, role in ((champion, CHAMPION), (candidate, CANDIDATE))
        ]
        infos = [read_info(folder) for folder in folders]
        sets = [_test_set(info, version) for info, version in zip(infos, (champion, candidate), strict=True)]
        if sets[0].digest != sets[1].digest:
            raise UserError(
                f"{candidate} was evaluated on {_say(sets[1])}, the champion (version {champion.version}) on "
                f"{_say(sets[0])}: figures of different test sets do not compare; evaluate both on one"
            )
        common = [task for task in infos[0].tasks if task in infos[1].tasks]
        if head is not None and head not in common:
            raise NoSuchHeadError(unknown("--head", head, common))
        if not common:
            raise UserError(f"{candidate} has none of the champion's heads {', '.join(infos[0].tasks)}")
        asked = [
            _ask(folder, str(version), data) for folder, version in zip(folders, (champion, candidate), strict=True)
        ]
    if not np.array_equal(asked[0].sample_ids, asked[1].sample_ids):
        raise UserError("the two read different pictures of the test set; one of them may be damaged")
    order = sorted(common, key=lambda task: task != (head or common[0]))
    return tuple(
        _compare_head(task, infos[0].tasks[task], asked[0].scores[task], asked[1].scores[task], alpha) for task in order
    )


def _test_set(info: ModelInfo, version: Version) -> TestSet:
    if info.origin is None:
        raise UserError(f"{version}: does not say what it was evaluated on; register it again")
    return info.origin.test_set


def _say(test_set: TestSet) -> str:
    return f"{test_set.dataset}/{test_set.split} ({test_set.num_samples} pictures, digest {test_set.digest[:16]})"


def _ask(folder: Path, source: str, data: str | None) -> Asked:
    predictor = open_model(folder)
    return ask(predictor, *open_test_set(predictor.info, source, data))


def _compare_head(
    head: str, reading: HeadOutput, champion: NDArray[np.float64], candidate: NDArray[np.float64], alpha: float
) -> Compared:
    labelled = ~np.isnan(champion) & ~np.isnan(candidate)
    champion, candidate = champion[labelled], candidate[labelled]
    if reading.type == "classification":
        return compare_right(head, champion > 0, candidate > 0, alpha)
    return compare_errors(head, champion, candidate, alpha, metric_of(reading))
