"""Makes what a new cluster lacks: the buckets, and the user of MLflow that the nodes record as. Harmless to repeat.

Environment: AWS_ENDPOINT_URL and AWS_SHARED_CREDENTIALS_FILE of someone who may make buckets, HMTL_BUCKETS (names
separated by commas), MLFLOW_TRACKING_URI, MLFLOW_SECRETS (folder with mlflow_admin_password and mlflow_credentials).
"""

import base64
import configparser
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from hmtl_dist.data.storage import S3Storage
from hmtl_dist.errors import UserError


def make_user(server: str, secrets: Path) -> str:
    """Create the nodes' user as the administrator and say what came of it."""
    nodes = configparser.ConfigParser()
    nodes.read_string((secrets / "mlflow_credentials").read_text())
    name, password = nodes["mlflow"]["mlflow_tracking_username"], nodes["mlflow"]["mlflow_tracking_password"]
    admin = base64.b64encode(f"admin:{(secrets / 'mlflow_admin_password').read_text().strip()}".encode()).decode()
    request = urllib.request.Request(
        f"{server.rstrip('/')}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": name, "password": password}).encode(),
        headers={"Authorization": f"Basic {admin}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30):
            return f"user {name} made"
    except urllib.error.HTTPError as error:
        with error:
            if "RESOURCE_ALREADY_EXISTS" in error.read().decode(errors="replace"):
                return f"user {name} was there already"
        raise


def main() -> int:
    """Make buckets and the user."""
    try:
        for bucket in os.environ["HMTL_BUCKETS"].split(","):
            S3Storage(f"s3://{bucket}").create_bucket()
            print(f"bucket {bucket} is there")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        print(make_user(os.environ["MLFLOW_TRACKING_URI"], Path(os.environ["MLFLOW_SECRETS"])))
    except OSError as error:
        print(f"error: MLflow's user was not made: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
