"""The shape of a model, from which the work of its forwards follows."""

from __future__ import annotations

import json
from dataclasses import dataclass

from xopt.runtime.folder import ModelFolder, Variant

__all__ = ["ModelShape"]

# How config.json names the sizes, in one architecture or another.
CONFIG_NAMES = {
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden": ("hidden_size", "dim"),
    "intermediate": ("intermediate_size", "hidden_dim"),
}
# Architectures with three products in a feed-forward block.
GATED = ("modernbert", "gemma", "llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model's layers.

    queries: the width of all heads. keys: that of the keys, less where heads share them.
    gated: whether a feed-forward block has three products, not two.
    narrowed: whether the last layer sees one row a pair, but for keys and values.
    absorbed: whether that layer makes no keys and values either.
    """

    layers: int
    hidden: int
    intermediate: int
    gated: bool
    narrowed: bool
    absorbed: bool
    queries: int
    keys: int

    @staticmethod
    def of(folder: ModelFolder, variant: Variant) -> ModelShape | None:
        """Return the shape of a variant; None where config.json lacks a size."""
        config = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
        sizes = {}
        for size, names in CONFIG_NAMES.items():
            for name in names:
                if isinstance(config.get(name), int):
                    sizes[size] = config[name]
        if len(sizes) < len(CONFIG_NAMES):
            return None
        graph = folder.manifest.variants.get("onnx-fp32")
        recipe = graph.recipe if graph else {}
        heads = config.get("num_attention_heads") or config.get("n_heads") or 1
        head_size = config.get("head_dim") or sizes["hidden"] // heads
        return ModelShape(
            **sizes,
            gated=config.get("model_type") in GATED,
            narrowed=variant.backend != "torch" and bool(recipe.get("one_row_matmuls")),
            absorbed=variant.file.endswith(".onnx") and bool(recipe.get("absorbed")),
            queries=heads * head_size,
            keys=(config.get("num_key_value_heads") or heads) * head_size,
        )

    @property
    def weights(self) -> int:
        """The weights of the products that see every token."""
        attention = 2 * self.hidden * (self.queries + self.keys)
        feed_forward = (3 if self.gated else 2) * self.hidden * self.intermediate
        weights = (self.layers - self.narrowed) * (attention + feed_forward)
        if self.narrowed and not self.absorbed:
            weights += 2 * self.hidden * self.keys
        return weights

    def operations(self, padded_tokens: float, squared_tokens: float) -> float:
        """Return the multiplications and additions of a model's forwards."""
        attention = 4 * (self.layers - self.narrowed) * self.queries * squared_tokens
        return 2 * padded_tokens * self.weights + attention
