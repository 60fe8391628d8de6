"""Pages of this package's templates, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from nnunet_kd.system.files import write_atomically


def write_page(template: str, content: Mapping[str, Any], path: Path) -> None:
    """Fill one of this package's templates, and write the page whole or not at all."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nnunet_kd.evaluation", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(template).render(**content)
    write_atomically(path, lambda file: file.write(page.encode()))
