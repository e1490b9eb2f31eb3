"""Certificates against queries that they have not seen: `python docs/measure/cascades.py DIR SCIFACT SCORES.npz`.

Scores all claims of SciFact, BM25's best `--depth` each, with the reference and a variant, which takes an hour on two
cores, and keeps that in SCORES.npz. Then for each of 50 random splits of the queries a half chooses and certifies a
cascade, as `xopt cascade` does it, and the other half tests it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.certify import cheapest, cheapest_option, fit_first
from xopt.optimize.cascade.fit import Query, walk
from xopt.optimize.cascade.lexicon import make_lexicon, token_weights
from xopt.optimize.judge.bounds import mean_allowed
from xopt.runtime.cascade.features import Lexicon, given_features, text_features
from xopt.runtime.data.bm25 import bm25_ranking
from xopt.runtime.data.tables import read_jsonl
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.scorer import open_scorer

Scores = NDArray[np.float32]
CHUNK = 16  # queries between two looks at the clock


def read(folder: Path, depth: int) -> list[tuple[str, list[str]]]:
    """All claims, of both splits, with BM25's best documents."""
    corpus = next(file for file in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if file.is_file())
    texts = [f"{row['title']}\n{row['text']}" for _, row in read_jsonl(corpus)]
    queries = [row["text"] for _, row in read_jsonl(folder / "queries.jsonl")]
    rankings = bm25_ranking(texts, queries, depth)
    return [(query, [texts[i] for i in ranking]) for query, ranking in zip(queries, rankings, strict=True)]


def score(folder: ModelFolder, lists: list[tuple[str, list[str]]], variant: str, file: Path) -> tuple[Scores, Scores]:
    """The logits of the reference and of the variant, [queries, depth], from the file where it has them."""
    if not file.is_file():
        made: dict[str, list[Scores]] = {"onnx-fp32": [], variant: []}
        for name, parts in made.items():
            scorer = open_scorer(folder, name)
            for first in range(0, len(lists), CHUNK):
                pairs = [(query, text) for query, texts in lists[first : first + CHUNK] for text in texts]
                parts.append(scorer.score(pairs).reshape(-1, len(lists[0][1])))
                print(name, first, flush=True)
        np.savez(file, reference=np.concatenate(made["onnx-fp32"]), scores=np.concatenate(made[variant]))
    kept = np.load(file)
    return kept["reference"], kept["scores"]


def main() -> None:
    """Print each split's certificate, and what the other half lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("scifact", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--variant", default="onnx-int8")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--max-loss", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--in-expectation", action="store_true")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--choosing", type=int, default=64)
    parser.add_argument("--order", default="learned", choices=["given", "learned"])
    given = parser.parse_args()
    folder, lists = ModelFolder.open(given.folder), read(given.scifact, given.depth)
    reference, scores = score(folder, lists, given.variant, given.scores)
    encoder = open_scorer(folder, given.variant).encoder
    parts = []
    for query, texts in lists:
        pairs = [(query, text) for text in texts]
        parts.append(encoder.parts(pairs, encoder.encode(pairs).ids))
    embeddings = make_lexicon(folder, []).embeddings
    error = None if given.in_expectation else 1 - given.confidence
    held, shares, losses_seen = 0, [], []
    for split in range(given.splits):
        turn = np.random.default_rng(split).permutation(len(lists))
        half = len(lists) // 2
        choosing, judging, testing = turn[: given.choosing], turn[given.choosing : half], turn[half:]
        lexicon = with_weights(embeddings, [ids for row in choosing for ids in parts[row][1]])

        def queries(rows: NDArray[np.intp], lexicon: Lexicon = lexicon) -> list[Query]:
            first = given_features(given.depth, None)
            learned = given.order == "learned"
            return [
                Query(
                    np.concatenate([first, text_features(*parts[row], lexicon)], 1) if learned else first,
                    reference[row],
                    scores[row],
                )
                for row in rows
            ]

        dimensions = embeddings.shape[1] if given.order == "learned" else 0
        fitted = fit_first(queries(choosing), given.order, False, given.top, "dcg", dimensions)
        allowed = mean_allowed(given.max_loss, error, len(judging))
        best = cheapest_option(fitted.options(allowed))
        walks = [walk(query, fitted.order, given.top, "dcg") for query in queries(judging)]
        rule, losses = cheapest(walks, fitted.rules(best.rule), given.top, given.max_loss, error, "dcg")
        tested = [walk(query, fitted.order, given.top, "dcg") for query in queries(testing)]
        depths, found = np.array([each.stop(rule, given.top) for each in tested]).T
        lost = float(found.mean())
        shares.append(float(depths.mean()) / given.depth)
        losses_seen.append(lost)
        held += lost <= given.max_loss
        shown = "nothing" if losses is None else f"{losses.mean():.4f}"
        print(
            f"split {split}: {rule}, {shown} lost to certify; test: {lost:.4f} lost, {shares[-1]:.1%} scored",
            flush=True,
        )
    print(
        f"{held} of {given.splits} hold; {np.mean(shares):.1%} of the pairs scored ({np.min(shares):.1%} to "
        f"{np.max(shares):.1%}); the other half lost {np.mean(losses_seen):.4f}, at most {np.max(losses_seen):.4f}"
    )


def with_weights(embeddings: NDArray[np.float32], documents: list[NDArray[np.int64]]) -> Lexicon:
    """The lexicon that `make_lexicon` makes of these documents."""
    distinct = list({ids.tobytes(): ids for ids in documents}.values())
    return Lexicon(embeddings, token_weights(distinct, len(embeddings)))


if __name__ == "__main__":
    main()
