"""Where metrics, pictures and models go: a durable JSONL journal, delivered to MLflow."""
