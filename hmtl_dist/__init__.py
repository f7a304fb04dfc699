"""Train Hybrid Multi-Task Learning models for faces on Ray Train, DeepSpeed, WebDataset and MLflow.

Importing this package is cheap: Ray, DeepSpeed, MLflow, timm and torch are imported by the modules that need them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

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
            of MLFLOW_TRACKING_URI, else in that of the local services, else in the home folder's database. An exported
            folder of that name comes before a run. Of a run, the index of its test set is read too.
        weights: Which of a run's weights; by default the averaged ones if it kept some.
        device: Where it computes, such as `cpu` or `cuda`; ONNX computes on the CPU.

    Raises:
        hmtl_dist.errors.UserError: There is none under that name, it is damaged, a run's data cannot be read, or this
            machine has no such device.

    Examples:
        >>> from pathlib import Path
        >>> import hmtl_dist
        >>> model = hmtl_dist.load("heavier")
        >>> answers = model.predict([Path("photo.jpg"), Path("photo.jpg").read_bytes()])
        >>> list(answers)
        ['expression.happy', 'expression.sad', 'age.age']
        >>> answers["age.age"].shape
        (2,)
    """
    import torch

    from hmtl_dist.errors import UserError
    from hmtl_dist.export.folder import open_model
    from hmtl_dist.launch.models import model_folder
    from hmtl_dist.services.store import known_mlflow

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch built without CUDA asserts
        raise UserError(f"device '{device}' cannot be used: {str(error).splitlines()[0]}") from error
    # building a network draws random numbers, and a run's seeds them: the caller's stay as they are
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    kept = cast("AbstractContextManager[None]", torch.random.fork_rng(devices=gpus))  # pyright: ignore[reportUnknownMemberType]
    with kept, model_folder(str(model), known_mlflow(), weights) as folder:
        return open_model(folder, device)
