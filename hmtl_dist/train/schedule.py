"""What happens after which optimizer step: a pure function of the step, so that every rank computes the same."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """When to report, evaluate, save and end; steps are optimizer steps, counted from 1."""

    steps_per_epoch: int
    total_steps: int
    batch_size: int
    """Samples of a step over all ranks."""
    report_every_steps: int
    evaluate_every_epochs: int
    checkpoint_every_epochs: int
    checkpoint_every_steps: int | None = None

    def ends(self, step: int) -> bool:
        """Whether training ends with this step."""
        return step >= self.total_steps

    def closes_epoch(self, step: int) -> bool:
        """Whether this step is the last of its epoch."""
        return step % self.steps_per_epoch == 0

    def evaluates(self, step: int) -> bool:
        """Whether to evaluate after this step."""
        return self.ends(step) or step % (self.steps_per_epoch * self.evaluate_every_epochs) == 0

    def saves(self, step: int) -> bool:
        """Whether to save after this step."""
        every = self.checkpoint_every_steps
        return (
            self.ends(step)
            or step % (self.steps_per_epoch * self.checkpoint_every_epochs) == 0
            or (every is not None and step % every == 0)
        )

    def reports(self, step: int) -> bool:
        """Whether a report window ends with this step; evaluating and saving end one too."""
        return step % self.report_every_steps == 0 or self.evaluates(step) or self.saves(step)
