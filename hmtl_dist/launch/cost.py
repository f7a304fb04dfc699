"""What a run costs, by the price of a machine's hour: its machines, times its wall time, start and evaluation included.

`cost.json` in the run's folder adds up the sessions of a run that was stopped and went on. A session that was killed
leaves no trace there: neither its time nor its pictures count.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from hmtl_dist.config.dialect import parse_json
from hmtl_dist.data.storage import ObjectMissingError, open_storage
from hmtl_dist.errors import UserError
from hmtl_dist.tracking.redact import first_line

logger = logging.getLogger(__name__)

FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What a run has cost so far, in the currency of the price."""

    run: float
    per_million_images: float | None
    """Cost of a million pictures trained on; None before the first."""
    node_hours: float
    """Hours of a machine, over all of them."""


def account(price: float, folder: str, *, nodes: int, seconds: float, images: int) -> Cost:
    """Add a session to a run's account and return what the run has cost; an account that cannot be kept is no error.

    Args:
        price: Of one machine for an hour.
        folder: URL or path of the run's folder.
        nodes: Machines of this session.
        seconds: Its wall time.
        images: Pictures trained on in it, repetitions counted.
    """
    known = _read(folder)
    node_seconds, images = known["node_seconds"] + nodes * seconds, int(known["images"]) + images
    try:
        open_storage(folder).write(FILE, json.dumps({"node_seconds": node_seconds, "images": images}).encode())
    except (UserError, OSError) as error:
        logger.warning("cannot keep the run's account (%s)", first_line(error))
    cost = price * node_seconds / 3600
    return Cost(cost, cost / images * 1e6 if images else None, node_seconds / 3600)


def _read(folder: str) -> Mapping[str, float]:
    empty = {"node_seconds": 0.0, "images": 0.0}
    try:
        known: object = parse_json(open_storage(folder).read(FILE))
    except (ObjectMissingError, UserError, ValueError, OSError):
        return empty
    if not isinstance(known, dict):
        return empty
    entries = cast("dict[str, object]", known)
    read = {name: entries.get(name) for name in empty}
    return {name: float(value) if isinstance(value, (int, float)) else 0.0 for name, value in read.items()}
