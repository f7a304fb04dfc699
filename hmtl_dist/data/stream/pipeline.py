# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false
"""The samples of a plan as a webdataset pipeline."""

from collections.abc import Iterable
from typing import cast

from webdataset.pipeline import DataPipeline

from hmtl_dist.data.stream.reader import Reader, Sample


def planned_samples(reader: Reader) -> Iterable[Sample]:
    """Return the webdataset pipeline of a reader's samples; webdataset's own stages may be composed after it.

    A stage must keep the samples' number and order: the plan says in which slot each one goes.
    """
    return cast(Iterable[Sample], DataPipeline(lambda: iter(reader)))
