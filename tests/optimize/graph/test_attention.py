from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.graphs import EXACT, GRAPHS, as_bert, exported, graph_of, logits, session_of
from helpers.tiny import MAX_LENGTH, make_logit_score, make_tiny

from xopt.optimize.graph.attention import fuse_attention, unfused
from xopt.optimize.graph.one_row import keep_one_row

LOCAL = partial(
    make_tiny, architecture="modernbert", num_hidden_layers=3, classifier_pooling="mean"
)
WINDOW = 8  # to each side, of LOCAL
# Models whose attention has another shape than BERT's, and how many attentions are fused.
MAKERS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "modernbert, two local layers": (LOCAL, 3),
    "modernbert, the last layer local": (partial(make_tiny, architecture="modernbert"), 1),
    "llama": (partial(make_tiny, architecture="llama"), 2),
    "llama, a head for each key": (
        partial(make_tiny, architecture="llama", num_key_value_heads=4),
        2,
    ),
    "qwen2": (partial(make_tiny, architecture="qwen2"), 2),
    "qwen3, LogitScore": (make_logit_score, 2),
    # Its last layer's token sees a window too, which no operator knows.
    "mistral, a window": (partial(make_tiny, architecture="mistral", sliding_window=WINDOW), 0),
}


def check_same(
    plain: onnx.ModelProto, fused: onnx.ModelProto, lengths: Sequence[int], left: bool = False
) -> None:
    """Check that scores stay with and without padding, and that the rewrite can be undone."""
    onnx.checker.check_model(fused)
    before, after = (
        sorted(str(node) for node in model.graph.node) for model in (plain, unfused(fused))
    )
    assert before == after
    random = np.random.default_rng(0)
    expected, got = session_of(plain), session_of(fused)
    for length in lengths:
        ids = random.integers(5, 40, (3, length))
        mask = np.ones_like(ids)
        assert np.abs(logits(got, ids, mask) - logits(expected, ids, mask)).max() < EXACT
        mask[1, length // 2 :] = 0  # a padded pair takes the nodes that were there
        if left:
            mask = mask[:, ::-1].copy()
        assert np.array_equal(logits(got, ids, mask), logits(expected, ids, mask))


@pytest.mark.parametrize(("architecture", "exporter"), GRAPHS)
def test_attention_is_one_operator_and_no_score_changes(architecture: str, exporter: str) -> None:
    plain, _ = keep_one_row(exported(architecture, exporter))
    fused, count = fuse_attention(plain, MAX_LENGTH)
    # ModernBERT's last layer here is local; optimum writes its first one in another shape.
    others = {
        "distilbert": 2 if as_bert("distilbert") else 0,
        "modernbert": int(exporter == "torch"),
    }
    assert count == others.get(architecture, 2)
    check_same(plain, fused, (2, 7, MAX_LENGTH))


@pytest.mark.parametrize("kind", MAKERS)
def test_rotated_windowed_and_causal_attention_is_fused(tmp_path: Path, kind: str) -> None:
    make, expected = MAKERS[kind]
    plain, _ = keep_one_row(graph_of(make(tmp_path / "model")))
    fused, count = fuse_attention(plain, MAX_LENGTH)
    assert count == expected
    is_decoder = "modernbert" not in kind
    # Blocks begin to pay at four windows.
    lengths = (2, WINDOW + 1, 4 * WINDOW, 4 * WINDOW + 1, 5 * WINDOW, MAX_LENGTH)
    check_same(plain, fused, lengths, left=is_decoder)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_keys_of_fewer_heads_are_rotated_with_their_queries(tmp_path: Path, key_heads: int) -> None:
    plain, _ = keep_one_row(graph_of(make_tiny(tmp_path, "qwen2", num_key_value_heads=key_heads)))
    fused, _ = fuse_attention(plain, MAX_LENGTH)
    inside = [
        node.op_type
        for choice in fused.graph.node
        for attribute in choice.attribute
        if attribute.name == "then_branch"
        for node in attribute.g.node
    ]
    assert inside.count("GroupQueryAttention") == 1  # the last layer has one query a pair
    assert inside.count("RotaryEmbedding") >= 2


@pytest.mark.parametrize("window", [301, 900])
def test_a_long_window_is_seen_where_pairs_can_be_longer(tmp_path: Path, window: int) -> None:
    plain, _ = keep_one_row(graph_of(make_tiny(tmp_path, "mistral", sliding_window=window)))
    assert fuse_attention(plain, window)[1] == 2  # each token of such pairs sees all before it
    assert fuse_attention(plain, window + 1)[1] == 0


# Scores of one pair of so many tokens, by the two layers' heads, take 256 MB each time.
LONG = 4000
MEASURE = """
import resource, sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
ids = np.full((1, int(sys.argv[2])), 7)
session.run(None, {value.name: np.ones_like(ids) for value in session.get_inputs()})
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["modernbert, two local layers", "llama", "qwen3, LogitScore"])
def test_a_long_pair_never_has_all_its_scores_in_memory(tmp_path: Path, kind: str) -> None:
    make, _ = MAKERS[kind]
    plain, _ = keep_one_row(graph_of(make(tmp_path / "model")))
    fused, _ = fuse_attention(plain, MAX_LENGTH)
    file = tmp_path / "model.onnx"
    onnx.save(fused, file)
    command = [sys.executable, "-c", MEASURE, str(file), str(LONG)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64, "MiB"


def test_a_mask_that_hides_more_than_padding_stays() -> None:
    plain, _ = keep_one_row(exported("bert", "torch"))
    softmax = next(node for node in plain.graph.node if node.op_type == "Softmax")
    mask = next(node for node in plain.graph.node if node.output[0] == softmax.input[0]).input[1]
    made = next(node for node in plain.graph.node if node.output[0] == mask)
    made.output[0] = f"{mask}_before"
    one = onnx.helper.make_node("Constant", [], ["one"], value_float=1.0)
    shifted = onnx.helper.make_node("Add", [made.output[0], "one"], [mask])
    at = list(plain.graph.node).index(made) + 1
    plain.graph.node.insert(at, one)
    plain.graph.node.insert(at + 1, shifted)
    assert fuse_attention(plain, MAX_LENGTH)[1] == 0
