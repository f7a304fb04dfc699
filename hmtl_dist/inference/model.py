"""What inference keeps: the backbone and the supervised heads, answering in what a person reads."""

from collections.abc import Mapping

from torch import Tensor, nn

from hmtl_dist.model.hmtl import HMTLModel, ModelConfig
from hmtl_dist.tasks.base import CLEAN, LinearHead
from hmtl_dist.tasks.reading import HeadOutput, read_output


class InferenceModel(nn.Module):
    """Backbone and supervised heads, without pretext heads.

    Args:
        config: The backbone; no weights are fetched.
        heads: How each head is read, by task name.
    """

    def __init__(self, config: ModelConfig, heads: Mapping[str, HeadOutput]) -> None:
        super().__init__()
        specs = {name: LinearHead(head.out_features) for name, head in heads.items()}
        config = config.model_copy(update={"pretrained": False})
        self.model = HMTLModel(config, specs, wiring=dict.fromkeys(specs, (CLEAN,)))
        self.readings = dict(heads)
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Answer pictures in [0, 1], float `[B, 3, H, W]`; they are normalised inside.

        Returns:
            Probabilities of the classes, or numbers in their labels' units, `[B, len(names)]` by task.
        """
        outputs = self.model.predict(images)
        return {task: read_output(head, outputs[task]) for task, head in self.readings.items()}
