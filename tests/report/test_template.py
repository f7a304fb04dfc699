"""The page's template and what fills it agree; the page itself is looked at by longer tests."""

from importlib.resources import files
from typing import Any

import pytest
from jinja2 import Environment, Template, meta

from hmtl_dist.report.page import write_page
from hmtl_dist.report.study import Study


def test_the_template_uses_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def render(_: Template, **names: Any) -> str:
        given.update(names)
        return ""

    monkeypatch.setattr(Template, "render", render)
    write_page(Study("made", "http://127.0.0.1:5000"))
    source = files("hmtl_dist.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    assert meta.find_undeclared_variables(Environment(autoescape=True).parse(source)) == set(given)
