"""Certificates against queries that they have not seen: `python docs/measure/cascade/splits.py
DIR SCIFACT SCORES.npz`.

Scores all claims of SciFact, or `--queries` drawn of them, with the reference and a variant. Each
has BM25's best `--depth`. For 100 that takes an hour on two cores. SCORES.npz keeps the scores:
where the script was stopped, it goes on. With `--rescored 80` the reference scores the 80 that the
variant ranks best, and the others keep the variant's score.

Then come 50 random splits of the queries. One half chooses and certifies a cascade, as `xopt
cascade` does it, and the other half tests it. At the end all of them choose and certify, and that
cascade is written into DIR.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xopt.optimize.cascade.certify import cheapest, cheapest_option, fit_first, write_cascade
from xopt.optimize.cascade.fit import Query
from xopt.optimize.cascade.lexicon import make_lexicon, token_weights
from xopt.optimize.cascade.walk import walk
from xopt.optimize.judge.bounds import upper_bound
from xopt.runtime.cascade.cascade import Cascade, Certificate
from xopt.runtime.cascade.features import (
    Bags,
    Evidence,
    Lexicon,
    given_features,
    term_vectors,
    text_features,
)
from xopt.runtime.data.bm25 import bm25_ranking
from xopt.runtime.data.candidates import query_hash
from xopt.runtime.data.places import located
from xopt.runtime.data.text import read_jsonl
from xopt.runtime.folder import ModelFolder
from xopt.runtime.scoring.scorer import open_scorer

Scores, Rows = NDArray[np.float32], NDArray[np.intp]
CHUNK = 16  # queries that are scored before the file is written


def read(folder: Path, depth: int) -> list[tuple[str, list[str]]]:
    """All claims, of both splits, with BM25's best documents."""
    corpus = next(
        file for file in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if file.is_file()
    )
    texts = [
        f"{row['title']}\n{row['text']}" for _, row in read_jsonl("corpus", located(str(corpus)))
    ]
    queries = [
        row["text"] for _, row in read_jsonl("queries", located(str(folder / "queries.jsonl")))
    ]
    rankings = bm25_ranking(texts, queries, depth)
    return [
        (query, [texts[i] for i in ranking])
        for query, ranking in zip(queries, rankings, strict=True)
    ]


def score(
    folder: ModelFolder, lists: list[tuple[str, list[str]]], variant: str, file: Path, rescored: int
) -> tuple[Scores, Scores]:
    """The logits of the reference and of the variant, [queries, depth], going on where the file
    ends.
    """
    made = np.zeros((2, 0, len(lists[0][1])), np.float32)
    if file.is_file():
        kept = np.load(file)
        made = np.stack([kept["reference"], kept["scores"]])
    opened, reference = open_scorer(folder, variant), open_scorer(folder, "onnx-fp32")
    while made.shape[1] < len(lists):
        some = lists[made.shape[1] : made.shape[1] + CHUNK]
        scores = opened.score([(query, text) for query, texts in some for text in texts])
        scores = scores.reshape(len(some), -1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :rescored]
        exact = [
            (query, texts[i]) for (query, texts), own in zip(some, best, strict=True) for i in own
        ]
        expected = scores.copy()
        np.put_along_axis(expected, best, reference.score(exact).reshape(best.shape), 1)
        made = np.concatenate([made, np.stack([expected, scores])], 1)
        part = file.with_suffix(".part.npz")
        np.savez(part, reference=made[0], scores=made[1])
        part.replace(file)
        print(f"{made.shape[1]} of {len(lists)} queries scored", flush=True)
    return made[0, : len(lists)], made[1, : len(lists)]


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("scifact", type=Path)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--variant", default="onnx-int8")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--queries", type=int)
    parser.add_argument(
        "--rescored",
        type=int,
        help="the reference scores so many of a query's, best by the variant",
    )
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--max-loss", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--in-expectation", action="store_true")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--choosing", type=int, default=64)
    parser.add_argument("--order", default="learned", choices=["given", "learned"])
    return parser.parse_args()


def main() -> None:
    """Print each split's certificate, and what the other half lost."""
    given = arguments()
    folder, lists = ModelFolder.open(given.folder), read(given.scifact, given.depth)
    lists = [
        lists[row] for row in np.random.default_rng(11).permutation(len(lists))[: given.queries]
    ]
    reference, scores = score(
        folder, lists, given.variant, given.scores, given.rescored or given.depth
    )
    encoder = open_scorer(folder, given.variant).encoder
    parts = []
    for query, texts in lists:
        pairs = [(query, text) for text in texts]
        parts.append(encoder.parts(pairs, encoder.encode(pairs).ids))
    embeddings = make_lexicon(folder, []).embeddings
    error, learned = (
        None if given.in_expectation else 1 - given.confidence,
        given.order == "learned",
    )
    held, shares, lost_there = 0, [], []

    def queries(rows: Rows, lexicon: Lexicon) -> list[Query]:
        first = given_features(given.depth, None)
        if not learned:
            return [Query(Evidence(first), reference[row], scores[row]) for row in rows]
        made = []
        for row in rows:
            bags = Bags.of(parts[row][1], lexicon)
            features = np.concatenate([first, text_features(parts[row][0], bags, lexicon)], 1)
            evidence = Evidence(features, term_vectors(bags, lexicon), embeddings.shape[1])
            made.append(Query(evidence, reference[row], scores[row]))
        return made

    def found(
        choosing: Rows, judging: Rows, testing: Rows
    ) -> tuple[Cascade, Lexicon, NDArray[np.float64]]:
        """A cascade, and of each query that tests it how many documents it scores and what it
        loses.
        """
        distinct = {ids.tobytes(): ids for row in choosing for ids in parts[row][1]}
        lexicon = Lexicon(embeddings, token_weights(list(distinct.values()), len(embeddings)))
        fitted = fit_first(queries(choosing, lexicon), given.order, False, given.top, "dcg")
        best = cheapest_option(fitted.options(given.max_loss))
        walks = [walk(query, fitted.order, given.top, "dcg") for query in queries(judging, lexicon)]
        rule, losses = cheapest(
            walks, fitted.rules(best.rule), given.top, given.max_loss, error, "dcg"
        )
        losses = np.ones(len(walks)) if losses is None else losses
        certificate = Certificate(
            measure="dcg",
            top=given.top,
            max_loss=given.max_loss,
            confidence=None if error is None else given.confidence,
            loss=float(losses.mean()),
            bound=upper_bound(losses, error),
            share=float(np.mean([each.stop(rule, given.top)[0] for each in walks])) / given.depth,
            queries=len(judging),
            depth=given.depth,
            first_stage="SciFact",
            column=None,
            data="",
            seen=tuple(query_hash(query) for query, _ in lists),
        )
        tested = [
            walk(query, fitted.order, given.top, "dcg").stop(rule, given.top)
            for query in queries(testing, lexicon)
        ]
        return Cascade(fitted.order, rule, given.variant, certificate), lexicon, np.array(tested).T

    for split in range(given.splits):
        turn = np.random.default_rng(split).permutation(len(lists))
        half = len(lists) // 2
        cascade, _, (depths, losses) = found(
            turn[: given.choosing], turn[given.choosing : half], turn[half:]
        )
        shares.append(float(depths.mean()) / given.depth)
        lost_there.append(float(losses.mean()))
        held += lost_there[-1] <= given.max_loss
        certified = f"{cascade.certificate.loss:.4f} lost to certify"
        print(
            f"split {split}: {cascade.rule}, {certified}; test: {lost_there[-1]:.4f}, {shares[-1]:.1%}",
            flush=True,
        )
    if shares:
        print(
            f"{held} of {given.splits} hold; {np.mean(shares):.1%} of the pairs scored ({np.min(shares):.1%} to "
            f"{np.max(shares):.1%}); the other half lost {np.mean(lost_there):.4f}, at most {np.max(lost_there):.4f}"
        )
    turn = np.random.default_rng(0).permutation(len(lists))
    cascade, lexicon, _ = found(turn[: given.choosing], turn[given.choosing :], turn[:1])
    own = cascade.certificate
    print(
        f"all: {cascade.rule}, {own.loss:.4f} lost, {own.bound:.4f} shown, {own.share:.1%} of the pairs scored"
    )
    write_cascade(folder, cascade, lexicon if learned else None)


if __name__ == "__main__":
    main()
