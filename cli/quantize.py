"""`xopt quantize`"""

from __future__ import annotations

import click

from xopt.cli.options import data_option, folder_argument
from xopt.cli.output import Output, json_option

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
@data_option
@json_option
def quantize(folder: str, scheme: str, target: str | None, data: str, json_file: str | None) -> None:
    """Quantise the model folder DIR to INT8.

    Adds a variant to DIR, or replaces it. DATA calibrates all schemes but stock; any text of the kind
    that you rank will do. `xopt validate DIR` then tells whether the variant still ranks the same.
    """
    from xopt.optimize.quantize import SCHEMES, detect_target, recipe_for
    from xopt.optimize.quantize import quantize as run
    from xopt.runtime.candidates import read_candidates
    from xopt.runtime.folder import ModelFolder

    model, recipe = ModelFolder.open(folder), recipe_for(target or detect_target(), scheme)
    made = run(model, recipe, read_candidates(data))
    variant = made.manifest.variants[SCHEMES[scheme]]
    output = Output(json_file)
    size = f"{(made.path / variant.file).stat().st_size / 1e6:.1f}"
    how = ", ".join(f"{key} {value}" for key, value in variant.recipe.items())
    output.table(str(made.path), ["variant", "file", "MB", "recipe"], [[variant.name, variant.file, size, how]])
    output.json({"folder": made.path, "variant": variant})
