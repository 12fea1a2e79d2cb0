"""
Docstrings are written as those of diffusers. References, [`OUBridgeScheduler`], become links of the site; types of
arguments, (`float`, *optional*, defaults to 0.1), become what the site shows as a type. Defaults come from signatures.
"""

import re
from typing import Any

import griffe

_TYPE = re.compile(r"^(\s+[\w, ]+ \()([^()\n]*(?:\([^()\n]*\)[^()\n]*)*)(\):)", re.MULTILINE)
_REFERENCE = re.compile(r"\[`(~?)([A-Za-z_][\w.]*)`\](?![\[(])")


class LinkReferences(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Once the package is read: all names are known."""
        self._places: dict[str, str] = {}
        self._collect(pkg)
        self._rewrite(pkg)

    def _collect(self, package: griffe.Module) -> None:
        """The names that packages export: these have an entry in the reference."""
        for room in package.members.values():
            if room.is_alias or not room.is_module:
                continue
            for name in room.exports or ():
                place = f"{room.path}.{name}"
                self._places.setdefault(str(name), place)
                target = room.members[str(name)]
                for inner in (target.final_target if target.is_alias else target).members:
                    if not inner.startswith("_"):
                        self._places.setdefault(f"{name}.{inner}", f"{place}.{inner}")

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            text = _TYPE.sub(_plain_type, obj.docstring.value)
            obj.docstring.value = _REFERENCE.sub(self._link, text)
        for member in obj.members.values():
            if not member.is_alias:
                self._rewrite(member)

    def _link(self, match: re.Match[str]) -> str:
        name = match[2]
        place = self._places.get(name)
        return f"[`{name}`][{place}]" if place else f"`{name}`"


def _plain_type(match: re.Match[str]) -> str:
    text = re.sub(r"\[`~?([\w.]+)`\]", r"\1", match[2]).replace("`", "").replace("*optional*", "optional")
    return match[1] + re.sub(r", defaults to .*", "", text) + match[3]
