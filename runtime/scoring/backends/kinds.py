"""Kinds of operations: what the runtimes' profilers name in their own ways, in a few words that a
reader knows.
"""

from __future__ import annotations

import re
from collections import defaultdict

__all__ = ["Times", "kind_of"]

Times = defaultdict[str, float]  # seconds by kind

# By an operator's name, in lower case; the first that matches. A runtime may join a product and
# what follows it.
KINDS = {
    "attention": r"attention|softmax|scaled_dot|bmm",
    "products": r"matmul|gemm|fullyconnected|addmm|::mm$|(?<!quantize)linear",
    "activation": r"gelu|erf|tanh|silu|sigmoid|relu",
    "normalising": r"norm|mvn",
    "quantising": r"quantiz|reducem",  # a row's scale is from its least and its largest entry
    "moving": r"transpose|reshape|gather|concat|slice|split|copy|cast|convert|reorder|embedding|expand|squeeze|index",
}


def kind_of(operator: str, weights: bool = True) -> str:
    """The kind of an operator. A product of two activations, without `weights`, is a part of
    attention.
    """
    name = operator.lower()
    kind = next(
        (kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "elementwise"
    )
    return "attention" if kind == "products" and not weights else kind
