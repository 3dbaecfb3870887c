"""Component specs: ``name``, ``name(key=value, …)``, ``path/to/file.py(key=value)``."""

__all__ = ["Spec", "parse_spec"]

import ast
import keyword
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.errors import InputError

# A quoted string, or a hyphenated key: "step-size=" is "step_size=".
_KEY = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|[^\W\d]\w*(?:-\w+)+(?=\s*=)""")
_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


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
        if not self.arguments:  # parentheses at the end of a path belong to it
            return f"{self.name}()" if self.name.endswith(")") else self.name
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
    name, call = _split(text)
    is_path = Spec(name).is_path
    if call.args:
        hint = f"; if the parentheses belong to the path, write '{text.strip()}()'"
        shown = ast.unparse(call.args[0])
        raise InputError(
            f"expected key=value in {text!r}, got {shown!r} without a key{hint if is_path else ''}"
        )
    arguments: dict[str, Any] = {}
    for argument in call.keywords:
        if argument.arg is None:
            raise InputError(f"expected key=value in {text!r}, got '**'")
        if argument.arg in arguments:
            raise InputError(f"{argument.arg!r} is given twice in {text!r}")
        arguments[argument.arg] = _value(argument.value, text)
    return Spec(name if is_path else name.replace("-", "_"), arguments)


def _split(text: str) -> tuple[str, ast.Call]:
    """The name, and ``f(…)`` of the arguments in the parentheses that close the text."""
    stripped = text.strip()
    reason = None
    for opening in re.finditer(r"\(", stripped if stripped.endswith(")") else ""):
        name = stripped[: opening.start()].rstrip()
        if not _is_name(name):
            continue
        try:
            call = _parse(f"f{stripped[opening.start() :]}")
        except _UNREADABLE as error:
            reason = reason or error.args[0]
            continue
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            return name, call
    if reason is not None:
        raise InputError(f"cannot read the arguments of {text!r}: {reason}")
    unclosed = "=" in stripped and stripped.count("(") > stripped.count(")")
    if not _is_name(stripped) or unclosed:
        raise InputError(f"expected a spec such as 'name(key=value)', got {text!r}")
    return stripped, ast.Call(ast.Name("f"), [], [])


def _is_name(name: str) -> bool:
    return Spec(name).is_path or name.replace("-", "_").isidentifier()


def _parse(code: str) -> ast.expr:
    code = _KEY.sub(lambda match: match[1] or match[0].replace("-", "_"), code)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes and literals
        return ast.parse(code, mode="eval").body


def _value(node: ast.expr, text: str) -> Any:
    word = _word(node)
    if word is not None:
        return word
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(element, text) for element in node.elts)
    try:
        return ast.literal_eval(node)
    except _UNREADABLE:
        raise InputError(_not_a_literal(node, text)) from None


def _not_a_literal(node: ast.expr, text: str) -> str:
    try:
        return f"expected a literal or a word in {text!r}, got {ast.unparse(node)!r}"
    except RecursionError:  # parsed, but too deep for what walks it
        return f"cannot read the arguments of {text!r}: nested too deeply"


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
    if isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value):
        return value
    # An infinity's repr is a word; 1e999 is read as one.
    return repr(value).replace("inf", "1e999") if isinstance(value, float) else repr(value)
