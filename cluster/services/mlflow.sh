#!/bin/sh
# Starts the MLflow server of a cluster: PostgreSQL for runs and users, artifacts in S3 through the server, passwords,
# and only the host names that it is known by. Secrets come as files, never as arguments.
#
# Environment:
#   MLFLOW_SECRETS         folder with mlflow_admin_password, mlflow_secret_key and postgres_password
#   POSTGRES_HOST, POSTGRES_PORT (5432), POSTGRES_DB (mlflow), POSTGRES_USER (mlflow)
#   MLFLOW_ARTIFACTS       where artifacts go, such as s3://mlflow
#   MLFLOW_ALLOWED_HOSTS   host names, with ports, that clients may ask for, separated by commas
#   MLFLOW_HOST (0.0.0.0), MLFLOW_PORT (5000), MLFLOW_WORKERS (2)
#   AWS_ENDPOINT_URL, AWS_SHARED_CREDENTIALS_FILE   the S3 server and the server's own key to it
set -eu

: "${MLFLOW_SECRETS:?}" "${POSTGRES_HOST:?}" "${MLFLOW_ARTIFACTS:?}" "${MLFLOW_ALLOWED_HOSTS:?}"
umask 077

database="postgresql://${POSTGRES_HOST}:${POSTGRES_PORT:-5432}/${POSTGRES_DB:-mlflow}"
PGUSER="${POSTGRES_USER:-mlflow}"
PGPASSWORD="$(cat "$MLFLOW_SECRETS/postgres_password")"
MLFLOW_FLASK_SERVER_SECRET_KEY="$(cat "$MLFLOW_SECRETS/mlflow_secret_key")"
MLFLOW_AUTH_ADMIN_PASSWORD="$(cat "$MLFLOW_SECRETS/mlflow_admin_password")"
MLFLOW_AUTH_CONFIG_PATH="$(mktemp)"
export PGUSER PGPASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_AUTH_CONFIG_PATH
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true

# libpq takes user and password from the environment: they are in no URL, no argument and no log
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<END
[mlflow]
default_permission = READ
database_uri = $database
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END

exec python -m mlflow server --app-name basic-auth \
    --host "${MLFLOW_HOST:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" \
    --backend-store-uri "$database" --artifacts-destination "$MLFLOW_ARTIFACTS" \
    --allowed-hosts "$MLFLOW_ALLOWED_HOSTS"
