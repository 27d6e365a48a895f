"""JSON schemas of workspaces: whether one is a schema, and what is wrong with a workspace by it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
from referencing import Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, UnknownDialect, specification_with

from . import workspaces
from .workspaces import InvalidWorkspace

_ENDLESS = "refers to itself without end"


def mistake(schema: Mapping[str, Any]) -> str | None:
    """What is wrong with a schema, or None. Never raises."""
    try:
        text = workspaces.dump(dict(schema), "schema")
        given = workspaces.load(text)
        if isinstance(dialect := given.get("$schema"), str):
            specification_with(dialect)
        kind = _class(given)
        kind.check_schema(given)
        _follow(given, kind)
        list(_validator(text).iter_errors({}))
    except InvalidWorkspace as error:
        return str(error)
    except UnknownDialect as error:
        return f"{error.uri!r} is no dialect that is known (at $['$schema'])"
    except SchemaError as error:
        found: Any = error
        while found.context:  # of several schemas that it may follow, the one that it nearly does
            found = max(found.context, key=lambda one: len(one.absolute_path))
        return f"{found.message} (at {found.json_path})"
    except Unresolvable as error:
        return f"{error.ref} leads nowhere within it"
    except RecursionError:
        return f"it {_ENDLESS}"
    except Exception as error:  # whatever else the libraries stumble over
        return f"{type(error).__name__}: {error}"
    return None


def allows_dicts(schema: Mapping[str, Any]) -> bool:
    """Whether a schema without mistakes says of no other type that a workspace has to be of it."""
    errors = _validator(workspaces.dump(dict(schema), "schema")).iter_errors({})
    return all(error.validator != "type" or error.absolute_path for error in errors)


def _follow(schema: Any, kind: type[Validator]) -> None:
    """Go to wherever the schema refers, and see whether there is one.

    Raises:
        Unresolvable: there is nothing; its ``ref`` tells of what.
        SchemaError: there is something else.
    """
    root: Resource[Any] = Resource.from_contents(schema, default_specification=DRAFT202012)
    ahead = [(REGISTRY.resolver_with_root(root), root)]
    seen = set()
    while ahead:
        resolver, resource = ahead.pop()
        contents = resource.contents
        if id(contents) in seen or not isinstance(contents, dict):
            continue
        seen.add(id(contents))
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if not isinstance(ref := contents.get(key), str):
                continue
            try:
                found = resolver.lookup(ref)
            except Exception:  # for some paths not Unresolvable, but TypeError or ValueError
                raise Unresolvable(f"the {key} {ref!r}") from None
            kind.check_schema(found.contents)
            target = Resource.from_contents(found.contents, default_specification=DRAFT202012)
            ahead.append((found.resolver, target))
        ahead += [(resolver.in_subresource(inner), inner) for inner in resource.subresources()]


def validate(schema: Mapping[str, Any], workspace: Any) -> None:
    """Check a workspace.

    Raises:
        InvalidWorkspace: it does not follow the schema; names the first mistakes with their paths.
    """
    validator = _validator(workspaces.dump(dict(schema), "schema"))
    try:
        errors = sorted(validator.iter_errors(workspace), key=str)
    except RecursionError:
        raise InvalidWorkspace(f"The schema {_ENDLESS}") from None
    if errors:
        said = [f"{_path(error.absolute_path)}: {error.message}" for error in errors[:3]]
        more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
        raise InvalidWorkspace(
            "The workspace does not follow its schema: " + "; ".join(said) + more
        )


@lru_cache(maxsize=256)
def _validator(text: str) -> Validator:
    schema = workspaces.load(text)
    # With this registry, which knows the dialects, nothing is asked of the network.
    return _class(schema)(schema, registry=REGISTRY)


def _class(schema: Mapping[str, Any]) -> type[Validator]:
    found: type[Validator] = (
        validator_for(schema, default=Draft202012Validator)
        if isinstance(schema.get("$schema"), str)
        else Draft202012Validator
    )
    return found


def _path(parts: Any) -> str:
    return "workspace" + "".join(f"[{part!r}]" for part in parts)
