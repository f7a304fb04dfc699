"""The models-from-code file of our MLflow models: MLflow runs this file instead of unpickling anything.

Our own modules are imported when the model is loaded, not when this file is read: they travel with the model, in one
archive beside it.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

_CODE = Path(__file__).with_name("code") / "hmtl_dist.zip"
if _CODE.exists():  # not where the model is made
    sys.path.insert(0, str(_CODE))

PICTURE = "picture"
"""The one column that goes in."""

if TYPE_CHECKING:
    from hmtl_dist.inference.predictor import Predictor


class FaceModel(PythonModel):
    """Predicts a table with a column a class (probability) and a regressed label, a row a picture."""

    _predictor: "Predictor"

    def load_context(self, context: PythonModelContext) -> None:
        """Load the weights from the model's artifacts."""
        from hmtl_dist.inference.predictor import Predictor

        self._predictor = Predictor(Path(context.artifacts["model"]))

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  # the base has no types, so returns None
        self,
        context: PythonModelContext | None,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Predict from the column `picture`, a picture a row.

        A picture is a whole JPEG or PNG file, as bytes or as their base64 text (which is how JSON carries them), or
        RGB pixels of the model's size, uint8 `[H, W, 3]`. A file is cropped as in evaluation, pixels are taken as they
        are. Called on the unwrapped model (`loaded.unwrap_python_model()`), the column alone will do.
        """
        del context, params
        given: Any = model_input
        pictures: list[Any] = []
        for cell in given[PICTURE] if isinstance(given, pd.DataFrame) else given:
            # MLflow makes a single row of a column of texts that it got as a dictionary
            pictures += cell if isinstance(cell, list) and cell and isinstance(cell[0], str) else [cell]
        return pd.DataFrame(self._predictor.predict(pictures))


set_model(FaceModel())
