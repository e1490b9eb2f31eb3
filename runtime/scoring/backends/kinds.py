"""Kinds of operations: a few plain words for what runtimes' profilers name in many ways."""

from __future__ import annotations

import re
from collections import defaultdict

__all__ = ["Times", "kind_of"]

Times = defaultdict[str, float]  # seconds by kind

# Patterns of operators' names; the first that matches counts, since runtimes fuse operators.
KINDS = {
    "attention": r"attention|softmax|scaled_dot|bmm|rotary",
    "products": r"matmul|gemm|fullyconnected|addmm|::mm$|(?<!quantize)linear",
    "activation": r"gelu|erf|tanh|silu|sigmoid|relu",
    "normalising": r"norm|mvn",
    "quantising": r"quantiz|reducem",  # a row's scale comes from its minimum and maximum
    "moving": (
        r"transpose|reshape|gather|concat|slice|split|copy|cast|convert|reorder|embedding|expand"
        r"|squeeze|index"
    ),
}


def kind_of(operator: str, weights: bool = True) -> str:
    """Return the kind of an operator.

    A product without `weights` multiplies two activations: it is part of attention.
    """
    for kind, pattern in KINDS.items():
        if re.search(pattern, operator.lower()):
            return "attention" if kind == "products" and not weights else kind
    return "elementwise"
