"""Language models that do not say how they rank, asked as their authors ask them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from helpers.tiny import make_language_model, make_logit_score, make_tiny

from xopt.optimize.export import export
from xopt.optimize.model.chat import KNOWN, asked_of
from xopt.optimize.model.parity import MAX_DIFFERENCE
from xopt.runtime import CrossEncoder, open_scorer
from xopt.runtime.errors import BadInput

PAIRS = [
    ("how to read a query", "a document about\nsearch engine models"),
    ("python  function", "returns None {x} {{y}} über"),
    ("東京", "data index shard"),
    ("x", "Ranking: (a) score, (b) index"),
]
FILE = "{{ messages[0].content }} \n{{ messages[1].content }} is an answer:\n"
Ids = list[int]


def qwen(tokenizer: Any, query: str, document: str, task: str | None) -> Ids:
    """https://github.com/QwenLM/Qwen3-Embedding/blob/main/README.md, process_inputs"""
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query "
        'and the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    task = task or "Given a web search query, retrieve relevant passages that answer the query"
    text = f"<Instruct>: {task}\n<Query>: {query}\n<Document>: {document}"
    return joined(tokenizer, prefix, text, suffix)


def bge(tokenizer: Any, query: str, document: str, task: str | None) -> Ids:
    """https://github.com/FlagOpen/FlagEmbedding, examples/inference/reranker, get_inputs"""
    task = task or (
        "Given a query A and a passage B, determine whether the passage contains an answer to the "
        "query by providing a prediction of either 'Yes' or 'No'."
    )
    pieces = joined(tokenizer, f"A: {query}", "\n", f"B: {document}", "\n", task)
    return [tokenizer.bos_token_id, *pieces]


def mxbai(tokenizer: Any, query: str, document: str, task: str | None) -> Ids:
    """https://github.com/mixedbread-ai/mxbai-rerank, MxbaiRerankV2.prepare_inputs"""
    prefix = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\n"
    )
    asked = (
        "You are a search relevance expert who evaluates how well documents match search queries. "
        "For each query-document pair, carefully analyze the semantic relationship between them, "
        "then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
        "Relevance:"
    )
    asked_for = f"query: {query}"
    if task:
        asked_for = f"instruction: {task}\n{asked_for}"
    found = f"document: {document}"
    suffix = "<|im_end|>\n<|im_start|>assistant\n"
    return joined(tokenizer, prefix, asked_for, "\n", found, "\n", asked, suffix)


def joined(tokenizer: Any, *pieces: str) -> Ids:
    """Each piece is tokenised by itself."""
    ids = []
    for piece in pieces:
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


OFFICIAL: dict[str, tuple[str, str, Callable[..., Ids], tuple[str, ...]]] = {
    "qwen3-reranker": ("qwen3", "Qwen/Qwen3-Reranker-0.6B", qwen, ("yes", "no")),
    "bge-reranker-gemma": ("gemma", "BAAI/bge-reranker-v2-gemma", bge, ("Yes",)),
    "mxbai-rerank-v2": ("qwen2", "mixedbread-ai/mxbai-rerank-base-v2", mxbai, ("1", "0")),
}


def official_scores(
    folder: Path, form: Callable[..., Ids], answers: tuple[str, ...], task: str | None
) -> np.ndarray[Any, Any]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    answer_ids = joined(tokenizer, *answers)
    scores = []
    for query, document in PAIRS:
        ids = torch.tensor([form(tokenizer, query, document, task)])
        with torch.inference_mode():
            logits = network(input_ids=ids).logits[0, -1].float()
        scores.append(logits[answer_ids[0]] - (logits[answer_ids[1]] if answer_ids[1:] else 0.0))
    return np.array(scores, np.float32)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_known_model_is_asked_as_its_authors_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    architecture, hub_id, form, answers = OFFICIAL[kind]
    cache = tmp_path / f"models--{hub_id.replace('/', '--')}" / "snapshots" / "0123abcd"
    model = make_language_model(cache, architecture, [str(KNOWN[kind].asked.template)])
    made = export(str(model), tmp_path / "out", torch_only=True)
    assert f"is asked as {kind} does it (https://github.com/" in caplog.text
    mine = CrossEncoder(made.path, "torch-fp32", activation_fn=torch.nn.Identity())
    for task in (None, "Find the function that is described"):
        expected = official_scores(model, form, answers, task)
        assert np.std(expected) > 0.1
        assert np.abs(mine.predict(PAIRS, prompt=task) - expected).max() < MAX_DIFFERENCE
    without_one = official_scores(model, form, answers, None)
    assert np.abs(mine.predict(PAIRS, prompt="") - without_one).max() < MAX_DIFFERENCE


def test_a_model_that_its_configuration_names_is_known(tmp_path: Path) -> None:
    model = make_language_model(tmp_path / "model")
    change(model / "config.json", _name_or_path="Qwen/Qwen3-Reranker-4B")
    assert asked_of(model, "model", None, None) == KNOWN["qwen3-reranker"].asked
    # Another architecture is another model.
    change(model / "config.json", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(BadInput, match="Qwen2ForCausalLM\\) that does not say how it ranks"):
        asked_of(model, "model", None, None)


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_language_model_that_is_not_known_is_refused(tmp_path: Path) -> None:
    model = make_language_model(tmp_path / "Qwen3-Reranker-0.6B")  # no name is a proof
    message = (
        r"a language model \(Qwen3ForCausalLM\) that does not say how it ranks; give "
        r"`template=` a file with its chat template, or one of qwen3-reranker, bge-reranker-gemma"
    )
    with pytest.raises(BadInput, match=message):
        export(str(model), tmp_path / "out", torch_only=True)
    assert not (tmp_path / "out").exists()


def test_the_user_says_how_a_language_model_is_asked(tmp_path: Path) -> None:
    model = make_language_model(tmp_path / "model")
    file = tmp_path / "asked.jinja"
    file.write_text(FILE)

    def form(tokenizer: Any, query: str, document: str, _: str | None) -> Ids:
        # Jinja leaves out the last line break.
        return joined(tokenizer, f"{query} \n{document} is an answer:")

    made = export(
        str(model), tmp_path / "out", torch_only=True, template=str(file), answers="yes,no"
    )
    expected = official_scores(model, form, ("yes", "no"), None)
    scores = open_scorer(made, "torch-fp32").score(PAIRS)
    assert np.abs(scores - expected).max() < MAX_DIFFERENCE
    # What was written says it itself.
    again = export(str(made.path), tmp_path / "again", torch_only=True)
    assert np.array_equal(open_scorer(again, "torch-fp32").score(PAIRS), scores)


def test_a_known_template_can_be_named(tmp_path: Path) -> None:
    known = KNOWN["qwen3-reranker"].asked
    model = make_language_model(tmp_path / "model", "qwen2", [str(known.template)])
    made = export(str(model), tmp_path / "out", torch_only=True, template="qwen3-reranker")
    expected = official_scores(model, qwen, ("yes", "no"), None)
    assert np.abs(open_scorer(made, "torch-fp32").score(PAIRS) - expected).max() < MAX_DIFFERENCE


ORDINARY = (
    "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}"
    "{{ m.content }} {% endif %}{% endfor %}"
)


def test_an_ordinary_chat_template_has_no_place_for_a_pair(tmp_path: Path) -> None:
    said = "its chat template has no place for a query and a document; export it with one that"
    language_model = str(make_logit_score(tmp_path / "language model", template=ORDINARY))
    with pytest.raises(BadInput, match=rf"{said} places both \(`template=`\)$"):
        export(language_model, tmp_path / "out", torch_only=True)
    classifier = make_tiny(tmp_path / "classifier", "qwen2")
    change(classifier / "tokenizer_config.json", chat_template=ORDINARY)
    with pytest.raises(
        BadInput, match=rf"{said} .*, or for plain pairs take its chat template out"
    ):
        export(str(classifier), tmp_path / "out", torch_only=True)
    # Both ways out lead on.
    file = tmp_path / "asked.jinja"
    file.write_text(FILE)
    for model in (language_model, str(classifier)):
        made = export(model, tmp_path / "out", torch_only=True, template=str(file), force=True)
        assert made.manifest.template[1::2] == ["query", "document"]
    change(classifier / "tokenizer_config.json", chat_template=None)
    assert export(str(classifier), tmp_path / "plain", torch_only=True).manifest.template == []


def raising(folder: Path) -> dict[str, str]:
    template = "{{ raise_exception('Conversation roles must alternate') }}"
    make_logit_score(folder, template=template)
    return {}


def bare(folder: Path) -> dict[str, str]:
    make_language_model(folder)
    return {"template": write(folder)}


def without_template(folder: Path) -> dict[str, str]:
    make_language_model(folder)
    return {"answers": "yes,no"}


def unknown_answer(folder: Path) -> dict[str, str]:
    make_language_model(folder)
    return {"template": write(folder), "answers": "certainly,no"}


def three_answers(folder: Path) -> dict[str, str]:
    make_language_model(folder)
    return {"template": write(folder), "answers": "yes,no,1"}


def no_such_file(folder: Path) -> dict[str, str]:
    make_language_model(folder)
    return {"template": "qwen4-reranker", "answers": "yes,no"}


def answers_of_its_own(folder: Path) -> dict[str, str]:
    make_logit_score(folder)
    return {"answers": "yes,no"}


def plain_pairs(folder: Path) -> dict[str, str]:
    make_logit_score(folder)
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    del settings["modality_config"]["message"]
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return {"template": write(folder)}


def write(folder: Path) -> str:
    file = folder / "asked.jinja"
    file.write_text(FILE)
    return str(file)


def one_token(folder: Path) -> dict[str, str]:
    make_logit_score(folder)
    change(folder / "1_LogitScore" / "config.json", true_token_id=5, false_token_id=5)
    return {}


REFUSED: dict[str, tuple[Callable[[Path], dict[str, str]], str]] = {
    "a template that raises": (
        raising,
        r"\(Conversation roles must alternate\); export it with one",
    ),
    "no answers": (
        bare,
        "does not say which answers its score compares; name them with",
    ),
    "no template": (without_template, "has no chat template; give it one with `template=`"),
    "no token": (unknown_answer, "the answer 'certainly' is not one token of its tokenizer"),
    "too many": (three_answers, "give one answer, or two different ones"),
    "no file": (no_such_file, "qwen4-reranker: no chat template that can be read .* qwen3-rera"),
    "its own": (answers_of_its_own, "has its own answers or labels; leave `answers=` out"),
    "one token": (one_token, "ranks by the logit of a token less its own, which is 0"),
    "plain pairs": (plain_pairs, "reads plain pairs; leave `template=` out"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, make: Callable[[Path], dict[str, str]], message: str
) -> None:
    given = make(tmp_path / "model")
    with pytest.raises(BadInput, match=message):
        export(str(tmp_path / "model"), tmp_path / "out", torch_only=True, **given)
    assert not (tmp_path / "out").exists()
