"""What a parameter of a space may be drawn from."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, model_validator
from typing_extensions import override

from hmtl_dist.config.base import Section

Scalar = bool | int | float | str | None
MAX_CHOICES = 1000
EDGE = 4.0
"""Standard deviations about its mean that a normal distribution without bounds is drawn from."""


class Distribution(Section, ABC):
    """What every distribution shares."""

    when: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Draw it only where other parameters have one of these values: path to value, or to a list of values."""
    optional: bool = False
    """Leave it out where the recipe has not the section that it is in, such as the task that it weighs."""

    @abstractmethod
    def extremes(self) -> list[Any]:
        """Return the values that must be allowed for all between them to be."""

    def steps(self) -> list[Any] | None:
        """Return every value, None where there are too many to count."""
        return None

    @abstractmethod
    def holds(self, value: Any) -> bool:
        """Whether the value may be drawn."""

    @abstractmethod
    def said(self) -> str:
        """Say what may be drawn."""


class _Range(Distribution):
    low: float
    """Least value."""
    high: float
    """Greatest value."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}; give low below high")
        return self

    @override
    def extremes(self) -> list[Any]:
        return [self.low, self.high]

    @override
    def holds(self, value: Any) -> bool:
        return _is_number(value) and self.low <= value <= self.high

    @override
    def said(self) -> str:
        return f"{self.low:g} to {self.high:g}"


class Uniform(_Range):
    """A number between two bounds."""

    type: Literal["uniform"]


class LogUniform(_Range):
    """A number between two bounds, every factor equally likely."""

    type: Literal["loguniform"]

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if self.low <= 0:
            raise ValueError(f"low={self.low:g} is not above 0, which a loguniform needs; raise it or use uniform")
        return self


class QUniform(_Range):
    """A number between two bounds, in steps from the lower one."""

    type: Literal["quniform"]
    q: Annotated[float, Field(gt=0)]
    """Width of a step."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = (self.high - self.low) / self.q
        if count < 1 or abs(count - round(count)) > 1e-6:
            raise ValueError(f"q={self.q:g} does not divide the range from {self.low:g} to {self.high:g}")
        return self

    @override
    def steps(self) -> list[Any] | None:
        count = round((self.high - self.low) / self.q) + 1
        return [self.low + place * self.q for place in range(count)] if count <= MAX_CHOICES else None

    @override
    def holds(self, value: Any) -> bool:
        place = (value - self.low) / self.q if super().holds(value) else 0.5
        return abs(place - round(place)) < 1e-6

    @override
    def said(self) -> str:
        return f"{super().said()} in steps of {self.q:g}"


class RandInt(Distribution):
    """A whole number between two bounds, both of them included."""

    type: Literal["randint"]
    low: int
    """Least value."""
    high: int
    """Greatest value."""
    log: bool = False
    """Every factor equally likely."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}; give low below high")
        if self.log and self.low < 1:
            raise ValueError(f"low={self.low} is not above 0, which log=true needs")
        return self

    @override
    def extremes(self) -> list[Any]:
        return [self.low, self.high]

    @override
    def steps(self) -> list[Any] | None:
        return list(range(self.low, self.high + 1)) if self.high - self.low < MAX_CHOICES else None

    @override
    def holds(self, value: Any) -> bool:
        return _is_number(value) and value == int(value) and self.low <= value <= self.high

    @override
    def said(self) -> str:
        return f"a whole number from {self.low} to {self.high}"


class Choice(Distribution):
    """One of a list of values, which may be sections or null."""

    type: Literal["choice"]
    values: Annotated[tuple[Any, ...], Field(min_length=1, max_length=MAX_CHOICES)]
    """What to choose from."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for place, value in enumerate(self.values):
            if any(_same(value, other) for other in self.values[:place]):
                raise ValueError(f"values: {value!r} stands twice; leave one of them out")
        return self

    @override
    def extremes(self) -> list[Any]:
        return list(self.values)

    @override
    def steps(self) -> list[Any] | None:
        return list(self.values)

    @override
    def holds(self, value: Any) -> bool:
        return any(_same(value, other) for other in self.values)

    @override
    def said(self) -> str:
        return ", ".join(map(str, self.values))


class Normal(Distribution):
    """A number about a mean, between bounds if some are given."""

    type: Literal["normal"]
    mean: float
    """Mean, before it is cut off at the bounds."""
    sd: Annotated[float, Field(gt=0)]
    """Standard deviation, before it is cut off at the bounds."""
    low: float | None = None
    """Least value; four standard deviations below the mean if empty."""
    high: float | None = None
    """Greatest value; four standard deviations above the mean if empty."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest value."""
        low = self.mean - EDGE * self.sd if self.low is None else self.low
        high = self.mean + EDGE * self.sd if self.high is None else self.high
        return low, high

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"low={low:g} is not below high={high:g}; give low below high")
        if low >= self.mean + 2 * EDGE * self.sd or high <= self.mean - 2 * EDGE * self.sd:
            raise ValueError(f"nothing is drawn from {low:g} to {high:g} with mean={self.mean:g}, sd={self.sd:g}")
        return self

    @override
    def extremes(self) -> list[Any]:
        return list(self.bounds)

    @override
    def holds(self, value: Any) -> bool:
        low, high = self.bounds
        return _is_number(value) and low <= value <= high

    @override
    def said(self) -> str:
        low, high = self.bounds
        return f"{low:g} to {high:g}"


class Fixed(Distribution):
    """One value, the same in every trial."""

    type: Literal["fixed"]
    value: Any
    """The value."""

    @override
    def extremes(self) -> list[Any]:
        return [self.value]

    @override
    def steps(self) -> list[Any] | None:
        return [self.value]

    @override
    def holds(self, value: Any) -> bool:
        return _same(value, self.value)

    @override
    def said(self) -> str:
        return str(self.value)


AnyDistribution = Annotated[
    Uniform | LogUniform | QUniform | RandInt | Choice | Normal | Fixed, Field(discriminator="type")
]


def is_active(distribution: Distribution, drawn: "dict[str, Any]") -> bool:
    """Whether a parameter is drawn, given the values of those before it."""
    return all(path in drawn and allows(wanted, drawn[path]) for path, wanted in distribution.when.items())


def wanted_values(wanted: Any) -> Sequence[Any]:
    """Return the values that a condition names."""
    return cast("list[Any]", wanted) if isinstance(wanted, list) else (wanted,)


def allows(wanted: Any, value: Any) -> bool:
    """Whether a value is one that a condition names."""
    return any(_same(value, one) for one in wanted_values(wanted))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)
