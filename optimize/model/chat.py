"""How language models are asked whether a document answers a query.

A chat template makes a text of a pair, and the logits of one or two answers behind it are the
score. Models that sentence-transformers saved say so themselves. Others rank by a text that stands
in their model card alone, and any other text gives other scores.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xopt.optimize.model.source import read_json
from xopt.runtime.errors import BadInput, first_line
from xopt.runtime.folder import modules_of

__all__ = ["Asked", "asked_of", "set_answers"]

log = logging.getLogger(__name__)

QUERY = "{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}"
DOCUMENT = (
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
)
# The prompt, or a text in its place.
PROMPT_OR = (
    "{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
    '| default("%s") }}'
)
# Jinja leaves out a line break at the very end, and behind a block.
LINE_BREAK = "{{ '\\n' }}"

QWEN3_RERANKER = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    "<Instruct>: "
    + PROMPT_OR
    % "Given a web search query, retrieve relevant passages that answer the query"
    + f"\n<Query>: {QUERY}\n<Document>: {DOCUMENT}<|im_end|>\n"
    f"<|im_start|>assistant\n<think>\n\n</think>\n{LINE_BREAK}"
)
BGE_RERANKER_GEMMA = f"{{{{ bos_token }}}}A: {QUERY}\nB: {DOCUMENT}\n" + PROMPT_OR % (
    "Given a query A and a passage B, determine whether the passage contains an answer to the "
    "query by providing a prediction of either 'Yes' or 'No'."
)
MXBAI_RERANK_V2 = (
    "<|im_start|>system\n"
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
    "{% for message in messages if message.role == 'system' %}"
    f"instruction: {{{{ message.content }}}}{LINE_BREAK}"
    "{% endfor %}"
    f"query: {QUERY}\ndocument: {DOCUMENT}\n"
    "You are a search relevance expert who evaluates how well documents match search queries. "
    "For each query-document pair, carefully analyze the semantic relationship between them, then "
    "provide your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:"
    f"<|im_end|>\n<|im_start|>assistant{LINE_BREAK}"
)


@dataclass(frozen=True)
class Asked:
    """A chat template, and the answers whose logits are compared: the true, and perhaps a false.

    `template` is None for the model's own, `answers` are empty for the model's own.
    """

    template: str | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Known:
    """How published models are asked, by the code that their authors published."""

    asked: Asked
    models: str  # a pattern of their hub ids
    architecture: str
    source: str


KNOWN = {
    "qwen3-reranker": Known(
        Asked(QWEN3_RERANKER, ("yes", "no")),
        r"Qwen/Qwen3-Reranker-[\d.]+B",
        "Qwen3ForCausalLM",
        "https://github.com/QwenLM/Qwen3-Embedding/blob/main/README.md#reranker-model",
    ),
    "bge-reranker-gemma": Known(
        Asked(BGE_RERANKER_GEMMA, ("Yes",)),
        r"BAAI/bge-reranker-v2-gemma",
        "GemmaForCausalLM",
        "https://github.com/FlagOpen/FlagEmbedding/blob/master/examples/inference/reranker/README.md",
    ),
    "mxbai-rerank-v2": Known(
        Asked(MXBAI_RERANK_V2, ("1", "0")),
        r"mixedbread-ai/mxbai-rerank-(base|large)-v2",
        "Qwen2ForCausalLM",
        "https://github.com/mixedbread-ai/mxbai-rerank/blob/main/mxbai_rerank/mxbai_rerank_v2.py",
    ),
}


def asked_of(folder: Path, model: str, template: str | None, answers: str | None) -> Asked:
    """Return how the model in a folder is asked.

    `template` is a file with a chat template, or one of `KNOWN`; `answers` are one or two, with a
    comma between them. A language model that does not say itself how it ranks takes both from
    these or from what is known of it. Raises BadInput where they do not fit, or say too little.
    """
    given = _given(template, answers)
    if not _is_bare_language_model(folder):
        if answers is not None:
            raise BadInput(
                f"{model}: has its own answers or labels; leave `answers=` out "
                "(it is for language models without modules.json)"
            )
        return Asked(given.template, ())
    if template is None and answers is None:
        return _known(folder, model)
    if not given.answers:
        raise BadInput(
            f"{model}: does not say which answers its score compares; name them with `answers=`, "
            "as 'yes,no' for a difference of logits, or 'Yes' for one logit"
        )
    return given


def _given(template: str | None, answers: str | None) -> Asked:
    """Return what the user says, with what is known where a known template is named."""
    words = tuple(answer.strip() for answer in answers.split(",")) if answers is not None else ()
    if len(words) > 2 or "" in words or len(set(words)) < len(words):
        raise BadInput(f"`answers={answers!r}`: give one answer, or two different ones as 'yes,no'")
    if template in KNOWN:
        known = KNOWN[template].asked
        return Asked(known.template, words or known.answers)
    return Asked(None if template is None else _read(template), words)


def _read(template: str) -> str:
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"{template}: no chat template that can be read ({first_line(error)}); "
            f"give a file, or one of {', '.join(KNOWN)}"
        ) from error


def _is_bare_language_model(folder: Path) -> bool:
    """Return whether nothing but the network is there."""
    architectures = read_json(folder / "config.json").get("architectures") or [""]
    return not modules_of(folder) and str(architectures[0]).endswith("ForCausalLM")


def _known(folder: Path, model: str) -> Asked:
    config = read_json(folder / "config.json")
    architecture = config["architectures"][0]
    names = [str(config.get("_name_or_path", "")), _hub_id(folder)]
    for kind, known in KNOWN.items():
        is_one = any(re.fullmatch(known.models, name) for name in names)
        if is_one and architecture == known.architecture:
            text = "%s: is asked as %s does it (%s); say otherwise with `template=`"
            log.warning(text, model, kind, known.source)
            return known.asked
    raise BadInput(
        f"{model}: a language model ({architecture}) that does not say how it ranks; give "
        f"`template=` a file with its chat template, or one of {', '.join(KNOWN)}"
    )


def _hub_id(folder: Path) -> str:
    """Return which model a folder of the hub's cache holds: models--OWNER--NAME/snapshots/SHA."""
    place = folder.resolve().parent
    if place.name != "snapshots" or not place.parent.name.startswith("models--"):
        return ""
    return place.parent.name.removeprefix("models--").replace("--", "/", 1)


def set_answers(encoder: Any, model: str, answers: tuple[str, ...]) -> None:
    """Let a language model's score compare the logits of these answers."""
    ids = [_token_of(encoder.tokenizer, model, answer) for answer in answers]
    score = encoder[-1]
    score.true_token_id = ids[0]
    score.false_token_id = ids[1] if len(ids) > 1 else None


def _token_of(tokenizer: Any, model: str, answer: str) -> int:
    ids = tokenizer.encode(answer, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise BadInput(
            f"{model}: the answer {answer!r} is not one token of its tokenizer; "
            "say with `answers=` which are compared"
        )
    return int(ids[0])
