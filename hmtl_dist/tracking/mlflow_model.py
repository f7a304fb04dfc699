"""The models-from-code file of our MLflow models: MLflow runs this file instead of unpickling anything.

Our own modules are imported when the model is loaded, not when this file is read: they travel with the model.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    from hmtl_dist.tracking.model_folder import Predictor


class FaceModel(PythonModel):
    """Predicts a table with a column a class (probability) and a regressed label, a row a picture."""

    _predictor: "Predictor"

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights from the model's artifacts."""
        from hmtl_dist.tracking.model_folder import Predictor

        self._predictor = Predictor(Path(context.artifacts["model"]))

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base has no types, so returns None
        self,
        context: PythonModelContext | None,
        model_input: np.ndarray,  # MLflow knows the bare class only
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predict from RGB pictures of the model's size, uint8 `[N, H, W, 3]`.

        Called on the unwrapped model (`loaded.unwrap_python_model()`), which checks no signature, it also takes a list
        of whole JPEG or PNG files, which are cropped as in evaluation.
        """
        del context, params
        given: Any = model_input
        pictures = given if isinstance(given, np.ndarray) else self._predictor.decode(given)
        return pd.DataFrame(self._predictor.predict(pictures))


set_model(FaceModel())
