"""The model as a server's process has it: picture files in, answers or refusals out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hmtl_dist.data.decode import DecodeError, TooManyPixelsError
from hmtl_dist.export.folder import open_model
from hmtl_dist.inference.predictor import Predictor
from hmtl_dist.serve.answers import About, Answer, Explanation, Head, Refusal


class ServedModel:
    """A stored model that is asked for one picture or for several at once.

    Args:
        folder: The model's folder.
        device: Where it computes.

    Raises:
        UserError: There is no model, or it is damaged.
    """

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.predictor: Predictor = open_model(folder, device)

    def decode(self, file: bytes) -> NDArray[np.uint8] | Refusal:
        """Decode and crop a picture file to uint8 `[H, W, 3]`; several threads may do so at once."""
        try:
            return self.predictor.decode([file])[0]
        except TooManyPixelsError as error:
            return Refusal(413, _sentence(error))
        except DecodeError as error:
            return Refusal(422, _sentence(error))

    def predict(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Answer]:
        """Predict from pictures of the model's size, each uint8 `[H, W, 3]`."""
        table = self.predictor.predict(np.stack(pictures))
        rows = zip(*(column.tolist() for column in table.values()), strict=True)
        return [
            Answer(dict(zip(table, row, strict=True)), batch_size=len(pictures), first=number == 0)
            for number, row in enumerate(rows)
        ]

    def explain(self, picture: NDArray[np.uint8], head: str, name: str) -> Explanation:
        """Say which region of a picture `[H, W, 3]` spoke for an output; the likeliest class or first number if empty.

        Raises:
            UserError: There is no such head or name, or the model cannot be explained.
        """
        info = self.predictor.info
        if not name and info.tasks[head].type == "classification":
            (answer,) = self.predict([picture])
            name = max(info.tasks[head].names, key=lambda one: answer.values[f"{head}.{one}"])
        name = name or info.tasks[head].names[0]
        (heat,) = self.predictor.explain(picture[None], head, name)
        rows: list[list[float]] = heat.astype(np.float64).round(4).tolist()
        return Explanation(head=head, name=name, crop=info.augment.eval_crop, map=rows)


def describe(predictor: Predictor, name: str, max_bytes: int) -> About:
    """Say what is served.

    Args:
        predictor: The model.
        name: As it was named at the start.
        max_bytes: Of a picture's file.
    """
    info = predictor.info
    fields = info.origin.fields if info.origin else {}
    heads = {
        task: Head(
            kind="classes" if head.type == "classification" else "numbers",
            names=head.names,
            units={label: fields[label].unit for label in head.names if label in fields and fields[label].unit},
        )
        for task, head in info.tasks.items()
    }
    return About(
        model=name,
        heads=heads,
        image_size=info.image_size,
        crop=info.augment.eval_crop,
        explains=predictor.explains,
        max_bytes=max_bytes,
        run=info.origin.run if info.origin else "",
        sha256=info.sha256,
    )


def _sentence(error: DecodeError) -> str:
    reason = " ".join(str(error).split())
    return f"The picture cannot be read: {reason}." if reason else "The picture cannot be read."
