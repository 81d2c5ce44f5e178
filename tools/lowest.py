"""Print the lowest version that pyproject.toml allows of each requirement, as pip's constraints."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
groups = project["optional-dependencies"]
lines = [*project["dependencies"], *(line for group in groups.values() for line in group)]
floors = {found[1]: found[2] for line in lines if (found := re.match(r"([\w-]+)>=([\d.]+)", line))}
print(*(f"{name}=={floor}" for name, floor in sorted(floors.items())), sep="\n")
