"""Jinja2 for templates that come from the internet: no way to Python's insides, and bounds on time and size.

On top of Jinja's own immutable sandbox, every round of a loop and every call of a macro looks at the clock, text cannot be multiplied
or joined without end, and no number that is passed to a function or a filter can be absurd. Templates are otherwise compiled and
run as their authors tested them: blocks trimmed, ``break`` and ``continue``, ``raise_exception``, ``strftime_now``, a ``tojson`` that
escapes nothing, and ``{% generation %}`` blocks, which stand for themselves.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from exltui.errors import TemplateError

MAX_SOURCE = 500_000  # characters; the longest template in use has about 30,000
MAX_SECONDS = 2.0  # for one rendering; a chat of 1,000 messages takes some 10 ms
MAX_TEXT = 50_000_000  # characters of any text that a template makes
MAX_NUMBER = 1_000_000  # for what a template computes and passes on: widths, indents, ranges

# What the code of a template may raise besides Jinja's own errors.
ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip


class RefusedError(jinja2.TemplateError):
    """A template called ``raise_exception``: it works, and does not want this conversation."""


def compile_template(source: str) -> Callable[[dict[str, Any]], str]:
    """A function from a template's variables to the text that it renders. Raises TemplateError if ``source`` is not a template.

    The function raises the exceptions of ``ERRORS``.
    """
    if len(source) > MAX_SOURCE:
        raise TemplateError(f"the chat template is {len(source):,} characters long; {MAX_SOURCE:,} is the limit")
    environment = _Environment()
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"the chat template does not compile: line {error.lineno}: {error.message}") from error
    except ERRORS as error:
        raise TemplateError(f"the chat template does not compile: {error or type(error).__name__}") from error

    def render(variables: dict[str, Any]) -> str:
        environment.deadline = time.monotonic() + MAX_SECONDS
        parts, size = [], 0
        for part in template.generate(variables):
            size += len(part)
            environment.check(size)
            parts.append(part)
        return "".join(parts)

    return render


def variables_of(source: str) -> frozenset[str]:
    """The names that a template reads and does not set itself, but for the functions that it is given. Raises what ``ERRORS`` lists."""
    environment = _Environment()
    return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(source))) - set(environment.globals)


class _Environment(ImmutableSandboxedEnvironment):
    """One for each template: it holds the deadline of the rendering that runs."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _Generation])
        self.deadline = float("inf")
        self.filters["tojson"] = _tojson
        self.filters = {name: _modest(function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def tick(self) -> str:
        """Called by every round of every loop. Its text is nothing."""
        if time.monotonic() > self.deadline:
            raise jinja2.TemplateRuntimeError(f"it takes more than {MAX_SECONDS:g} s")
        return ""

    def check(self, size: int) -> None:
        self.tick()
        if size > MAX_TEXT:
            raise jinja2.TemplateRuntimeError(f"its text is longer than {MAX_TEXT:,} characters")

    def join(self, *parts: Any) -> str:
        """What ``~`` does."""
        texts = [str(part) for part in parts]
        self.check(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        size, number = _size(left), right if isinstance(right, int) else left
        if operator == "**":
            _check_number(left)
            if isinstance(right, int) and abs(right) > 64:
                raise jinja2.TemplateRuntimeError(f"it computes with an absurd exponent: {right}")
        elif operator == "+":
            self.check(size + _size(right))
        elif operator == "*" and (size or _size(right)) and isinstance(number, int):
            self.check((size + _size(right)) * max(number, 0))
        elif operator == "%" and isinstance(left, str):
            for value in right if isinstance(right, tuple) else (right,):
                _check_number(value)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _check_number(value)
        return super().call(context, obj, *args, **kwargs)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Jinja's step from the parsed template to Python code; the checks go in here."""
        source = _Checks().visit(source)
        for node in source.find_all(nodes.Node):
            if isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
                node.body.insert(0, nodes.Output([_call_environment("tick", [], node.lineno)], lineno=node.lineno))
        return super()._generate(source, *args, **kwargs)


class _Checks(NodeTransformer):
    """Sends ``a ~ b`` through ``_Environment.join``."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja's way to name a visitor
        self.generic_visit(node)
        return _call_environment("join", node.nodes, node.lineno)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks what a model learns in training; here it is just its content."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _call_environment(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    """A call of the environment's ``method``, which no variable of the template can hide."""
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=line)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 0


def _check_number(value: Any) -> None:
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise jinja2.TemplateRuntimeError(f"it computes with an absurd number: {str(value)[:20]}")


def _modest(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` (a filter) that refuses absurd numbers. It keeps the marks by which Jinja knows what to pass."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            _check_number(value)
        return function(*args, **kwargs)

    return checked


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
