# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false
"""A process of Ray Tune's that trains one trial after another.

It is imported before it can say anything, and so imports neither torch nor what needs it: `setup` does.
"""

import math
import os
import threading
from typing import TYPE_CHECKING, Any

import pyarrow.fs
import ray
import ray.exceptions
from ray import tune
from ray.train._internal.session import _TrainingResult

from hmtl_dist import garbage

if TYPE_CHECKING:
    from hmtl_dist.tune.trials import Trial

STEP = "global_step"
PARAMS, TRIAL, TOLD = "params", "trial", "told"
"""Keys of a trial's configuration as Tune holds it: the values by path, what does not change, as JSON, and the global
step of the last report."""


class TrialActor(tune.Trainable):
    """A process that trains one trial after another."""

    def setup(self, config: dict[str, Any], mailbox: Any = None) -> None:
        """Wait for the stop request from now on; the trial itself starts when Tune asks for its first result."""
        garbage.collect_rarely()
        from hmtl_dist.tune.member import Member

        self._donor: str | None = None
        self._gone = False
        self._member = Member(mailbox.push.remote)
        threading.Thread(target=self._wait_for_stop, args=(mailbox,), name="stop request", daemon=True).start()

    def _wait_for_stop(self, mailbox: Any) -> None:
        try:
            ray.get(mailbox.stop_requested.remote())
        except ray.exceptions.RayError:
            if not self._gone:  # the mailbox ends with its driver: nobody is left to train for, another may begin
                os._exit(1)
        self._member.ask_to_stop()

    def step(self) -> dict[str, Any]:
        """Train on to the next evaluation, or to the end."""
        if not self._member.started:
            self._member.start(self._trial(), self.config[PARAMS], self._donor, self.config[TOLD])
            self._donor = None
        news = self._member.next()
        metrics: dict[str, Any] = {**news.metrics, STEP: news.step, "news": news}
        if news.status != "RUNNING":
            metrics["done"] = True
        if news.status == "FAILED":  # schedulers pass over what is not a number
            metrics |= dict.fromkeys(self._trial().metrics, math.nan)
        return metrics

    def _trial(self) -> "Trial":
        from hmtl_dist.tune.trials import Trial

        return Trial.model_validate_json(self.config[TRIAL])

    def save(self, checkpoint_dir: str | None = None) -> Any:
        """Return the newest checkpoint as Tune passes it on: nothing but its URL."""
        url = self._member.checkpoint()
        pointer = None if url is None else tune.Checkpoint(url, filesystem=pyarrow.fs.LocalFileSystem())
        metrics = {key: value for key, value in (self._last_result or {}).items() if key != "news"}
        return _TrainingResult(checkpoint=pointer, metrics=metrics)

    def restore(self, checkpoint_path: Any) -> None:
        """Note from whose checkpoint to go on."""
        self._donor = checkpoint_path.checkpoint.path

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the trial before, and be ready for another one."""
        self._donor = None
        return self._member.end()

    def cleanup(self) -> None:
        """End the trial; its process goes."""
        self._gone = True
        self._member.end()
