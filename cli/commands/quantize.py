"""`xopt quantize`"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from xopt.cli.options import BOUNDS, DATA_NAMES, data_options, folder_argument, gate_options, refuse
from xopt.cli.output import Output, json_option
from xopt.cli.tables import print_steering

if TYPE_CHECKING:
    from xopt.optimize.steer import Steered
    from xopt.runtime.data.candidates import Candidates
    from xopt.runtime.folder import ModelFolder

__all__ = ["quantize"]


@click.command()
@folder_argument
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
    show_default=True,
    help="per-token: the variant onnx-int8, a scale for every token, scores that depend on the pair alone. "
    "static: the variant openvino-int8, calibrated scales, for OpenVINO. "
    "portable: the variant onnx-int8-portable, the same for any runtime and processor, to publish. "
    "stock: the variant onnx-int8-stock, onnxruntime's own, a scale for a whole batch; for comparison.",
)
@click.option(
    "--target",
    metavar="NAME",
    help="Instruction set: avx512_vnni, avx_vnni, avx512, avx2 or arm64.  [default: this processor's]",
)
@data_options
@gate_options
@json_option
def quantize(
    folder: str,
    int8: bool,
    fp16: bool,
    scheme: str,
    target: str | None,
    read: Callable[[], Candidates],
    bounds: dict[str, float],
    json_file: str | None,
) -> None:
    """Quantise the model folder DIR to INT8, or halve its precision.

    Adds a variant to DIR, or replaces it. DATA calibrates all schemes but stock; any text of the
    kind that you rank will do. `xopt validate DIR` then tells whether the variant still ranks the
    same.

    With a gate, the variant is steered by agreement on DATA: the products that move the ranking
    most stay in float until the gate holds, and the fastest variant that passes is kept. Exits
    with 1, and changes nothing, where none does.
    """
    from xopt.optimize.int8.calibrate import calibration_pairs
    from xopt.optimize.judge.verdict import gates_with
    from xopt.optimize.quantize import ANY, SCHEMES, detect_target, prepare, recipe_for
    from xopt.optimize.quantize import quantize as run
    from xopt.optimize.steer import steer
    from xopt.runtime.folder import ModelFolder

    if int8 == fp16:
        raise click.UsageError("give --int8, for a CPU, or --fp16, for a GPU")
    if fp16:
        refuse(("scheme", "target", *DATA_NAMES, *BOUNDS), "goes with --int8, not with --fp16")
        from xopt.optimize.half import FP16, halve

        output, model = Output(json_file), ModelFolder.open(folder)
        model.check_writable()  # before the work, not after it
        _report(output, halve(model), FP16, None)
        return
    if scheme == "portable":
        refuse(("target",), "goes with no portable scheme: it is for all of them")
    if scheme == "stock":
        refuse(DATA_NAMES, "calibrates, and --scheme stock takes no calibration")
    if bounds and scheme == "stock":
        raise click.UsageError(
            "--scheme stock has nothing to steer; leave the gates to `xopt validate`"
        )
    model = ModelFolder.open(folder)
    recipe = recipe_for(target or (ANY if scheme == "portable" else detect_target()), scheme)
    output = Output(json_file)
    model.check_writable()  # before the data are read
    candidates = None
    if scheme != "stock":
        whole = read()
        part, _ = whole.split()
        candidates = part if part.rows else whole  # one query calibrates, and judges nothing later
    steered = prepared = None
    if candidates and bounds:
        gates = [
            gate
            for gate in gates_with(
                bounds, bool(candidates.qrels), 1 if model.manifest.ranks else model.manifest.labels
            )
            if gate.measure in bounds
        ]
        prepared = prepare(model, recipe, calibration_pairs(candidates))
        steered = steer(model, prepared, recipe, candidates, gates)
        recipe = steered.recipe
    _report(output, run(model, recipe, candidates, prepared), SCHEMES[scheme], steered)


def _report(output: Output, made: ModelFolder, name: str, steered: Steered | None) -> None:
    variant = made.variant(name)
    size = f"{made.size_bytes(name) / 1e6:.1f}"
    how = ", ".join(
        f"{k} {len(v) if isinstance(v, list) else v}" for k, v in variant.recipe.items()
    )
    output.json({"folder": made.path, "variant": variant, "steered": steered})
    if steered:
        print_steering(output, steered)
    output.table(
        str(made.path),
        ["variant", "file", "MB", "recipe"],
        [[variant.name, variant.file, size, how]],
        left=("recipe",),
    )
