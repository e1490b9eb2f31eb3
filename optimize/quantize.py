"""Quantise: a model folder gets one more variant, with INT8 matrix products."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import ModelProto, TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic

from xopt.optimize.graph.attention import fuse_attention, unfused
from xopt.optimize.graph.shapes import tensor_shapes
from xopt.optimize.graph.structure import errors_only, read_graph, write_graph
from xopt.optimize.int8.calibrate import Activations, calibrate, calibration_pairs
from xopt.optimize.int8.matmul import Int8Settings, RoundedWeights, quantize_matmuls
from xopt.optimize.int8.outliers import HOT, find_blocks, split_outliers, whole_name
from xopt.runtime.data.candidates import Candidates, demo_candidates, preparing, query_hash
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ONNX_FILE, ModelFolder, Variant
from xopt.runtime.machine import cpu_flags
from xopt.runtime.progress import progress
from xopt.runtime.scoring.encode import Pair

__all__ = [
    "SCHEMES",
    "TARGETS",
    "Prepared",
    "Recipe",
    "detect_target",
    "prepare",
    "quantize",
    "quantized",
    "recipe_for",
    "token_matmuls",
]

log = logging.getLogger(__name__)

SCHEMES = {  # and the variant that each one makes
    "per-token": "onnx-int8",
    "static": "openvino-int8",
    "portable": "onnx-int8-portable",
    "stock": "onnx-int8-stock",
}
SMOOTHING = {"per-token": 0.65, "static": 0.9, "portable": 0.65}  # by scheme
HOT_SHARE = 1 / 16
ANY = "any"  # the target of what runs on every processor


TARGETS = {  # instruction sets by sentence-transformers' names, the best first, and their flags
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512": "avx512bw",
    "avx2": "sse2",  # every x86 adds its 7 bits right
    "arm64": "asimd",
}
# These add products in 16 bits, which two products of 8-bit weights can overflow.
SATURATING = {"avx512", "avx2"}


@dataclass(frozen=True)
class Recipe:
    """How an INT8 variant is made: with the same calibration data it gives the same file again.

    `scheme`:
    - "per-token": a scale for every token's row, so that a score depends on the pair alone.
    - "static": scales from calibration, for OpenVINO; what hot neurons give stays in float.
    - "portable": static in ONNX's own operators, with weights that saturate on no processor.
    - "stock": onnxruntime's own, without calibration. One scale for a whole padded batch makes a
      score depend on the batch.

    `weight_bits`: 7 where 8 would saturate.
    `smoothing`: the exponent of the activations in the smoothing factors.
    `hot`: the share of a feed-forward block's neurons with a scale of their own.
    `floats`: MatMuls of the FP32 graph that stay in float.
    """

    scheme: str
    target: str
    weight_bits: int
    smoothing: float = 0.0
    hot: float = 0.0
    floats: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The file within the model folder, by the name that other programs look for."""
        if self.scheme == "portable":
            return "onnx/model_quantized.onnx"
        suffix = "" if self.scheme == "per-token" else f"_{self.scheme}"
        return f"onnx/model_qint8_{self.target}{suffix}.onnx"

    @property
    def static(self) -> bool:
        return self.scheme in ("static", "portable")

    @property
    def variant(self) -> Variant:
        """The variant that it makes, as the manifest keeps it."""
        name = SCHEMES[self.scheme]
        backend = name.partition("-")[0]
        fields = {**asdict(self), "floats": list(self.floats)}  # JSON has no tuples
        return Variant(name, backend, "int8", self.file, fields)


@dataclass(frozen=True)
class Prepared:
    """A calibrated graph, ready to be quantised by recipes.

    `products`: the FP32 graph's name of each product to quantise. `seen`: what they read.
    `queries`: the hashes of those that calibrated it. `rounded` fills as recipes are made of it.
    """

    model: ModelProto
    products: dict[str, str]
    seen: dict[str, Activations]
    queries: frozenset[str]
    rounded: RoundedWeights = field(default_factory=dict)


def recipe_for(target: str, scheme: str = "per-token") -> Recipe:
    """Return the recipe for an instruction set. Raises BadInput where a name is unknown.

    - `target`: the instruction set, such as that of `detect_target`.
    - `scheme`: "per-token", "static", "portable" or "stock", as for `xopt quantize`.
    """
    if scheme == "portable":
        return Recipe(scheme, ANY, 7, SMOOTHING[scheme], HOT_SHARE)
    if target not in TARGETS:
        raise BadInput(f"target {target!r}: unknown; one of {', '.join(TARGETS)}")
    weight_bits = 7 if target in SATURATING else 8
    if scheme == "stock":
        return Recipe(scheme, target, weight_bits)
    return Recipe(scheme, target, weight_bits, SMOOTHING[scheme], HOT_SHARE)


def detect_target() -> str:
    """Return the best instruction set of this processor. Raises BadInput where none is seen."""
    for target, flag in TARGETS.items():
        if flag in cpu_flags():
            return target
    raise BadInput(
        f"this processor shows none of {', '.join(TARGETS)}; name one with "
        "`xopt quantize DIR --int8 --target NAME`, or make what runs on any with "
        "`xopt quantize DIR --int8 --scheme portable`"
    )


def quantize(
    folder: ModelFolder,
    recipe: Recipe,
    candidates: Candidates | None = None,
    prepared: Prepared | None = None,
) -> ModelFolder:
    """Add the variant that `recipe` makes of `onnx/model.onnx`, or replace it.

    - `recipe`: what `recipe_for` returns.
    - `candidates`: pairs that calibrate all schemes but "stock", by default the demo data.
    - `prepared`: the graph where it is prepared already. Then `candidates` steered the recipe.

    MatMuls of tokens with constant weights become INT8. Attention, embeddings and the head stay in
    float. The manifest keeps the hashes of all queries used, so that no verdict counts them.

    Returns the folder with its new manifest. Raises BadInput where the FP32 graph is missing or
    damaged.
    """
    folder.check_writable()  # before the work, not after it
    with progress(f"making {SCHEMES[recipe.scheme]}"):
        made = _made(folder, recipe, candidates, prepared)
    if folder.manifest.cascade and not made.manifest.cascade:
        log.warning(
            "%s: the cascade was of the %s before; make it again with `xopt cascade`",
            folder.path,
            recipe.variant.name,
        )
    return made


def _made(
    folder: ModelFolder,
    recipe: Recipe,
    candidates: Candidates | None,
    prepared: Prepared | None,
) -> ModelFolder:
    variant = recipe.variant
    if recipe.scheme == "stock":
        return folder.with_variant(variant, lambda file: _quantize_dynamic(folder, recipe, file))
    queries: set[str] = set()
    if prepared is None:
        given = candidates or preparing(demo_candidates())
        prepared = prepare(folder, recipe, calibration_pairs(given))
    elif candidates:
        queries = {query_hash(row.query) for row in candidates.rows}
    queries |= prepared.queries
    fields = {**variant.recipe, "calibrated_with": sorted(queries)}
    graph = quantized(prepared, recipe)
    return folder.with_variant(
        replace(variant, recipe=fields), lambda file: write_graph(graph, file)
    )


def prepare(folder: ModelFolder, recipe: Recipe, pairs: Sequence[Pair]) -> Prepared:
    """Split feed-forward blocks as `recipe` says, and calibrate on `pairs`.

    That includes the products that the recipe leaves in float: steering leaves others.
    """
    model = unfused(read_graph(folder.checked(ONNX_FILE)))
    blocks = find_blocks(model, token_matmuls(model))
    if recipe.hot and blocks:
        activations = [block.activation for block in blocks]
        neurons = calibrate(folder, model, activations, pairs, gram=False)
        peaks = {name: seen.peak for name, seen in neurons.items()}
        model = split_outliers(model, blocks, peaks, recipe.hot)
    products = {name: whole_name(name) for name in token_matmuls(model)}
    if recipe.static:
        for block in blocks:  # what the hot neurons give is multiplied in float
            products.pop(block.second.name + HOT, None)
    tensors = dict.fromkeys(node.input[0] for node in model.graph.node if node.name in products)
    seen = calibrate(folder, model, list(tensors), pairs)
    if not recipe.static:
        model, _ = fuse_attention(model, folder.manifest.max_length)
    queries = frozenset(query_hash(query) for query, _ in pairs)
    return Prepared(model, products, seen, queries)


def quantized(prepared: Prepared, recipe: Recipe) -> ModelProto:
    settings = Int8Settings(
        bits=recipe.weight_bits,
        smoothing=recipe.smoothing,
        smoothing_is_free=recipe.scheme == "static",  # OpenVINO joins it
        static=recipe.static,
    )
    products = {name for name, whole in prepared.products.items() if whole not in recipe.floats}
    return quantize_matmuls(prepared.model, products, prepared.seen, settings, prepared.rounded)


def _quantize_dynamic(folder: ModelFolder, recipe: Recipe, file: Path) -> None:
    model = unfused(read_graph(folder.checked(ONNX_FILE)))
    # onnxruntime advises to pre-process the graph, which changes nothing here.
    with errors_only(), TemporaryDirectory(prefix="xopt-stock-") as scratch:
        made = Path(scratch) / "model.onnx"
        quantize_dynamic(
            model,
            made,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=token_matmuls(model),
            per_channel=True,
            reduce_range=recipe.weight_bits == 7,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": TensorProto.FLOAT},
        )
        write_graph(onnx.load(made), file)


def token_matmuls(model: ModelProto) -> list[str]:
    """The MatMuls that multiply every token's row by a constant weight.

    The head, and what `keep_one_row` narrowed, sees one row a pair: INT8 would gain no time.
    """
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    shapes = tensor_shapes(model)
    names = []
    for node in model.graph.node:
        if node.op_type == "MatMul" and node.input[1] in weights:
            shape = shapes.get(node.input[0], [])
            is_one_row = len(shape) == 2 or (len(shape) == 3 and shape[1] == 1)
            if not is_one_row:
                names.append(node.name)
    return names
