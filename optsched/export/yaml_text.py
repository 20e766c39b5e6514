"""Plain data as YAML documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Node: TypeAlias = "str | int | float | bool | Sequence[Node] | Mapping[str, Node] | None"


def yaml_text(documents: Sequence[Node], about: str = "") -> str:
    """Return documents as YAML, keys in their order, no anchors, long texts as they are.

    Parameters
    ----------
    documents
        Separated by ``---`` where there are several.
    about
        A comment above them.
    """
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # the library comes without types
        def ignore_aliases(self, data: object) -> bool:
            return True

    def as_block(dumper: yaml.SafeDumper, data: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style="|" if "\n" in data else None)

    Dumper.add_representer(str, as_block)
    body = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)
    comment = "".join(f"# {line}\n" for line in about.splitlines())
    return f"{comment}{body}"
