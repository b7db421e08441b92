"""What pyproject.toml and constraints.txt ask for can be had on a public machine, and is no more than what is used."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = {item.name: item for item in map(Requirement, PROJECT["dependencies"])}
EXTRAS = {
    name: {item.name: item for item in map(Requirement, items)}
    for name, items in PROJECT["optional-dependencies"].items()
}
PINNED = {
    item.name: item
    for item in (
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
}
BROUGHT = {"2.7.1": "3.3.1", "2.11.0": "3.6.0", "2.13.0": "3.7.1", "2.14.1": "3.8.0", "2.15.0": "3.9.0"}
"""The Triton that the public Linux build of each torch requires exactly (pip install --dry-run torch==…)."""


def modules_of(node: ast.stmt) -> list[str]:
    """The top-level modules that a statement imports."""
    if isinstance(node, ast.ImportFrom):
        return [str(node.module).split(".")[0]]
    return [alias.name.split(".")[0] for alias in node.names] if isinstance(node, ast.Import) else []


def test_torch_is_a_range_with_one_exact_version_in_the_constraints() -> None:
    specifier = CORE["torch"].specifier
    assert not any(item.operator == "==" for item in specifier)
    for version in ("2.7.1", "2.11.0", "2.13.0", "2.15.0"):
        assert Version(version) in specifier
    (exact,) = PINNED["torch"].specifier
    assert exact.operator == "=="
    assert Version(exact.version) in specifier


@pytest.mark.parametrize("torch", BROUGHT)
def test_whatever_triton_torch_brings_is_allowed(torch: str) -> None:
    asked = [items["triton"] for items in (CORE, *EXTRAS.values(), PINNED) if "triton" in items]
    assert asked
    for requirement in asked:
        assert Version(BROUGHT[torch]) in requirement.specifier, f"{requirement} refuses torch {torch}"


def test_the_core_asks_for_what_the_core_uses() -> None:
    assert not {"matplotlib", "webdataset", "moto", "pytest", "triton", "s3fs"} & set(CORE)
    assert "matplotlib" in EXTRAS["report"]
    assert "webdataset" in EXTRAS["stream"]
    imported = {
        alias
        for folder in ("stores", "statevla", "pipelines")
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.parse(file.read_text()).body
        for alias in modules_of(node)
    }
    names = {name.lower().replace("-", "_") for name in CORE} | {"google_crc32c", "PIL", "yaml", "stores", "statevla"}
    foreign = {name for name in imported - names - sys.stdlib_module_names if not name.startswith("_")}
    assert foreign <= {"pipelines", "tokenizers", "triton", "libero", "robosuite", "mujoco", "markupsafe"}, foreign


def test_exact_versions_are_ones_that_the_project_allows() -> None:
    for name, requirement in {**CORE, **EXTRAS["dev"]}.items():
        if name in PINNED and name != "triton":
            (exact,) = PINNED[name].specifier
            assert Version(exact.version) in requirement.specifier, name


@pytest.mark.network
@pytest.mark.parametrize("wanted", [["."], [".[dev]"], [".[text]"]])
def test_the_public_index_alone_can_serve_it(wanted: list[str]) -> None:
    """As on a machine that has no other index, no folder of wheels and no constraint of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--isolated",
        "--no-cache-dir",
        "--ignore-installed",
    ]
    command += ["--disable-pip-version-check", "-c", "constraints.txt", *wanted]
    if certificate := os.environ.get("PIP_CERT"):
        command += ["--cert", certificate]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert re.search(r"torch-2\.13\.0(?!\+)", done.stdout)
    if sys.platform == "linux":
        assert "triton-3.7.1" in done.stdout or "+cpu" in done.stdout
