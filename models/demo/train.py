"""Train the low-rank adapter that turns all-MiniLM-L6-v2 into the demo cross-encoder.

    python models/demo/train.py [--beir FOLDER ...] [--out FOLDER]

A list is one positive and a few BM25 negatives. The loss is softmax cross-entropy over the list:
ListNet with one relevant document (Cao et al. 2007). LoRA (Hu et al. 2021) is on every linear
layer.

The lists come from docstrings of the packages installed beside this interpreter, with the summary
as query and the body as passage. Each BEIR folder gives more, from its train qrels and from title
and abstract.
"""

from __future__ import annotations

import argparse
import random
import sysconfig
import time
from pathlib import Path

import peft
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from xopt.optimize.model.demo import BASE_ID, base_folder
from xopt.runtime.data.bm25 import bm25_ranking
from xopt.runtime.data.collection import read_beir
from xopt.runtime.data.docstrings import read_docstrings

NEGATIVES = 5
POOL = 50  # negatives are drawn from the BM25 ranking's first 50
TOKENS = 192
LISTS_A_STEP = 8
RANK = 32
LEARNING_RATE = 8e-4
WARMUP = 0.06

List = tuple[str, list[str]]  # a query, its positive first and then the negatives


def make_lists(
    queries: list[str], gold: list[set[int]], passages: list[str], rng: random.Random
) -> list[List]:
    """One list for each query: a relevant passage and `NEGATIVES` from BM25's first `POOL`."""
    lists = []
    for query, relevant, ranking in zip(
        queries, gold, bm25_ranking(passages, queries, POOL), strict=True
    ):
        wrong = [row for row in ranking if row not in relevant and passages[row] != query]
        chosen = [rng.choice(sorted(relevant)), *rng.sample(wrong, min(NEGATIVES, len(wrong)))]
        lists.append((query, [passages[row] for row in chosen]))
    return lists


def docstring_lists(count: int, rng: random.Random) -> list[List]:
    """Lists from the docstrings of installed packages, at most `count` of them."""
    root = Path(sysconfig.get_paths()["purelib"])
    docs = [d for d in read_docstrings(root, frozenset({"tests", "xopt"})) if len(d.body) < 4000]
    rows = rng.sample(range(len(docs)), min(count, len(docs)))
    return make_lists(
        [docs[r].summary for r in rows], [{r} for r in rows], [d.body for d in docs], rng
    )


def beir_lists(folder: Path, epochs: int, titles: int, rng: random.Random) -> list[List]:
    """Lists from a BEIR folder: `epochs` times its train qrels, and `titles` of title against
    text.
    """
    beir = read_beir(folder, split="train")
    row = {doc_id: i for i, doc_id in enumerate(beir.corpus)}
    passages = list(beir.corpus.values())
    gold = {
        q: {row[d] for d, grade in judged.items() if grade > 0 and d in row}
        for q, judged in beir.qrels.items()
    }
    judged = [q for q in gold if gold[q]] * epochs
    lists = make_lists([beir.queries[q] for q in judged], [gold[q] for q in judged], passages, rng)
    split = [p.partition("\n") for p in passages]
    bodies = [body or title for title, _, body in split]
    rows = rng.sample(range(len(split)), min(titles, len(split)))
    return lists + make_lists([split[r][0] for r in rows], [{r} for r in rows], bodies, rng)


def build_model(base: Path) -> peft.PeftModel:
    """all-MiniLM-L6-v2 with a one-label head and low-rank adapters on every linear layer."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            task_type="SEQ_CLS",
            r=RANK,
            lora_alpha=RANK,
            lora_dropout=0.0,
            target_modules=r".*encoder\.layer.*\.(query|key|value|dense)",
            modules_to_save=["classifier", "pooler", "token_type_embeddings"],
        ),
    )


def train(model: peft.PeftModel, tokenizer: object, lists: list[List]) -> None:
    """One pass over `lists`: AdamW, linear warm-up and decay, no dropout (it doubles the time on
    a CPU).
    """
    steps = len(lists) // LISTS_A_STEP
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARMUP * steps), (steps - step) / steps)
    )
    model.eval()  # dropout off; gradients flow all the same
    start, losses = time.perf_counter(), []
    for step in range(steps):
        for query, passages in lists[step * LISTS_A_STEP : (step + 1) * LISTS_A_STEP]:
            features = tokenizer(
                [query] * len(passages),
                passages,
                padding=True,
                truncation=True,
                max_length=TOKENS,
                return_tensors="pt",
            )
            logits = model(**features).logits.view(1, -1)
            loss = torch.nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.long))
            (loss / LISTS_A_STEP).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0 or step == steps - 1:
            mean = sum(losses[-400:]) / len(losses[-400:])
            print(
                f"step {step + 1}/{steps}  loss {mean:.3f}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )


def save(model: peft.PeftModel, out: Path) -> None:
    """Write the adapter in half precision, in PEFT's format."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.half()
    model.peft_config["default"].base_model_name_or_path = BASE_ID
    model.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--beir", type=Path, action="append", default=[], help="a BEIR folder with a train split"
    )
    parser.add_argument("--beir-epochs", type=int, default=2, help="passes over its train qrels")
    parser.add_argument(
        "--titles", type=int, default=2000, help="title-abstract lists from each BEIR folder"
    )
    parser.add_argument(
        "--docstrings", type=int, default=2000, help="lists from docstrings of installed packages"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    rng = random.Random(0)
    torch.manual_seed(0)
    lists = docstring_lists(given.docstrings, rng)
    for folder in given.beir:
        lists += beir_lists(folder, given.beir_epochs, given.titles, rng)
    rng.shuffle(lists)
    base = base_folder()
    model = build_model(base)
    train(model, AutoTokenizer.from_pretrained(base), lists)
    save(model, given.out)


if __name__ == "__main__":
    main()
