"""A JSON schema -> a GBNF grammar for llama.cpp, with exactly the spacing of `json.dumps`.

Written instead of taken from llama-cpp-python because the spacing matters: a small model was trained on `", "` and
`": "`, and a grammar that also allows line breaks and runs of blanks lets it lose itself in them. Keys come in the
schema's order, all of them. Standard library only. Grammar of the result: llama.cpp's grammars/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# No \u escapes: a model writes any character as itself, and half a surrogate pair could not be written to a file.
_RULES = r"""
string ::= "\"" ( [^"\\\x00-\x1F\x7F] | "\\" ["\\/nt] )* "\""
integer ::= "-"? ( "0" | [1-9] [0-9]{0,17} )
number ::= integer ( "." [0-9]{1,17} )? ( [eE] [+-]? [0-9]{1,3} )?
boolean ::= "true" | "false"
null ::= "null"
"""
_NOTES = frozenset({"title", "description", "$schema", "examples", "default"})  # say something, constrain nothing
_KEYWORDS = {  # type -> the keywords that this file honours
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items"}),
    **dict.fromkeys(("string", "integer", "number", "boolean", "null"), frozenset[str]()),
}


def gbnf(schema: Mapping[str, Any]) -> str:
    """The grammar; its root rule is `root`.

    Raises ValueError for a keyword that would be ignored. Lengths are among them: as a grammar they grow to thousands
    of rules; check them afterwards.
    """
    return f"root ::= {_rule(schema)}{_RULES}"


def _rule(schema: Mapping[str, Any]) -> str:
    keywords = set(schema) - _NOTES
    if "enum" in schema and keywords <= {"enum", "type"}:
        return _either([_literal(json.dumps(value, ensure_ascii=False)) for value in schema["enum"]])
    if "const" in schema and keywords <= {"const", "type"}:
        return _literal(json.dumps(schema["const"], ensure_ascii=False))
    if keywords == {"anyOf"}:
        return _either([_rule(part) for part in schema["anyOf"]])
    kind = schema.get("type")
    if isinstance(kind, list):
        return _either([_rule({**schema, "type": one}) for one in kind])
    if kind not in _KEYWORDS or not keywords <= {"type"} | _KEYWORDS[kind]:
        raise ValueError(f"no grammar for the schema {json.dumps(dict(schema))}")
    if kind == "object":
        return _object(schema)
    if kind == "array":
        item = _rule(schema["items"])
        return f'"[" ( {item} ( ", " {item} )* )? "]"'
    return str(kind)


def _object(schema: Mapping[str, Any]) -> str:
    properties: Mapping[str, Any] = schema.get("properties", {})
    if set(schema.get("required", properties)) != set(properties) or schema.get("additionalProperties", False):
        raise ValueError("every property must be required, and no others allowed")
    parts = [_literal("{")]
    for index, (key, value) in enumerate(properties.items()):
        parts.append(_literal((", " if index else "") + json.dumps(key, ensure_ascii=False) + ": "))
        parts.append(_rule(value))
    return " ".join([*parts, _literal("}")])


def _either(options: list[str]) -> str:
    if not options:
        raise ValueError("a schema that allows nothing")
    return f"( {' | '.join(options)} )"


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
