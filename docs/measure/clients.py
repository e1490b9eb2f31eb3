"""The drop-in in each library that reranks with CrossEncoders, and the library's own model beside
it: the table of docs/guides/clients.md.

    python docs/measure/clients.py [CLIENT...]

Each library is installed into an environment of its own, on top of this one's packages and held to
constraints.txt. There it ranks the same texts by the demo model twice: once as the library loads
it, and once by `xopt.CrossEncoder`. The table says whether scores are equal within 1e-4, and the
order too. All of them take some minutes.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

import xopt
from xopt.optimize.export import export

ROOT = Path(__file__).parents[2]
SAME = 1e-4  # scores that differ by no more are equal


@dataclass(frozen=True)
class Client:
    """A library: what it is installed by, and two ways to make the same thing with it.

    `made` is made of xopt's CrossEncoder, of DIR, and `own` as the library does it, of MODEL.
    `run` makes `scores` of it: a score by text or measure, the best first.
    `swaps`: the library takes xopt's class in the place of sentence-transformers', too.
    """

    packages: str
    imports: str
    made: str
    own: str
    run: str
    swaps: bool = True


HAYSTACK_OPENED = """
made = SentenceTransformersSimilarityRanker(model=DIR, scale_score=False)
made._cross_encoder = CrossEncoder(DIR)
"""
HAYSTACK_RAN = """
documents = [Document(content=text) for text in TEXTS]
best = made.run(query=QUERY, documents=documents, top_k=5)["documents"]
scores = {document.content: document.score for document in best}
"""
CLIENTS = {
    "LangChain": Client(
        "langchain-community langchain-classic",
        """
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_community.cross_encoders import HuggingFaceCrossEncoder
from langchain_core.documents import Document
""",
        "made = HuggingFaceCrossEncoder.model_construct(client=CrossEncoder(DIR))",
        "made = HuggingFaceCrossEncoder(model_name=MODEL)",
        """
found = made.score([(QUERY, text) for text in TEXTS])
by_text = dict(zip(TEXTS, map(float, found)))
documents = [Document(page_content=text) for text in TEXTS]
best = CrossEncoderReranker(model=made, top_n=5).compress_documents(documents, QUERY)
scores = {document.page_content: by_text[document.page_content] for document in best}
""",
    ),
    "LlamaIndex": Client(
        "llama-index-postprocessor-sbert-rerank",
        """
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.sbert_rerank import SentenceTransformerRerank
""",
        """
made = SentenceTransformerRerank.model_construct(model=DIR, top_n=5)
made._model = CrossEncoder(DIR)
""",
        "made = SentenceTransformerRerank(model=MODEL, top_n=5, device='cpu')",
        """
nodes = [NodeWithScore(node=TextNode(text=text), score=0.5) for text in TEXTS]
best = made.postprocess_nodes(nodes, query_str=QUERY)
scores = {node.text: node.score for node in best}
""",
    ),
    "Haystack": Client(
        "haystack-ai sentence-transformers-haystack",
        """
from haystack import Document
from haystack_integrations.components.rankers.sentence_transformers import (
    SentenceTransformersSimilarityRanker,
)
""",
        HAYSTACK_OPENED,
        "made = SentenceTransformersSimilarityRanker(model=MODEL, scale_score=False)",
        HAYSTACK_RAN,
    ),
    "Haystack 2": Client(
        "haystack-ai<3",
        """
from haystack import Document
from haystack.components.rankers import SentenceTransformersSimilarityRanker
""",
        HAYSTACK_OPENED,
        "made = SentenceTransformersSimilarityRanker(model=MODEL, scale_score=False); made.warm_up()",
        HAYSTACK_RAN,
    ),
    "BEIR": Client(
        "beir",
        """
from beir.reranking import Rerank
from beir.reranking.models import CrossEncoder as Own
""",
        "made = Rerank(CrossEncoder(DIR))",
        "made = Rerank(Own(MODEL))",
        """
corpus = {text: {"text": text} for text in TEXTS}
first = {"1": dict.fromkeys(TEXTS, 0.0)}
found = made.rerank(corpus, {"1": QUERY}, first, top_k=len(TEXTS))["1"]
scores = dict(sorted(found.items(), key=lambda item: -item[1]))
""",
    ),
    "LanceDB": Client(
        "lancedb",
        """
import lancedb
import pyarrow as pa
from lancedb.rerankers import CrossEncoderReranker
""",
        """
made = CrossEncoderReranker()
made.model = CrossEncoder(DIR)
""",
        "made = CrossEncoderReranker(MODEL, device='cpu')",
        """
with tempfile.TemporaryDirectory() as place:
    rows = [{"text": text, "vector": [float(row), 1.0]} for row, text in enumerate(TEXTS)]
    table = lancedb.connect(place).create_table("texts", rows)
    nearest = table.search([0.0, 1.0]).limit(len(TEXTS)).rerank(made, QUERY).to_list()
    scores = {row["text"]: row["_relevance_score"] for row in nearest}
""",
    ),
    "rerankers": Client(
        "rerankers",
        """
from rerankers import Reranker
from xopt.integrations.rerankers import CrossEncoderRanker
""",
        "made = CrossEncoderRanker(CrossEncoder(DIR))",
        "made = Reranker(MODEL, model_type='cross-encoder', device='cpu', verbose=0)",
        """
best = made.rank(QUERY, TEXTS, doc_ids=list(range(len(TEXTS))))
scores = {result.text: result.score for result in best.top_k(5)}
""",
        swaps=False,
    ),
    "MTEB": Client(
        "mteb",
        """
import mteb
import sentence_transformers
from datasets import Dataset
from mteb.mocks.mock_tasks import MockRerankingTask
from pathlib import Path
from xopt.integrations.mteb import CrossEncoderForMTEB

class Task(MockRerankingTask):
    def load_data(self, **_):
        corpus = Dataset.from_dict({"id": TEXTS, "text": TEXTS, "title": [""] * len(TEXTS)})
        queries = Dataset.from_dict({"id": ["1"], "text": [QUERY]})
        split = {"corpus": corpus, "queries": queries, "top_ranked": {"1": TEXTS}}
        split["relevant_docs"] = {"1": {TEXTS[1]: 1, TEXTS[4]: 1}}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True
""",
        "made = CrossEncoderForMTEB(CrossEncoder(DIR))",
        "made = sentence_transformers.CrossEncoder(MODEL, device='cpu')",
        """
with tempfile.TemporaryDirectory() as place:
    done = mteb.evaluate(made, Task(), cache=None, co2_tracker=False, prediction_folder=place)
    (file,) = Path(place).glob("*.json")
    found = json.loads(file.read_text())["default"]["test"]["1"]
scores = dict(sorted(found.items(), key=lambda item: -item[1]))
(measures,) = done.task_results[0].scores["test"]
scores |= {name: value for name, value in measures.items() if isinstance(value, float)}
""",
        swaps=False,
    ),
}

SCRIPT = """
import json, sys, tempfile, warnings
from importlib.metadata import version
from xopt import CrossEncoder
warnings.simplefilter("ignore")
DIR, MODEL, PACKAGE, swap = sys.argv[1:]
if swap == "True":
    import sentence_transformers.cross_encoder
    sentence_transformers.CrossEncoder = CrossEncoder
    sentence_transformers.cross_encoder.CrossEncoder = CrossEncoder
QUERY = "how do I copy a file"
TEXTS = [
    "json.dumps(obj) serialises obj to a JSON formatted string",
    "shutil.copy(src, dst) copies the file src to the file or directory dst",
    "os.remove(path) removes the file path",
    "str.strip() returns a copy of the string with whitespace removed",
    "shutil.copytree(src, dst) copies an entire directory tree",
    "random.shuffle(x) shuffles the sequence x in place",
    "copy.deepcopy(x) returns a deep copy of x",
]
{imports}
def xopts():
{made}
{run}
    return scores
def its_own():
{own}
{run}
    return scores
print(json.dumps([version(PACKAGE), list(xopts().items()), list(its_own().items())]))
"""


def script(client: Client) -> str:
    """Return the program that runs a client both ways."""
    made, own, run = (
        indent(part.strip(), "    ") for part in (client.made, client.own, client.run)
    )
    return SCRIPT.format(imports=client.imports.strip(), made=made, own=own, run=run)


def environment(place: Path, packages: str, alone: bool = False) -> Path:
    """Make an environment with some packages, and return its Python.

    It has this one's packages too and keeps to their versions, unless it is to be `alone`.
    """
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not alone:
        inherit = "import site; print(site.getsitepackages()[0])"
        folders = [
            subprocess.check_output([each, "-c", inherit], text=True)
            for each in (sys.executable, python)
        ]
        ours, theirs = (Path(folder.strip()) for folder in folders)
        (theirs / "inherited.pth").write_text(f"{ours}\n", encoding="utf-8")
        pip += ["-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, *packages.split()], check=True)
    return python


def output_of(client: Client, python: Path, folder: Path, swap: bool) -> Any:
    """Run a client both ways: return its version, xopt's scores, and those of the library's own way.

    With `swap` the latter finds xopt's class in the place of sentence-transformers'.
    """
    offline = {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    path = Path(str(xopt.__file__)).parents[1]
    # A model folder is a model that sentence-transformers loads, too.
    arguments = [folder, folder, package_of(client), str(swap)]
    printed = subprocess.check_output(
        [python, "-c", script(client), *arguments],
        env=os.environ | offline | {"PYTHONPATH": str(path)},
        text=True,
    )
    return json.loads(printed.splitlines()[-1])


def package_of(client: Client) -> str:
    return client.packages.split()[0].partition("<")[0]


def same(ours: list[tuple[str, float]], its_own: list[tuple[str, float]]) -> str:
    """Whether two rankings have equal scores in the same order; if not, how far they are apart."""
    scores = dict(its_own)
    apart = max(abs(score - scores.get(name, math.inf)) for name, score in ours)
    ordered = [name for name, _ in ours] == [name for name, _ in its_own]
    return "yes" if ordered and apart <= SAME else f"NO, {apart:.0e}"


def tried(client: Client, python: Path, folder: Path) -> str:
    """Run a client, and return its row of the table, without the name."""
    version, *scores = output_of(client, python, folder, swap=False)
    found = same(*scores)
    swapped = "-"
    if client.swaps:
        _, *scores = output_of(client, python, folder, swap=True)
        swapped = same(*scores)
    return f"{package_of(client)} {version} | {found} | {swapped}"


def main() -> None:
    names = sys.argv[1:] or list(CLIENTS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = export("demo", Path(scratch) / "demo-xopt")
        print("| client | version | lines above, same | class in its place, same |", flush=True)
        print("|---|---|---|---|", flush=True)
        for name in names:
            client = CLIENTS[name]
            python = environment(Path(scratch) / name.replace(" ", "-"), client.packages)
            print(f"| {name} | {tried(client, python, folder.path)} |", flush=True)


if __name__ == "__main__":
    main()
