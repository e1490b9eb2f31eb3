"""`xopt quantize`"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from xopt.cli.options import data_options, folder_argument, gate_options
from xopt.cli.output import Output, json_option
from xopt.cli.tables import print_steering

if TYPE_CHECKING:
    from xopt.runtime.candidates import Candidates

__all__ = ["quantize"]


@click.command()
@folder_argument
@click.option("--int8", is_flag=True, required=True, expose_value=False, help="INT8 matrix products.")
@click.option(
    "--scheme",
    type=click.Choice(["per-token", "static", "stock"]),
    default="per-token",
    show_default=True,
    help="per-token: the variant onnx-int8, a scale for every token, scores that depend on the pair alone. "
    "static: the variant openvino-int8, calibrated scales, for OpenVINO (pip install 'xopt-rerank[openvino]'). "
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
    scheme: str,
    target: str | None,
    read: Callable[[], Candidates],
    bounds: dict[str, float],
    json_file: str | None,
) -> None:
    """Quantise the model folder DIR to INT8.

    Adds a variant to DIR, or replaces it. DATA calibrates all schemes but stock; any text of the kind
    that you rank will do. `xopt validate DIR` then tells whether the variant still ranks the same.

    With a gate, the variant is steered by agreement on DATA: the products that move the ranking most stay in
    float until the gate holds, and the fastest variant that passes is kept. Exits with 1, and changes
    nothing, where none does.
    """
    from xopt.optimize.quantize import SCHEMES, detect_target, recipe_for
    from xopt.optimize.quantize import quantize as run
    from xopt.optimize.steer import steer
    from xopt.optimize.validate import gates_with
    from xopt.runtime.folder import ModelFolder

    if bounds and scheme == "stock":
        raise click.UsageError("--scheme stock has nothing to steer; leave the gates to `xopt validate`")
    model, recipe = ModelFolder.open(folder), recipe_for(target or detect_target(), scheme)
    candidates, output, steered = read(), Output(json_file), None
    if bounds:
        gates = [
            gate for gate in gates_with(bounds, bool(candidates.qrels), model.manifest.labels) if gate.measure in bounds
        ]
        steered = steer(model, recipe, candidates, gates)
        print_steering(output, steered)
        recipe = steered.recipe
    made = run(model, recipe, candidates)
    variant = made.manifest.variants[SCHEMES[scheme]]
    size = f"{(made.path / variant.file).stat().st_size / 1e6:.1f}"
    how = ", ".join(f"{key} {value}" for key, value in {**variant.recipe, "floats": len(recipe.floats)}.items())
    output.table(str(made.path), ["variant", "file", "MB", "recipe"], [[variant.name, variant.file, size, how]])
    output.json({"folder": made.path, "variant": variant, "steered": steered})
