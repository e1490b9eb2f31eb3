"""What a scorer has to know of a CrossEncoder, to do with texts what sentence-transformers does
with them.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from xopt.runtime.errors import BadInput
from xopt.runtime.folder import MANIFEST
from xopt.runtime.scoring.backends.network import decodes, reads_last
from xopt.runtime.scoring.encode import Pair, render

__all__ = ["default_prompt", "encoder_facts", "label_names", "rank_label_of", "trained_with"]

log = logging.getLogger(__name__)

UNLIMITED = 1 << 20  # positions of models whose configuration names no limit
# texts to be found again in a template
MARKS = {"\ue000query\ue001": "query", "\ue000document\ue001": "document"}
PROBES = (
    ("a query", "a document"),
    (" \n a  query\t", "\n a document  \n"),
    ("", "x"),
    ("x", ""),
    ("<b> {{x}} &amp; 'y'", 'é\\n "z"'),
    ("What is 1 + 1?", "Two. It is 2!"),
    ("日本語", "Ünïcödé " * 200),
    ("QUERY: http://x.y/z", "1. first\n2. second\n\n# third"),
)
CLOCKS = ("strftime_now", "now()")  # a text of another day each day
# settings that change no score
NO_SCORE = ("padding", "pad_to_multiple_of", "return_tensors", "logits_to_keep")


def encoder_facts(encoder: Any, given: str) -> dict[str, Any]:
    """The fields of the manifest that describe `encoder`. Raises BadInput for what scorers do not
    reproduce.
    """
    _check_tokenizer(encoder, given)
    _check_modules(encoder, given)
    tokenizer, activation = encoder.tokenizer, type(encoder.activation_fn)
    facts = {
        **_encoding(encoder, given),
        "labels": encoder.num_labels,
        "activation": f"{activation.__module__}.{activation.__qualname__}",
        "pad_id": tokenizer.pad_token_id,
        "padding_side": "left" if reads_last(encoder) else "right",
        "truncation_side": tokenizer.truncation_side,
        "inputs": list(tokenizer.model_input_names),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    if decodes(encoder):  # transformers reads the last token that is not this one
        facts["trailing_pad"] = encoder.config.pad_token_id
    special = 0 if facts["template"] else tokenizer.num_special_tokens_to_add(pair=True)
    if facts["max_length"] <= special:
        raise BadInput(
            f"{given}: its max_length is {facts['max_length']}, which leaves no room for {special} special tokens"
        )
    return facts


def _check_tokenizer(encoder: Any, given: str) -> None:
    tokenizer = encoder.tokenizer
    if tokenizer is None or encoder[0].processor is not tokenizer:
        raise BadInput(f"{given}: reads more than texts; xopt takes rerankers of texts")
    if not tokenizer.is_fast:
        raise BadInput(
            f"{given}: its tokenizer has no fast form (tokenizer.json), which the ONNX scorer needs"
        )
    if tokenizer.pad_token_id is None:
        raise BadInput(
            f"{given}: its tokenizer has no padding token, so that pairs cannot be scored together; set pad_token in "
            "its tokenizer_config.json, and pad_token_id in config.json"
        )
    if decodes(encoder) and encoder.config.pad_token_id != tokenizer.pad_token_id:
        raise BadInput(
            f"{given}: pads with the id {tokenizer.pad_token_id}, and its head takes {encoder.config.pad_token_id} for "
            "padding; set pad_token_id in its config.json to that of its tokenizer"
        )


def _check_modules(encoder: Any, given: str) -> None:
    last = encoder[-1]
    if isinstance(last, LogitScore) and last.true_token_id == last.false_token_id:
        raise BadInput(
            f"{given}: ranks by the logit of a token less its own; its tokenizer has no 'yes' and 'no' for a LogitScore"
        )
    poolings = [module for module in encoder if isinstance(module, Pooling)]
    if any(
        not pooling.include_prompt and pooling.pooling_mode not in ("cls", "lasttoken")
        for pooling in poolings
    ):
        raise BadInput(
            f"{given}: its pooling leaves prompts out (include_prompt), which is not reproduced"
        )


def rank_label_of(names: list[str], asked: str | None, source: Path, given: str) -> list[int]:
    """Which of the labels with these names ranks, or which two by their difference; empty for
    one, and for "none".

    Unless asked for it is that of `source`, where that is a model folder. Raises BadInput where
    it is not known.
    """
    if len(names) == 1:
        if asked is not None:
            raise BadInput(f"{given}: has one label, which ranks; leave --rank-label out")
        return []
    known = source / MANIFEST
    if asked is None and known.is_file():
        label = json.loads(known.read_text(encoding="utf-8")).get("rank_label")
        if label is not None:
            return [int(number) for number in label]
    if asked == "none":
        return []
    single = [
        *((str(i), [i]) for i in range(len(names))),
        *((name, [i]) for i, name in enumerate(names)),
    ]
    double = [(f"{a}-{b}", x + y) for (a, x), (b, y) in itertools.permutations(single, 2) if x != y]
    meant = {tuple(label) for name, label in single + double if name == asked}
    if len(meant) != 1:
        wrong = (
            ""
            if asked is None
            else f"--rank-label {asked!r} is {'several' if meant else 'none'} of them; "
        )
        raise BadInput(
            f"{given}: has {len(names)} labels ({', '.join(names)}); {wrong}say with --rank-label which one ranks, by "
            "name or number, A-B for the difference of two, or none"
        )
    return list(meant.pop())


def trained_with(source: Path) -> list[str]:
    """Hashes of the queries that trained `source`, where that is a model folder of `xopt
    shrink`.
    """
    known = source / MANIFEST
    hashes = (
        json.loads(known.read_text(encoding="utf-8")).get("trained_with")
        if known.is_file()
        else None
    )
    return [str(hash_) for hash_ in hashes or ()]


def label_names(config: dict[str, Any], labels: int) -> list[str]:
    """The names of a model's labels by its config.json, or their numbers."""
    named = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    return [named.get(i, str(i)) for i in range(labels)]


def default_prompt(encoder: Any) -> str:
    """The prompt that sentence-transformers puts before a query unless told; empty where there is
    none.
    """
    return (
        encoder.prompts.get(encoder.default_prompt_name) or ""
        if encoder.default_prompt_name
        else ""
    )


def _encoding(encoder: Any, given: str) -> dict[str, Any]:
    """How pairs become tokens, the model's `processing_kwargs` included."""
    settings = getattr(encoder[0], "processing_kwargs", None) or {}
    text, common, chat = (
        dict(settings.get(name) or {}) for name in ("text", "common", "chat_template")
    )
    messages = "message" in encoder[0].modality_config
    restored = chat.pop("restore_suffix", True)
    sizes = {
        name: chat.pop(name) for name in ("max_length", "truncation", *NO_SCORE) if name in chat
    }
    # as sentence-transformers merges them
    asked = {**common, **text, **sizes} if messages else {**text, **common}
    facts: dict[str, Any] = {
        "max_length": _max_length(encoder, given),
        "truncation": "longest_first",
    }
    for name, value in asked.items():
        if name == "max_length" and type(value) is int:
            facts["max_length"] = value  # over that of the tokenizer, too
        elif name == "truncation" and value in (True, "longest_first", "only_first", "only_second"):
            facts["truncation"] = "longest_first" if value is True else value
        elif name not in NO_SCORE:
            raise BadInput(
                f"{given}: its processing_kwargs set {name}={value!r}, which is not reproduced; leave it out"
            )
    if not messages:
        return {**facts, "prompt": default_prompt(encoder), "template": [], "suffix": []}
    if any(clock in str(encoder.tokenizer.chat_template) for clock in CLOCKS):
        raise BadInput(
            f"{given}: its chat template writes the date, so that scores change from day to day"
        )
    rendered = _renderer(encoder, chat)
    try:
        template = _template(rendered)
    except Exception as error:  # of Jinja, or of the template's own
        raise BadInput(
            f"{given}: its chat template cannot render a query and a document ({error})"
        ) from error
    if template is None:
        raise BadInput(
            f"{given}: its chat template does more with the texts than place them; that is not reproduced"
        )
    suffix = _suffix(encoder.tokenizer, template) if restored else []
    return {
        **facts,
        "truncation": "longest_first",
        "prompt": "",
        "template": template,
        "suffix": suffix,
    }


def _renderer(encoder: Any, chat: dict[str, Any]) -> Callable[[Pair], str]:
    """What makes of a pair the text that the model reads, the prompt included."""
    formatter, prompt = encoder[0].input_formatter, default_prompt(encoder)

    def rendered(pair: Pair) -> str:
        messages = [formatter.pair_to_messages(pair)]
        if prompt:
            messages = formatter.prepend_prompt_to_messages(messages, prompt)
        return str(encoder.tokenizer.apply_chat_template(messages[0], tokenize=False, **chat))

    return rendered


def _template(rendered: Callable[[Pair], str]) -> list[str] | None:
    """The literal parts of a chat template, and between them which text comes there; None where
    it does more.
    """
    query, document = MARKS
    parts = re.split(f"({query}|{document})", rendered((query, document)))
    places = range(1, len(parts), 2)
    if {MARKS[parts[place]] for place in places} != {"query", "document"}:
        return None
    for ends in itertools.product(("", ".strip"), repeat=len(places)):
        template = list(parts)
        for place, end in zip(places, ends, strict=True):
            template[place] = MARKS[parts[place]] + end
        if all(render(template, pair) == rendered(pair) for pair in PROBES):
            return template
    return None


def _suffix(tokenizer: Any, template: list[str]) -> list[int]:
    """The ids that each text of a template ends in, as sentence-transformers finds them to
    restore what was cut.
    """
    first, second = (
        tokenizer(render(template, (filler, filler)), add_special_tokens=False)["input_ids"]
        for filler in ("0", "1 2 3 4")
    )
    pairs = zip(reversed(first), reversed(second), strict=False)
    count = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return (
        [int(token) for token in first[len(first) - count :]]
        if count < min(len(first), len(second))
        else []
    )


def _max_length(encoder: Any, given: str) -> int:
    """The length that the reference cuts pairs to, or what its positions reach where that is less.

    Positions that are relative, or that turn, reach as far as one likes: there the reference's
    length is taken as it is, and the configuration's where it has none.
    """
    positions = getattr(
        getattr(encoder.model.base_model, "embeddings", None), "position_embeddings", None
    )
    # RoBERTa's positions start behind the padding id
    padding = getattr(positions, "padding_idx", None)
    there = getattr(encoder.config, "max_position_embeddings", None) or 0
    # XLNet's are -1
    reach = there - (0 if padding is None else padding + 1) if there > 0 else UNLIMITED
    asked = encoder.max_seq_length
    if asked is None or (asked > reach and (asked > UNLIMITED or _has_table(encoder.model))):
        encoder.max_seq_length = reach
        if asked is not None and asked <= UNLIMITED:
            log.warning(
                "%s: its max_length is %d, and its positions end at %d: pairs are cut there",
                given,
                asked,
                reach,
            )
    if encoder.max_seq_length < 1:
        raise BadInput(f"{given}: its max_length is {encoder.max_seq_length}")
    return int(encoder.max_seq_length)


def _has_table(network: torch.nn.Module) -> bool:
    """Whether positions are looked up in a table, which ends."""
    tables = (
        name for name, module in network.named_modules() if isinstance(module, torch.nn.Embedding)
    )
    return any("position" in name or name.endswith("wpe") for name in tables)
