"""No secret passes."""

import io
import logging
from pathlib import Path

import pytest

from hmtl_dist.tracking.redact import RedactFilter, redact, redact_file, redact_named

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize(
    "text",
    [
        f"https://user:{SECRET[:9]}@mlflow.example.org/api",
        f"aws_secret_access_key = {SECRET}",
        f'{{"password": "{SECRET}"}}',
        f"MLFLOW_TRACKING_TOKEN={SECRET}",
        f"Authorization: Basic {SECRET}",
        f"authorization: bearer {SECRET}",
        f"GET /b/k?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_masks_what_has_the_form_of_a_secret(text: str) -> None:
    assert SECRET[:9] not in redact(text)


@pytest.mark.parametrize("token", ["AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "hf_" + "a1B2" * 8])
def test_masks_tokens_that_tell_themselves(token: str) -> None:
    assert redact(f"using {token} now") == "using *** now"


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD", "X_API_KEY"]
)
def test_masks_the_values_of_secret_environment_variables_wherever_they_stand(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, SECRET)
    assert (
        redact(f"it is <{SECRET}>, encoded wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCYEXAMPLEKEY") == "it is <***>, encoded ***"
    )


def test_masks_the_password_of_a_url_in_the_environment_when_it_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{SECRET[:9]}@example.org")
    assert redact(f"denied for {SECRET[:9]}") == "denied for ***"


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/faces/train",
        "engine.zero_stage: 2",
        "token_dropout: 0.1",
        "tokens: 128",
        "password: null",
        "http://127.0.0.1:5000/#/experiments/1",
        "step 10/100 loss 0.5",
    ],
)
def test_leaves_everything_else_alone(text: str) -> None:
    assert redact(text) == text


def test_masks_a_whole_value_by_its_name() -> None:
    assert redact_named("service.password", "hunter2 and more") == "***"


def test_keeps_an_empty_value_of_a_secret_name() -> None:
    assert redact_named("service.password", "None") == "None"


def test_a_file_is_copied_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    (tmp_path / "run.log").write_text(f"one\ntwo {SECRET}\n")
    redact_file(tmp_path / "run.log", tmp_path / "clean.log")
    assert (tmp_path / "clean.log").read_text() == "one\ntwo ***\n"


def test_the_log_filter_cleans_messages_arguments_and_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.addFilter(RedactFilter())
    logger = logging.getLogger("test.redact")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        raise RuntimeError(f"refused {SECRET}")
    except RuntimeError:
        logger.exception("with %s", SECRET)
    finally:
        logger.removeHandler(handler)
    assert "refused ***" in out.getvalue()
    assert SECRET not in out.getvalue()
