"""Train Hybrid Multi-Task Learning models for faces on Ray Train, DeepSpeed, WebDataset and MLflow.

Importing this package is cheap: Ray, DeepSpeed, MLflow, timm and torch are imported by the modules that need them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from hmtl_dist.inference.predictor import Predictor

__all__ = ["load"]
__version__ = "0.1.0"


def load(
    model: str | Path, *, weights: Literal["last", "ema", "best"] | None = None, device: str = "cpu"
) -> "Predictor":
    """Open a trained model, ready to be asked.

    Args:
        model: A run (its name, folder or URL), one of its checkpoints, the folder of an exported model, or a registered
            version (`models:/NAME@ALIAS`, `models:/NAME/VERSION`), which is looked up as the commands do: in the MLflow
            of MLFLOW_TRACKING_URI, else in that of the local services, else in the home folder's database.
        weights: Which of a run's weights; by default the averaged ones if it kept some.
        device: Where it computes, such as `cpu` or `cuda`.

    Raises:
        hmtl_dist.errors.UserError: There is none under that name, or it is damaged.
    """
    from hmtl_dist.export.folder import open_model
    from hmtl_dist.launch.models import model_folder
    from hmtl_dist.services.store import known_mlflow

    with model_folder(str(model), known_mlflow(), weights) as folder:
        return open_model(folder, device)
