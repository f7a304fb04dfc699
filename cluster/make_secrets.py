"""Writes the secrets of a cluster as files into a new folder: python3 cluster/make_secrets.py [FOLDER].

Each is drawn at random; nothing is printed and nothing that exists is replaced. The folder is for its owner alone; the
files in it can be read by the containers that they are mounted into, whatever user those run as.
"""

import json
import sys
from pathlib import Path
from secrets import token_hex

BUCKETS = {"data": "hmtl-data", "runs": "hmtl-runs", "mlflow": "hmtl-mlflow"}


def identities() -> dict[str, tuple[str, str, list[str]]]:
    """Return name -> (access key, secret key, rights): nodes only read data and only write runs."""
    rights = {
        "admin": ["Admin", "Read", "Write", "List", "Tagging"],
        "nodes": [
            *(f"{right}:{BUCKETS['data']}" for right in ("Read", "List")),
            *(f"{right}:{BUCKETS['runs']}" for right in ("Read", "List", "Write")),
        ],
        "mlflow": [f"{right}:{BUCKETS['mlflow']}" for right in ("Read", "List", "Write")],
    }
    return {name: (token_hex(10).upper(), token_hex(20), allowed) for name, allowed in rights.items()}


def contents() -> dict[str, str]:
    """Return the text of every file by its name."""
    keys = identities()
    known = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": allowed}
        for name, (key, secret, allowed) in keys.items()
    ]
    nodes = {"mlflow_tracking_username": "nodes", "mlflow_tracking_password": token_hex(20)}
    files = {
        "ray_token": token_hex(32),
        "postgres_password": token_hex(20),
        "mlflow_admin_password": token_hex(20),
        "mlflow_secret_key": token_hex(32),
        "mlflow_credentials": "[mlflow]\n" + "".join(f"{name} = {value}\n" for name, value in nodes.items()),
        "s3_identities.json": json.dumps({"identities": known}, indent=2) + "\n",
    }
    for name, (key, secret, _) in keys.items():
        files[f"aws_{name}"] = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    return files


def main(arguments: list[str]) -> int:
    """Write the folder."""
    folder = Path(arguments[0] if arguments else Path(__file__).parent / "secrets")
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        print(f"error: {folder}: {error.strerror}; secrets that exist are never replaced", file=sys.stderr)
        return 2
    for name, text in contents().items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o644)
    print(f"{folder}: made; keep it out of version control and backups that others read")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
