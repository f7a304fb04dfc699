"""Train Hybrid Multi-Task Learning models for faces on Ray Train, DeepSpeed, WebDataset and MLflow.

Importing this package is cheap: Ray, DeepSpeed, MLflow, timm and torch are imported by the modules that need them.
"""

__version__ = "0.1.0"
