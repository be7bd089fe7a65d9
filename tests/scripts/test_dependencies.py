"""Test the dependencies in pyproject.toml: the extras, and the lowest versions that scripts/test.sh --lowest installs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
SELF = re.compile(r"llm-forget\[(.+)\]")


def needed(requirements: list[str]) -> Iterator[str]:
    """Return the requirements, with references to other extras of the project resolved."""
    for requirement in requirements:
        if found := SELF.fullmatch(requirement):
            for extra in found[1].split(","):
                yield from needed(EXTRAS[extra])
        else:
            yield requirement


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=! ]", one)[0] for one in needed(requirements)}


def pinned(file: str) -> dict[str, tuple[int, ...]]:
    lines = (ROOT / "scripts" / file).read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version_of(version) for name, version in pairs}


def version_of(text: str) -> tuple[int, ...]:
    """Return a version without trailing zeros, so that 5.0 equals 5.0.0."""
    return tuple(int(part) for part in re.sub(r"(\.0)+$", "", text).split("."))


def test_no_package_is_listed_twice() -> None:
    listed = [one for requirements in [PROJECT["dependencies"], *EXTRAS.values()] for one in requirements]
    listed = [one for one in listed if not SELF.fullmatch(one)]
    assert len(listed) == len({re.split(r"[<>=]", one)[0] for one in listed})


def test_extra_all_omits_only_trackers_bergson_the_studio_kernels_and_development_tools() -> None:
    others = ("all", "dev", "bergson", "studio", "kernels", "trackio", "wandb", "mlflow")
    users = [extra for extra in EXTRAS if extra not in others]
    assert names(EXTRAS["all"]) == set().union(*(names(EXTRAS[extra]) for extra in users))
    assert names(EXTRAS["all"]) < names(EXTRAS["dev"])


def test_every_extra_named_in_the_code_exists() -> None:
    named = set()
    for file in (ROOT / "llm_forget").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        named |= set(re.findall(r"llm-forget\[([a-z]+)\]", text))
        named |= set(re.findall(r"require_extra\([^()]*, \"([a-z]+)\"\)", text))
    assert {"eval", "quant", "report", "demo"} <= named <= set(EXTRAS)


def test_the_lowest_versions_are_the_lower_bounds() -> None:
    """Torch is an exception, see scripts/lowest.txt."""
    bounds = {}
    for requirement in needed([*PROJECT["dependencies"], "llm-forget[all]"]):
        name, _, version = requirement.partition(">=")
        bounds[name] = version_of(version)
    lowest = pinned("lowest.txt")
    assert lowest.pop("torch") == pinned("constraints.txt")["torch"] >= bounds.pop("torch")
    assert lowest == bounds


def test_every_dependency_has_a_tested_version() -> None:
    tested = pinned("constraints.txt")
    wanted = {name.lower() for name in names([*PROJECT["dependencies"], "llm-forget[all]"])}
    assert wanted <= set(tested)
