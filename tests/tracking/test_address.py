"""The address of MLflow: what is one, and who is told when it is none."""

import pytest

from hmtl_dist.errors import UserError
from hmtl_dist.tracking.config import TrackingConfig, tracking_uri


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:5000",
        "https://mlflow.example.org/tracking",
        "sqlite:////tmp/mlflow.db",
        "postgresql+psycopg2://host/name",
        "databricks",
        "databricks://profile",
        "arn:aws:sagemaker:eu-west-1:1:mlflow-tracking-server/x",
    ],
)
def test_addresses_of_servers_databases_and_plugins_are_taken(address: str) -> None:
    assert tracking_uri(TrackingConfig(uri=address)) == address


@pytest.mark.parametrize("address", ["nonsense", "./mlruns", "/tmp/mlruns", "http:", "127.0.0.1:5000", "http://a b"])
def test_anything_else_is_one_line_with_where_it_came_from(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^tracking.uri: .*is no address; give http://HOST:PORT"):
        tracking_uri(TrackingConfig(uri=address))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: "):
        tracking_uri(TrackingConfig())
