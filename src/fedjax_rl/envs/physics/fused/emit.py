"""A scalar JAX program as C++ in which every scalar is a vector of W simulations (lanes).

The lanes never meet: `cond` runs a branch if any lane wants it and keeps the others' values by select, `while`
likewise, products are fused where the text says FMA and nowhere else. So a lane's bits depend on its own inputs alone:
not on its neighbours, W, the number of threads, the compiler or the vector unit (IEEE-754 with fused multiply-add).
"""

from collections import Counter

import numpy as np
from jax.extend import core

_INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call")
_UNCHANGED = ("convert_element_type", "copy", "stop_gradient")
_OPERATIONS = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "neg": "-{}", "abs": "ABS({})",
    "min": "MIN({}, {})", "max": "MAX({}, {})", "sqrt": "SQRT({})", "sin": "SIN({})", "cos": "COS({})",
    "lt": "{} < {}", "gt": "{} > {}", "ge": "{} >= {}", "le": "{} <= {}", "and": "{} & {}", "or": "{} | {}",
    "not": "NOT({})", "select_n": "SEL({0}, {2}, {1})",
}  # fmt: skip


class Emitter:
    """Statements of jaxprs over scalars, in `lines`."""

    def __init__(self):
        self.lines: list[str] = []
        self._names = 0

    def run(self, jaxpr, consts, args: list[str], indent: str) -> list[str]:
        """Emit a jaxpr's equations; the names of its outputs."""
        return _Block(self, jaxpr, consts, args, indent).run()

    def put(self, indent: str, text: str) -> None:
        self.lines.append(indent + text)

    def fresh(self) -> str:
        self._names += 1
        return f"x{self._names}"

    def named(self, indent: str, kind: str, text: str) -> str:
        """The name of a new variable: kind is V or M, with or without const."""
        name = self.fresh()
        self.put(indent, f"{kind} {name} = {text};")
        return name


def literal(value) -> str:
    """A constant in every lane; hexadecimal, so that no decimal is rounded twice."""
    value = np.asarray(value)
    return f"B({int(value)})" if value.dtype == bool else f"R({float(np.float32(value)).hex()}f)"


def _kind(variable) -> str:
    return "M" if np.dtype(variable.aval.dtype) == bool else "V"


class _Block:
    """One jaxpr on its way into text.

    A product that one sum alone reads is not written where it stands but waits, and becomes that sum's FMA.
    """

    def __init__(self, emitter: Emitter, jaxpr, consts, args: list[str], indent: str):
        self.out, self.jaxpr, self.indent = emitter, jaxpr, indent
        self.names = dict(zip(jaxpr.constvars, map(literal, consts), strict=True))
        self.names |= dict(zip(jaxpr.invars, args, strict=True))
        read = [v for e in jaxpr.eqns for v in e.invars] + list(jaxpr.outvars)
        self.uses = Counter(v for v in read if not isinstance(v, core.Literal))
        sums = [e for e in jaxpr.eqns if e.primitive.name in ("add", "sub")]
        self.summed = {v for e in sums for v in e.invars if not isinstance(v, core.Literal)}
        self.waiting: dict = {}

    def run(self) -> list[str]:
        for equation in self.jaxpr.eqns:
            self.equation(equation)
        return [self.name(v) for v in self.jaxpr.outvars]

    def name(self, v) -> str:
        if isinstance(v, core.Literal):
            return literal(v.val)
        if v in self.waiting:
            self.names[v] = self.out.named(self.indent, "const V", "{} * {}".format(*self.waiting.pop(v)))
        return self.names[v]

    def equation(self, e) -> None:
        operation = e.primitive.name
        if operation in ("add", "sub"):
            self.bind(e, self.sum(operation, *e.invars))
            return
        args = [self.name(v) for v in e.invars]
        if operation in _INLINED:
            inner = e.params.get("jaxpr") or e.params["call_jaxpr"]
            self.names.update(zip(e.outvars, self.out.run(inner.jaxpr, inner.consts, args, self.indent), strict=True))
        elif operation == "cond":
            self.names.update(zip(e.outvars, self.branch(e, args), strict=True))
        elif operation == "while":
            self.names.update(zip(e.outvars, self.loop(e, args), strict=True))
        elif operation in _UNCHANGED:
            self.names[e.outvars[0]] = args[0]
        elif operation == "mul" and self.uses[e.outvars[0]] == 1 and e.outvars[0] in self.summed:
            self.waiting[e.outvars[0]] = args
        elif operation in _OPERATIONS:
            self.bind(e, _OPERATIONS[operation].format(*args))
        else:
            raise ValueError(f"no C++ for the operation {operation}")

    def bind(self, e, text: str) -> None:
        self.names[e.outvars[0]] = self.out.named(self.indent, f"const {_kind(e.outvars[0])}", text)

    def sum(self, operation: str, x, y) -> str:
        """x + y or x - y; y's product is fused before x's."""
        if self.waits(y):
            a, b = self.waiting.pop(y)
            return f"{'FMA' if operation == 'add' else 'FNMA'}({a}, {b}, {self.name(x)})"
        if self.waits(x):
            a, b = self.waiting.pop(x)
            return f"{'FMA' if operation == 'add' else 'FMS'}({a}, {b}, {self.name(y)})"
        return _OPERATIONS[operation].format(self.name(x), self.name(y))

    def waits(self, v) -> bool:
        return not isinstance(v, core.Literal) and v in self.waiting

    def branch(self, e, args: list[str]) -> list[str]:
        """`cond(mask, change, keep, *values)`, whose `keep` returns values: skipped when no lane changes."""
        keep, change = e.params["branches"]
        mask, values = args[0], args[1:]
        if keep.jaxpr.eqns:
            raise ValueError("a cond whose other branch computes something")
        kept = dict(zip(keep.jaxpr.invars, values, strict=True))
        old = [literal(v.val) if isinstance(v, core.Literal) else kept[v] for v in keep.jaxpr.outvars]
        out = [self.out.named(self.indent, _kind(v), x) for v, x in zip(e.outvars, old, strict=True)]
        inner = self.indent + "  "
        self.out.put(self.indent, f"if (ANY({mask})) {{")
        for name, value in zip(out, self.out.run(change.jaxpr, change.consts, values, inner), strict=True):
            self.out.put(inner, f"{name} = SEL({mask}, {value}, {name});")
        self.out.put(self.indent, "}")
        return out

    def loop(self, e, args: list[str]) -> list[str]:
        """`while`: a lane whose condition is false keeps its carry; the loop ends when all are."""
        tested, stepped = e.params["cond_nconsts"], e.params["body_nconsts"]
        test, body = e.params["cond_jaxpr"], e.params["body_jaxpr"]
        start = zip(e.outvars, args[tested + stepped :], strict=True)
        carry = [self.out.named(self.indent, _kind(v), x) for v, x in start]
        inner = self.indent + "  "
        self.out.put(self.indent, "for (;;) {")
        [mask] = self.out.run(test.jaxpr, test.consts, args[:tested] + carry, inner)
        self.out.put(inner, f"if (!ANY({mask})) break;")
        new = self.out.run(body.jaxpr, body.consts, args[tested : tested + stepped] + carry, inner)
        new = [self.out.named(inner, f"const {_kind(v)}", x) for v, x in zip(e.outvars, new, strict=True)]
        for name, value in zip(carry, new, strict=True):
            self.out.put(inner, f"{name} = SEL({mask}, {value}, {name});")
        self.out.put(self.indent, "}")
        return carry
