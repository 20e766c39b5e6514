"""Which options each engine documents, as data; nothing else is ever written."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Literal

from optsched import catalog
from optsched.domain.frozen import Frozen
from optsched.files import load

Target = Literal["vllm", "llm-d", "dynamo"]
TARGETS: tuple[Target, ...] = ("vllm", "llm-d", "dynamo")


class Documented(Frozen):
    """One option or environment variable, and where it was read.

    Attributes
    ----------
    type
        ``switch`` takes no value; ``--no-`` before its name turns it off.
    choices, minimum, maximum
        Values that are allowed.
    keys
        Of a JSON object: its keys, with the values that are written.
    """

    type: Literal["int", "float", "choice", "switch", "json", "text"]
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    keys: dict[str, tuple[str, ...]] = {}
    source: str

    def objection(self, value: str | None) -> str:
        """Return what the documentation has against a value; empty: nothing. None stands for a switch."""
        if (self.type == "switch") != (value is None):
            return "a switch takes no value" if self.type == "switch" else "a value is missing"
        if value is None or self.type == "text":
            return ""
        if self.type == "choice":
            return "" if value in self.choices else f"choose among {', '.join(self.choices)}"
        if self.type == "json":
            return self._objection_to_keys(value)
        try:
            number = int(value) if self.type == "int" else float(value)
        except ValueError:
            return f"not of type {self.type}"
        low = self.minimum is not None and number < self.minimum
        return "out of range" if low or (self.maximum is not None and number > self.maximum) else ""

    def _objection_to_keys(self, value: str) -> str:
        for key, each in json.loads(value).items():
            if key not in self.keys:
                return f"key {key!r} is not documented"
            if each not in self.keys[key]:
                return f"{key}: choose among {', '.join(self.keys[key])}"
        return ""


class Plugin(Frozen):
    """A plugin of llm-d's endpoint picker and the parameters that are set."""

    parameters: tuple[str, ...] = ()
    source: str


class Component(Frozen):
    """What a component of a DynamoGraphDeployment may be: its fields, its types, and how many there may be."""

    fields: tuple[str, ...]
    types: tuple[str, ...]
    most: int
    source: str


class Engine(Frozen):
    """What an engine documents (``schema = "optsched/engine"``).

    Attributes
    ----------
    image, sidecar_image
        Containers that the manifests name.
    passes_on
        The engine whose options it takes besides its own.
    """

    name: Target
    title: str
    image: str
    sidecar_image: str | None = None
    passes_on: Target | None = None
    source: str
    option: dict[str, Documented]
    environment: dict[str, Documented] = {}
    label: dict[str, Documented] = {}
    plugin: dict[str, Plugin] = {}
    component: Component | None = None

    def objection(self, name: str, value: str | None) -> str:
        """Return what is wrong with an option; empty: it is documented as written."""
        known = self.option.get(name) or self.option.get(name.replace("--no-", "--", 1))
        if known is None:
            return engine(self.passes_on).objection(name, value) if self.passes_on else f"{name} is not documented"
        return known.objection(value)


@lru_cache(maxsize=len(TARGETS))
def engine(name: Target) -> Engine:
    """Return what an engine documents.

    Raises
    ------
    SpecError
        If its file is wrong.
    """
    return load(Engine, "engine", catalog.data_root() / "models" / "engines" / f"{name}.toml")
