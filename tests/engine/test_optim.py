"""The learning rate as a function of the step, the optimizer's groups, and settings that do not go together."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from hmtl_dist.engine.optim import EngineConfig, OptimConfig, build_optimizer, check_optimizer_fits, learning_rate_at
from hmtl_dist.errors import UserError
from tests.engine.nets import SmallNet


def rates(config: OptimConfig, total_steps: int = 100) -> list[float]:
    return [learning_rate_at(config, step, total_steps=total_steps, steps_per_epoch=10) for step in range(total_steps)]


def test_warm_up_rises_in_equal_steps_to_the_learning_rate() -> None:
    assert rates(OptimConfig(learning_rate=1.0, warmup_steps=4))[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_warm_up_in_epochs_is_the_same_warm_up() -> None:
    assert rates(OptimConfig(warmup_epochs=0.4)) == rates(OptimConfig(warmup_steps=4))


def test_cosine_falls_from_the_learning_rate_through_the_middle_to_the_end() -> None:
    config = OptimConfig(learning_rate=1.0, min_learning_rate=0.2)
    found = [learning_rate_at(config, step, total_steps=100, steps_per_epoch=10) for step in (0, 50, 100, 150)]
    assert found == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_cosine_never_rises() -> None:
    found = rates(OptimConfig())
    assert found == sorted(found, reverse=True)


def test_step_divides_at_each_milestone() -> None:
    found = rates(OptimConfig(learning_rate=1.0, schedule="step", step_milestones=(0.5, 0.8)))
    assert found == pytest.approx([1.0] * 50 + [0.1] * 30 + [0.01] * 20)


def test_constant_stays() -> None:
    assert set(rates(OptimConfig(schedule="constant"))) == {OptimConfig().learning_rate}


def test_norms_and_biases_have_no_weight_decay() -> None:
    net = SmallNet()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed = {
        names[id(parameter)]
        for group in build_optimizer(net, OptimConfig(weight_decay=0.1)).param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    assert decayed == {"body.0.weight", "body.3.weight", "linear.weight"}


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        (EngineConfig, {"zero_stage": 3}, r"engine\.zero_stage=3 is not supported: .* allowed are 0, 1, 2"),
        (EngineConfig, {"kind": "plain", "zero_stage": 1}, r"engine\.zero_stage=1 needs engine\.kind=deepspeed"),
        (EngineConfig, {"zero_stage": 1, "channels_last": True}, r"engine\.channels_last=true needs engine\.zero_st"),
        (OptimConfig, {"warmup_steps": 1, "warmup_epochs": 1}, r"optim\.warmup_steps and optim\.warmup_epochs"),
        (OptimConfig, {"learning_rate": 1e-4, "min_learning_rate": 1e-3}, r"optim\.min_learning_rate=0\.001 is above"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    section: type[EngineConfig | OptimConfig], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        section.model_validate(settings)


def test_lookahead_is_refused_where_zero_steps_group_by_group() -> None:
    with pytest.raises(UserError, match=r"optim\.optimizer=lookahead_adamw needs engine\.zero_stage=0, given 1"):
        check_optimizer_fits(OptimConfig(optimizer="lookahead_adamw"), EngineConfig(zero_stage=1))


def test_the_sections_load_neither_torch_nor_deepspeed() -> None:
    code = "import sys, hmtl_dist.engine.optim; print({'torch', 'deepspeed', 'timm'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"
