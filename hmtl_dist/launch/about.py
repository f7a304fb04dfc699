"""What a person who looks at a run in MLflow wants to read first: notes and a description made of its configuration."""

from hmtl_dist.run_config import RunConfig
from hmtl_dist.tasks.age import AgeConfig
from hmtl_dist.tasks.head_pose import HeadPoseConfig

_UNITS = ((HeadPoseConfig, "degrees"), (AgeConfig, "years"))


def notes(config: RunConfig) -> dict[str, str]:
    """Return tags of a run by which runs are told apart, and the description on its page (MLflow's own tags)."""
    return {
        "mlflow.source.name": config.recipe or "hmtl-dist",
        "mlflow.source.type": "LOCAL",
        "mlflow.note.content": description(config),
        "tasks": ", ".join(config.tasks),
    }


def description(config: RunConfig) -> str:
    """Describe a run in Markdown: what learns what from which pictures, for how long, and how to go on with it."""
    weights = [f"{name} ({task.type}, weight {task.weight:g})" for name, task in config.tasks.items()]
    length = f"{config.train.epochs} epoch(s)"
    if config.train.max_steps is not None:
        length += f" or {config.train.max_steps} steps, if sooner,"
    lines = [
        f"- **tasks**: {', '.join(weights)}",
        f"- **backbone**: {config.model.backbone}, pictures of {config.data.image_size} px, {config.optim.optimizer}",
        f"- **data**: {config.data.url}, {length} of batch {config.data.batch_size}, seed {config.seed}",
        f"- **recipe**: {config.recipe or 'none'}",
        f"- **go on, evaluate**: `hmtl-dist resume {config.name}`, `hmtl-dist evaluate {config.name}`",
    ]
    units = [
        f"`{name}/mae` in {unit}"
        for name, task in config.tasks.items()
        for kind, unit in _UNITS
        if isinstance(task, kind)
    ]
    told = ["losses are without the tasks' weights", *units]
    return "\n".join([*lines, f"- **figures**: {'; '.join(told)}; accuracies are shares of 1"])
