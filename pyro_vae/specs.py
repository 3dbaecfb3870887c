"""Component specs: ``name``, ``name(key=value, …)``, ``path/to/file.py(key=value)``."""

__all__ = ["Spec", "parse_spec"]

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.errors import InputError

# Balanced parentheses, three deep, close the text; what stands before them is the name.
_INNER = r"[^()]*"
for _ in range(2):
    _INNER = rf"[^()]*(?:\({_INNER}\)[^()]*)*"
_SPEC = re.compile(rf"\s*(\S.*?)\s*(?:\(({_INNER})\))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Spec:
    """A component's name (or path) and the arguments given to it.

    ``str(spec)`` is the canonical form, and ``parse_spec(str(spec)) == spec``.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_path(self) -> bool:
        """Whether the name is a path rather than a word."""
        return "/" in self.name or "." in self.name

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        inner = ", ".join(f"{k}={_format(v)}" for k, v in self.arguments.items())
        return f"{self.name}({inner})"


def parse_spec(text: str) -> Spec:
    """Parse a spec; values are Python literals, a bare word is a string.

    Hyphens and underscores are the same in names, keys and bare words; a path
    keeps its spelling.

    Raises:
        InputError: the text is not a spec.

    Example:
        >>> parse_spec("normal(scale=per-pixel, floor=1e-3)")
        Spec(name='normal', arguments={'scale': 'per_pixel', 'floor': 0.001})
        >>> str(parse_spec("mlp(hidden=(400, 200), activation='tanh')"))
        'mlp(hidden=(400, 200), activation=tanh)'
    """
    match = _SPEC.fullmatch(text)
    if match is None:
        raise InputError(f"expected a spec such as 'name(key=value)', got {text!r}")
    name, inner = match[1], match[2] or ""
    try:
        call = ast.parse(f"f({inner})", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"cannot read the arguments of {text!r}: {error.args[0]}") from None
    if not isinstance(call, ast.Call):
        raise InputError(f"expected a spec such as 'name(key=value)', got {text!r}")
    if call.args:
        shown = ast.unparse(call.args[0])
        raise InputError(f"expected key=value in {text!r}, got {shown!r} without a key")
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise InputError(f"expected key=value in {text!r}, got '**'")
        arguments[keyword.arg] = _value(keyword.value, text)
    spec = Spec(name, arguments)
    if not spec.is_path and not name.replace("-", "_").isidentifier():
        raise InputError(f"expected a spec such as 'name(key=value)', got {text!r}")
    return spec if spec.is_path else Spec(name.replace("-", "_"), arguments)


def _value(node: ast.expr, text: str) -> Any:
    word = _word(node)
    if word is not None:
        return word
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(element, text) for element in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        shown = ast.unparse(node)
        raise InputError(f"expected a literal or a word in {text!r}, got {shown!r}") from None


def _word(node: ast.expr) -> str | None:
    """A bare word; ``per-pixel`` parses as a subtraction of two names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        left, right = _word(node.left), _word(node.right)
        if left is not None and right is not None:
            return f"{left}_{right}"
    return None


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(map(_format, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, str) and value.isidentifier() and value not in ("None", "True", "False"):
        return value
    return repr(value)
