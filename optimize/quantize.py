"""Quantise: a model folder gets one more variant, with INT8 matrix products."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from xopt.optimize.graph.attention import fuse_attention, unfused
from xopt.optimize.graph.shapes import Dim, tensor_shapes
from xopt.optimize.graph.structure import read_graph, write_graph
from xopt.optimize.int8.calibrate import Activations, calibrate, calibration_pairs
from xopt.optimize.int8.matmul import Rounded, quantize_matmuls
from xopt.optimize.int8.outliers import find_blocks, split_outliers
from xopt.runtime.data.candidates import Candidates, demo_candidates, preparing, query_hash
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import ONNX_FILE, ModelFolder, Variant
from xopt.runtime.machine import cpu_flags
from xopt.runtime.scoring.encode import Pair

__all__ = [
    "SCHEMES",
    "TARGETS",
    "Prepared",
    "Recipe",
    "Target",
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
SMOOTHING = {"per-token": 0.65, "static": 0.9, "portable": 0.65, "stock": 0.0}  # by scheme
HOT = 1 / 16


@dataclass(frozen=True)
class Target:
    """An instruction set that INT8 is made for, by sentence-transformers' name, and the flags
    that show it.
    """

    name: str
    flags: frozenset[str]
    # U8 x S8 products are added in 16 bits: two products of 8-bit weights can overflow
    saturates: bool


ANY = "any"  # the target of what runs on every processor
TARGETS = {
    target.name: target
    for target in (
        Target("avx512_vnni", frozenset({"avx512_vnni"}), saturates=False),
        Target("avx_vnni", frozenset({"avx_vnni"}), saturates=False),
        Target("avx512", frozenset({"avx512bw"}), saturates=True),
        Target("avx2", frozenset({"sse2"}), saturates=True),  # every x86 adds its 7 bits right
        Target("arm64", frozenset({"asimd"}), saturates=False),
    )
}


@dataclass(frozen=True)
class Recipe:
    """How an INT8 variant is made. The manifest keeps it: with the same calibration data it gives
    the same file again.

    `scheme` "per-token" has a scale for every token's row, so that a pair's score depends on the
    pair alone; see `xopt.optimize.int8.matmul` and `xopt.optimize.int8.outliers`. `smoothing` is
    the exponent of the activations in its smoothing factors and `hot` the share of a block's
    neurons with a scale of their own. "static" takes the scales from calibration, for OpenVINO,
    and multiplies what the hot neurons give in float. "portable" is the same for any runtime and
    processor: it needs none's own operators, and its weights do not saturate. "stock" is
    onnxruntime's: one scale and zero point for a whole padded batch, taken at run time, so that a
    score depends on the batch; it takes no calibration. `floats` names MatMuls of the FP32 graph
    that are left as they are.
    """

    scheme: str
    target: str
    # 7 keeps U8 x S8 sums of two within 16 bits where the processor adds them there
    weight_bits: int
    smoothing: float = 0.0
    hot: float = 0.0
    floats: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The file within the model folder, named as sentence-transformers names it, and the
        portable one as others.
        """
        if self.scheme == "portable":
            return "onnx/model_quantized.onnx"
        return f"onnx/model_qint8_{self.target}{'' if self.scheme == 'per-token' else '_' + self.scheme}.onnx"

    @property
    def static(self) -> bool:
        """Whether all scales come from calibration."""
        return self.scheme in ("static", "portable")

    @property
    def variant(self) -> Variant:
        """The variant that it makes, as the manifest keeps it."""
        name = SCHEMES[self.scheme]
        kept = {**asdict(self), "floats": list(self.floats)}  # JSON has no tuples
        return Variant(name, name.partition("-")[0], "int8", self.file, kept)


@dataclass(frozen=True)
class Prepared:
    """A graph ready to be quantised: its products with the FP32 graph's name of each, and what
    they read.

    `queries`: the hashes of those that calibrated it. `rounded` fills as recipes are made of it.
    """

    model: onnx.ModelProto
    products: dict[str, str]
    seen: dict[str, Activations]
    queries: frozenset[str]
    rounded: Rounded = field(default_factory=dict)


def recipe_for(target: str, scheme: str = "per-token") -> Recipe:
    """The recipe for an instruction set. Raises BadInput with the names there are."""
    smoothing = SMOOTHING[scheme]
    if scheme == "portable":
        return Recipe(scheme, ANY, 7, smoothing, hot=HOT)
    if target not in TARGETS:
        raise BadInput(f"target {target!r}: unknown; one of {', '.join(TARGETS)}")
    return Recipe(
        scheme,
        target,
        7 if TARGETS[target].saturates else 8,
        smoothing,
        hot=HOT if smoothing else 0.0,
    )


def detect_target() -> str:
    """The best instruction set of this processor. Raises BadInput where none is seen."""
    for target in TARGETS.values():
        if target.flags <= cpu_flags():
            return target.name
    raise BadInput(
        f"this processor shows none of {', '.join(TARGETS)}; name one with "
        "`xopt quantize DIR --int8 --target NAME`, or take --scheme portable, for any"
    )


def quantize(
    folder: ModelFolder,
    recipe: Recipe,
    candidates: Candidates | None = None,
    prepared: Prepared | None = None,
) -> ModelFolder:
    """Add a variant of `SCHEMES`, made by `recipe` from `onnx/model.onnx`, in place of one that
    was there.

    MatMuls of tokens with constant weights become INT8; attention, embeddings and the head stay
    in float. All schemes but "stock" are calibrated on pairs of `candidates`, the demo data's
    part for that unless given, where the graph is not `prepared` already. The manifest keeps the
    hashes of all queries that it has seen, steering's too: no verdict counts them. Raises
    BadInput where the FP32 graph is missing or damaged.
    """
    folder.check_writable()  # before the work, not after it
    variant = recipe.variant
    if recipe.scheme == "stock":
        made = folder.with_variant(variant, lambda file: _quantize_dynamic(folder, recipe, file))
    else:
        steered = candidates if prepared else None
        given = candidates or preparing(demo_candidates())
        prepared = prepared or prepare(folder, recipe, calibration_pairs(given))
        seen = prepared.queries | {
            query_hash(row.query) for row in (steered.rows if steered else ())
        }
        variant = replace(variant, recipe={**variant.recipe, "calibrated_with": sorted(seen)})
        graph = quantized(prepared, recipe)
        made = folder.with_variant(variant, lambda file: write_graph(graph, file))
    if folder.manifest.cascade and not made.manifest.cascade:
        log.warning(
            "%s: the cascade was of the %s before; make it again with `xopt cascade`",
            folder.path,
            variant.name,
        )
    return made


def prepare(folder: ModelFolder, recipe: Recipe, pairs: Sequence[Pair]) -> Prepared:
    """Calibrate on `pairs`, and split feed-forward blocks, as `recipe` says, whatever it leaves
    in float.
    """
    model = unfused(read_graph(folder.checked(ONNX_FILE)))
    blocks = find_blocks(model, token_matmuls(model))
    if recipe.hot and blocks:
        whole = calibrate(folder, model, [block.activation for block in blocks], pairs, gram=False)
        model = split_outliers(
            model, blocks, {name: value.peak for name, value in whole.items()}, recipe.hot
        )
    products = {
        name: name.removesuffix("/hot").removesuffix("/cold") for name in token_matmuls(model)
    }
    if recipe.static:
        products = {
            name: whole
            for name, whole in products.items()
            if name not in {f"{b.second.name}/hot" for b in blocks}
        }
    read = list(dict.fromkeys(node.input[0] for node in model.graph.node if node.name in products))
    seen = calibrate(folder, model, read, pairs)
    queries = frozenset(query_hash(query) for query, _ in pairs)
    return Prepared(model if recipe.static else fuse_attention(model)[0], products, seen, queries)


def quantized(prepared: Prepared, recipe: Recipe) -> onnx.ModelProto:
    """The graph of `recipe`."""
    return quantize_matmuls(
        prepared.model,
        [name for name, whole in prepared.products.items() if whole not in recipe.floats],
        prepared.seen,
        bits=recipe.weight_bits,
        smoothing=recipe.smoothing,
        free=recipe.scheme == "static",  # OpenVINO joins it
        static=recipe.static,
        rounded=prepared.rounded,
    )


def _quantize_dynamic(folder: ModelFolder, recipe: Recipe, file: Path) -> None:
    model = unfused(read_graph(folder.checked(ONNX_FILE)))
    with _quiet_logging(), TemporaryDirectory(prefix="xopt-stock-") as scratch:
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
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        write_graph(onnx.load(made), file)


def token_matmuls(model: onnx.ModelProto) -> list[str]:
    """The MatMuls that multiply every token's row by a constant weight: not attention's, not the
    head's.

    What sees one row a pair, the head and what the first-row rewrite narrowed, has rank 2 or a
    second dimension of 1; in INT8 it would gain no time.
    """
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    shapes = tensor_shapes(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul"
        and node.input[1] in weights
        and not _one_row(shapes.get(node.input[0], []))
    ]


def _one_row(shape: Sequence[Dim]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[1] == 1)


@contextlib.contextmanager
def _quiet_logging() -> Iterator[None]:
    """Keep onnxruntime's advice to pre-process the graph off the terminal: for this recipe it
    changes nothing.
    """
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
