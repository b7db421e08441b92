"""Templates to HTML text. Whatever a template is given is escaped, unless it is `markup` of our own making."""

from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup


def render(template: str, values: Mapping[str, Any]) -> str:
    """The template of that name below ``templates/``; a value that it misses is an error."""
    return _environment().get_template(template).render(**values)


def markup(html: str) -> Markup:
    """Text that is HTML already: charts, which escape what they show."""
    return Markup(html)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("statevla.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["b64"] = lambda data: b64encode(data).decode()
    return environment
