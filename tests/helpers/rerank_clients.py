"""Asks a server by the clients that others wrote, in a process of its own.

They change loggers, warnings and environment of whatever process imports them. Standard input has
a JSON list of questions, and standard output gets what each client answered.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

# The environment in which no client looks for anything but the server.
OFFLINE = {
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
MODEL = "any"


@dataclasses.dataclass(frozen=True)
class Question:
    client: str
    address: str
    query: str
    texts: list[str]
    key: str
    top_n: int


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A document's place; its text where the client gives it back."""

    index: int
    score: float
    text: str | None = None


def cohere_1(question: Question) -> list[Ranked]:
    import cohere

    client = cohere.Client(question.key, base_url=question.address)
    reply = client.rerank(
        model=MODEL,
        query=question.query,
        documents=question.texts,
        top_n=question.top_n,
        return_documents=True,
    )
    assert reply.meta.api_version.version == "1"
    return [Ranked(each.index, each.relevance_score, each.document.text) for each in reply.results]


def cohere_2(question: Question) -> list[Ranked]:
    import cohere

    client = cohere.ClientV2(question.key, base_url=question.address)
    reply = client.rerank(
        model=MODEL, query=question.query, documents=question.texts, top_n=question.top_n
    )
    assert reply.meta.api_version.version == "2"
    return [Ranked(each.index, each.relevance_score) for each in reply.results]


def litellm(provider: str, path: str = "", with_texts: bool = True) -> Callable[..., list[Ranked]]:
    """Return how to ask as a client of another server, whose base URL ends with a path."""

    def ask(question: Question) -> list[Ranked]:
        import litellm

        reply = litellm.rerank(
            model=f"{provider}/{MODEL}",
            query=question.query,
            documents=question.texts,
            top_n=question.top_n,
            return_documents=with_texts,
            api_base=f"{question.address}{path}",
            api_key=question.key,
        )
        return [
            Ranked(each["index"], each["relevance_score"], each.get("document", {}).get("text"))
            for each in reply.results
        ]

    return ask


def langchain_cohere(question: Question) -> list[Ranked]:
    from langchain_cohere import CohereRerank

    reranker = CohereRerank(
        model=MODEL, cohere_api_key=question.key, base_url=question.address, top_n=question.top_n
    )
    return [
        Ranked(each["index"], each["relevance_score"])
        for each in reranker.rerank(question.texts, question.query)
    ]


def nodes_of(question: Question, reranker: Any) -> list[Ranked]:
    """Return how a postprocessor of LlamaIndex ranks."""
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(number)))
        for number, text in enumerate(question.texts)
    ]
    ranked = reranker.postprocess_nodes(nodes, query_str=question.query)
    return [Ranked(int(each.node.node_id), each.score, each.node.text) for each in ranked]


def llama_index_cohere(question: Question) -> list[Ranked]:
    from llama_index.postprocessor.cohere_rerank import CohereRerank

    reranker = CohereRerank(question.top_n, MODEL, question.key, question.address)
    return nodes_of(question, reranker)


def llama_index_jina(question: Question) -> list[Ranked]:
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    reranker = JinaRerank(question.top_n, MODEL, f"{question.address}/v1", question.key)
    return nodes_of(question, reranker)


def llama_index_tei(question: Question) -> list[Ranked]:
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    reranker = TextEmbeddingInference(
        top_n=question.top_n, base_url=question.address, auth_token=question.key
    )
    return nodes_of(question, reranker)


def llama_index_voyage(question: Question) -> list[Ranked]:
    import voyageai
    from llama_index.postprocessor.voyageai_rerank import VoyageAIRerank

    reranker = VoyageAIRerank(MODEL, question.key, question.top_n)
    # It has no argument for an address.
    reranker._client = voyageai.Client(question.key, base_url=f"{question.address}/v1")
    return nodes_of(question, reranker)


def llama_index_xinference(question: Question) -> list[Ranked]:
    from llama_index.postprocessor.xinference_rerank import XinferenceRerank

    reranker = XinferenceRerank(model=MODEL, base_url=question.address, top_n=question.top_n)
    return nodes_of(question, reranker)


def documents_of(question: Question, ranker: Any) -> list[Ranked]:
    """Return how a component of Haystack ranks."""
    from haystack import Document

    documents = [
        Document(content=text, id=str(number)) for number, text in enumerate(question.texts)
    ]
    ranked = ranker.run(query=question.query, documents=documents, top_k=question.top_n)
    return [Ranked(int(each.id), each.score, each.content) for each in ranked["documents"]]


def haystack_tei(question: Question) -> list[Ranked]:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    ranker = HuggingFaceTEIRanker(url=question.address, token=Secret.from_token(question.key))
    return documents_of(question, ranker)


def haystack_vllm(question: Question) -> list[Ranked]:
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.vllm import VLLMRanker

    ranker = VLLMRanker(
        model=MODEL,
        api_key=Secret.from_token(question.key),
        api_base_url=f"{question.address}/v1",
    )
    return documents_of(question, ranker)


def voyageai(question: Question) -> list[Ranked]:
    import voyageai

    client = voyageai.Client(question.key, max_retries=2, base_url=f"{question.address}/v1")
    reply = client.rerank(question.query, question.texts, MODEL, top_k=question.top_n)
    return [Ranked(each.index, each.relevance_score, each.document) for each in reply.results]


def xinference(question: Question) -> list[Ranked]:
    from xinference_client import RESTfulClient

    model = RESTfulClient(question.address, question.key).get_model(MODEL)
    reply = model.rerank(
        question.texts, question.query, top_n=question.top_n, return_documents=True
    )
    return [
        Ranked(each["index"], each["relevance_score"], each["document"])
        for each in reply["results"]
    ]


CLIENTS: dict[str, Callable[[Question], list[Ranked]]] = {
    "cohere 1": cohere_1,
    "cohere 2": cohere_2,
    "litellm cohere": litellm("cohere"),
    "litellm hosted_vllm": litellm("hosted_vllm"),
    "litellm huggingface": litellm("huggingface"),
    "litellm infinity": litellm("infinity", with_texts=False),  # it asks as vLLM's does
    "litellm jina_ai": litellm("jina_ai"),
    "litellm voyage": litellm("voyage", "/v1"),
    "langchain_cohere": langchain_cohere,
    "llama_index cohere": llama_index_cohere,
    "llama_index jina": llama_index_jina,
    "llama_index tei": llama_index_tei,
    "llama_index voyage": llama_index_voyage,
    "llama_index xinference": llama_index_xinference,
    "haystack tei": haystack_tei,
    "haystack vllm": haystack_vllm,
    "voyageai": voyageai,
    "xinference_client": xinference,
}

# These have no place for a key.
KEYLESS = ["llama_index xinference"]
# These do not give documents back.
WITHOUT_TEXTS = {"cohere 2", "langchain_cohere", "litellm infinity"}


def answered(question: Question) -> dict[str, Any]:
    """Return a client's ranking, or its error with the kinds that it is of."""
    try:
        ranked = CLIENTS[question.client](question)
    except Exception as error:
        return {"error": repr(error), "kinds": [kind.__name__ for kind in type(error).__mro__]}
    return {"ranking": [dataclasses.astuple(each) for each in ranked]}


if __name__ == "__main__":
    questions = [Question(**each) for each in json.load(sys.stdin)]
    answers = [answered(question) for question in questions]
    sys.__stdout__.write("\n" + json.dumps(answers) + "\n")
