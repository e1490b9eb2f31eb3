"""`xopt quantize`"""

from __future__ import annotations

import click

from xopt.cli.options import folder_argument
from xopt.cli.output import Output, json_option

__all__ = ["quantize"]


@click.command()
@folder_argument
@click.option("--int8", is_flag=True, required=True, expose_value=False, help="Dynamic INT8: the variant onnx-int8.")
@click.option(
    "--target",
    metavar="NAME",
    help="Instruction set: avx512_vnni, avx_vnni, avx512, avx2 or arm64.  [default: this processor's]",
)
@json_option
def quantize(folder: str, target: str | None, json_file: str | None) -> None:
    """Quantise the model folder DIR to INT8.

    Adds the variant onnx-int8 to DIR, or replaces it. `xopt validate DIR` then tells whether it
    still ranks the same.
    """
    from xopt.optimize.quantize import detect_target, recipe_for
    from xopt.optimize.quantize import quantize as run
    from xopt.runtime.folder import ModelFolder

    made = run(ModelFolder.open(folder), recipe_for(target or detect_target()))
    variant = made.manifest.variants["onnx-int8"]
    output = Output(json_file)
    size = f"{(made.path / variant.file).stat().st_size / 1e6:.1f}"
    recipe = ", ".join(f"{key} {value}" for key, value in variant.recipe.items())
    output.table(str(made.path), ["variant", "file", "MB", "recipe"], [[variant.name, variant.file, size, recipe]])
    output.json({"folder": made.path, "variant": variant})
