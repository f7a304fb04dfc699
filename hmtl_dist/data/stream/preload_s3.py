"""Imported by the server of the data-loader processes, for all of them, where their data lies in S3."""

from contextlib import suppress

from hmtl_dist.data.storage.client import read_service_data
from hmtl_dist.errors import UserError

with suppress(UserError):  # it saves time, no more: what is wrong is told by whoever needs S3
    read_service_data()
