"""`xopt quantize`"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from xopt.cli import options
from xopt.cli.commands.validate import gates_for, measure_text
from xopt.cli.output import Output, json_option

if TYPE_CHECKING:
    from xopt.optimize.steer import Steered
    from xopt.runtime.data.candidates import Candidates
    from xopt.runtime.folder import ModelFolder

__all__ = ["print_steering", "quantize"]

EXAMPLES = """\b
Examples:
  xopt quantize models/minilm --int8 --data candidates.jsonl
  xopt quantize models/minilm --int8 --data candidates.jsonl --min-tau 0.95
"""


@click.command(epilog=EXAMPLES)
@options.model_folder
@click.option("--int8", is_flag=True, help="INT8 matrix products, for a CPU.")
@click.option(
    "--fp16",
    is_flag=True,
    help="Half precision, for a GPU: the variant onnx-fp16, made without DATA.",
)
@click.option(
    "--scheme",
    type=click.Choice(["per-token", "static", "portable", "stock"]),
    default="per-token",
    help="`per-token` makes onnx-int8: a scale for every token, so that a score depends on its "
    "pair alone. `static` makes openvino-int8: calibrated scales, for OpenVINO. `portable` makes "
    "onnx-int8-portable: 7-bit weights for any runtime and processor, to publish. `stock` makes "
    "onnx-int8-stock: onnxruntime's own, a scale for a whole batch, for comparison.",
)
@click.option(
    "--target",
    metavar="NAME",
    help="Instruction set: avx512_vnni, avx_vnni, avx512, avx2 or arm64. For avx2 and avx512, "
    "weights have 7 bits.  [default: this processor's]",
)
@options.data
@options.gates
@json_option
def quantize(
    model: ModelFolder,
    int8: bool,
    fp16: bool,
    scheme: str,
    target: str | None,
    read: options.ReadCandidates,
    bounds: dict[str, float],
    output: Output,
) -> None:
    """Quantise the model folder DIR to INT8, or halve its precision.

    Adds a variant to DIR, or replaces it. 96 pairs of DATA calibrate every scheme but stock: any
    text of the kind that you rank will do, without labels. `xopt validate DIR` then tells whether
    the variant ranks the same.

    With a gate, agreement on DATA steers the variant. The products that move the scores most stay
    in float until the gate holds. The fastest variant that passes is kept. If none passes, the
    command exits with 1 and changes nothing.
    """
    _check_options(int8, fp16, scheme, bounds)
    model.check_writable()  # before the work, not after it
    steered = None
    if fp16:
        from xopt.optimize.half import FP16, halve

        name = FP16
        made = halve(model)
    else:
        from xopt.optimize.quantize import SCHEMES

        name = SCHEMES[scheme]
        candidates = None if scheme == "stock" else _calibration_queries(read())
        made, steered = _make_int8(model, scheme, target, candidates, bounds)
    output.json({"folder": made.path, "variant": made.variant(name), "steered": steered})
    if steered:
        print_steering(output, steered)
    print_variant(output, made, name)


def _check_options(int8: bool, fp16: bool, scheme: str, bounds: dict[str, float]) -> None:
    """Raise click.UsageError if options do not go together."""
    if int8 == fp16:
        raise click.UsageError("give --int8, for a CPU, or --fp16, for a GPU")
    if fp16:
        options.refuse(
            ("scheme", "target", *options.DATA_OPTIONS, *options.GATES),
            "goes with --int8, not with --fp16",
        )
    if scheme == "portable":
        options.refuse(
            ("target",), "has no meaning with --scheme portable, which is for all processors"
        )
    if scheme == "stock":
        options.refuse(options.DATA_OPTIONS, "calibrates, and --scheme stock takes no calibration")
        if bounds:
            raise click.UsageError(
                "--scheme stock has nothing to steer; leave the gates to `xopt validate`"
            )


def _calibration_queries(candidates: Candidates) -> Candidates:
    """Return the queries to calibrate and steer by, which no verdict counts later."""
    part, _ = candidates.split()
    # a single query is not split: it calibrates, and judges nothing later
    return part if part.rows else candidates


def _make_int8(
    model: ModelFolder,
    scheme: str,
    target: str | None,
    candidates: Candidates | None,
    bounds: dict[str, float],
) -> tuple[ModelFolder, Steered | None]:
    """Add the scheme's variant to the model folder, steered if there are bounds."""
    from xopt.optimize.int8.calibrate import calibration_pairs
    from xopt.optimize.quantize import ANY, detect_target, prepare, quantize, recipe_for
    from xopt.optimize.steer import steer

    recipe = recipe_for(target or (ANY if scheme == "portable" else detect_target()), scheme)
    if candidates is None or not bounds:
        return quantize(model, recipe, candidates), None
    gates = gates_for(model, candidates, bounds)
    given = [gate for gate in gates if gate.measure in bounds]
    prepared = prepare(model, recipe, calibration_pairs(candidates))
    steered = steer(model, prepared, recipe, candidates, given)
    return quantize(model, steered.recipe, candidates, prepared), steered


def print_variant(output: Output, folder: ModelFolder, name: str) -> None:
    variant = folder.variant(name)
    megabytes = folder.size_bytes(name) / 1e6
    recipe = []
    for key, value in variant.recipe.items():
        recipe.append(f"{key} {len(value) if isinstance(value, list) else value}")
    row = {
        "variant": variant.name,
        "file": variant.file,
        "MB": f"{megabytes:.1f}",
        "recipe": ", ".join(recipe),
    }
    output.table(str(folder.path), [row], wrapped=("recipe",))


def print_steering(output: Output, steered: Steered) -> None:
    """Print the speed and agreement of each recipe tried, and each product's effect alone."""
    rows = []
    for step in steered.steps:
        row = {
            "smoothing": f"{step.recipe.smoothing:g}",
            "in float": str(len(step.recipe.floats)),
        }
        for result in step.judged.gates:
            row[result.gate.measure] = measure_text(result.interval)
        row["of onnx-fp32"] = f"{step.speed:.2f} x"
        row["verdict"] = step.judged.verdict
        row[""] = "chosen" if step.recipe == steered.recipe else ""
        rows.append(row)
    output.table("INT8 steered by agreement", rows)
    if not steered.harms:
        return
    names = _without_shared_path([harm.products for harm in steered.harms])
    rows = [
        {
            "products that read the same tensor": name,
            "spread": f"{harm.spread:.4f}",
            "work": f"{100 * harm.work:.1f} %",
        }
        for name, harm in zip(names, steered.harms, strict=True)
    ]
    output.table(
        "each product alone in INT8, the first to stay in float first; "
        "spread: standard deviation of the change",
        rows,
    )


def _without_shared_path(groups: Sequence[tuple[str, ...]]) -> list[str]:
    """Name groups of graph nodes without the path that all of them share.

    Each loses its operator, too, and only the first of a group keeps its path:
    `layer.0/attention/self/query, key, value`.
    """
    shared = posixpath.commonpath([name.strip("/") for group in groups for name in group])
    texts = []
    for group in groups:
        paths = []
        for name in group:
            path = name.strip("/").removeprefix(shared).strip("/")
            paths.append(posixpath.dirname(path) or path)
        names = [posixpath.basename(path) for path in paths[1:]]
        texts.append(", ".join([paths[0], *names]))
    return texts
