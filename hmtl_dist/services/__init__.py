"""A local S3 server and MLflow server, for demos, tests and single machines."""
