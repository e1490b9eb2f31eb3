"""Facts: what scorers have to know of a CrossEncoder to treat texts as it does.

In all functions `model` is the name that the user gave.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import Pooling

from xopt.optimize.model.source import read_json
from xopt.runtime.errors import BadInput
from xopt.runtime.folder import MANIFEST
from xopt.runtime.scoring.backends.network import is_decoder_classifier, reads_last_token
from xopt.runtime.scoring.encode import FILLERS, Pair, common_suffix, render

__all__ = ["default_prompt", "encoder_facts", "label_names", "rank_label_of"]

log = logging.getLogger(__name__)

UNLIMITED = 1 << 20  # tokens; tokenizers without a limit say more
# Texts to find again in what a template makes of them.
PLACEHOLDERS = {f"\ue000{name}\ue001": name for name in ("query", "document", "prompt")}
TEMPLATE_TESTS = (
    ("a query", "a document"),
    (" \n a  query\t", "\n a document  \n"),
    ("", "x"),
    ("x", ""),
    ("<b> {{x}} &amp; 'y'", 'é\\n "z"'),
    ("What is 1 + 1?", "Two. It is 2!"),
    ("日本語", "Ünïcödé " * 200),
    ("QUERY: http://x.y/z", "1. first\n2. second\n\n# third"),
)
PROMPT_TESTS = ("Find code", " \n a  prompt\t", "<b> {{x}} &amp; 'y'", 'é\\n "z"', "日本語: ")
CLOCKS = ("strftime_now", "now()")  # they make another text each day
TRUNCATIONS = (True, "longest_first", "only_first", "only_second")
# These change no score.
UNUSED_SETTINGS = ("padding", "pad_to_multiple_of", "return_tensors", "logits_to_keep")
TOKENIZER_SETTINGS = ("max_length", "truncation", *UNUSED_SETTINGS)


def encoder_facts(encoder: Any, model: str) -> dict[str, Any]:
    """Return the fields of the manifest that describe a CrossEncoder.

    Raises BadInput for what scorers do not reproduce.
    """
    _check_tokenizer(encoder, model)
    _check_modules(encoder, model)
    tokenizer = encoder.tokenizer
    activation = type(encoder.activation_fn)
    facts = {
        **_encoding_facts(encoder, model),
        "labels": encoder.num_labels,
        "activation": f"{activation.__module__}.{activation.__qualname__}",
        "pad_id": tokenizer.pad_token_id,
        "padding_side": "left" if reads_last_token(encoder) else "right",
        "truncation_side": tokenizer.truncation_side,
        "inputs": list(tokenizer.model_input_names),
        "split_special_tokens": bool(getattr(tokenizer, "split_special_tokens", False)),
    }
    if is_decoder_classifier(encoder):  # its head reads the last token that is not padding
        facts["trailing_pad"] = encoder.config.pad_token_id
    special = 0 if facts["template"] else tokenizer.num_special_tokens_to_add(pair=True)
    if facts["max_length"] <= special:
        raise BadInput(
            f"{model}: its max_length is {facts['max_length']}, "
            f"which leaves no room for {special} special tokens; "
            "set model_max_length in tokenizer_config.json"
        )
    return facts


def _check_tokenizer(encoder: Any, model: str) -> None:
    tokenizer = encoder.tokenizer
    if tokenizer is None or encoder[0].processor is not tokenizer:
        raise BadInput(f"{model}: reads more than texts; xopt takes rerankers of texts")
    if not tokenizer.is_fast:
        raise BadInput(
            f"{model}: its tokenizer has no fast form (tokenizer.json); "
            "save it with one, or choose another model"
        )
    if tokenizer.pad_token_id is None:
        raise BadInput(
            f"{model}: its tokenizer has no padding token; "
            "set pad_token in tokenizer_config.json, and pad_token_id in config.json"
        )
    if is_decoder_classifier(encoder) and encoder.config.pad_token_id != tokenizer.pad_token_id:
        raise BadInput(
            f"{model}: pads with the id {tokenizer.pad_token_id}, "
            f"its head expects {encoder.config.pad_token_id}; "
            "set pad_token_id in config.json to the tokenizer's"
        )


def _check_modules(encoder: Any, model: str) -> None:
    last = encoder[-1]
    if isinstance(last, LogitScore) and last.true_token_id == last.false_token_id:
        raise BadInput(
            f"{model}: ranks by the logit of a token less its own, which is 0; "
            "set true_token_id and false_token_id in its LogitScore/config.json"
        )
    for module in encoder:
        pools_prompt = not isinstance(module, Pooling) or module.include_prompt
        if not pools_prompt and module.pooling_mode not in ("cls", "lasttoken"):
            raise BadInput(
                f"{model}: its pooling leaves prompts out (include_prompt), which is not "
                "reproduced; choose another model"
            )


def rank_label_of(names: list[str], asked: str | None, source: Path, model: str) -> list[int]:
    """Return the number of the label that ranks, or two whose difference ranks.

    `asked` is the name or number of a label, A-B for a difference, or "none", for which
    the list is empty. Without it the answer is that of `source`, if that is a model
    folder. Raises BadInput where the answer is not clear.
    """
    if len(names) == 1:
        if asked is not None:
            raise BadInput(f"{model}: has one label, which ranks; leave `rank_label=` out")
        return []
    if asked is None:
        chosen = read_json(source / MANIFEST).get("rank_label")
        if chosen is not None:
            return list(chosen)
    if asked == "none":
        return []
    meanings = _meanings(asked, names)
    if len(meanings) == 1:
        return meanings[0]
    problem = ""
    if asked is not None:
        count = "several" if meanings else "none"
        problem = f"`rank_label={asked!r}` is {count} of them; "
    raise BadInput(
        f"{model}: has {len(names)} labels ({', '.join(names)}); "
        f"{problem}say with `rank_label=` which one ranks, "
        "by name or number, A-B for the difference of two, or none"
    )


def _meanings(asked: str | None, names: list[str]) -> list[list[int]]:
    """Return the labels, and the pairs of labels, that `asked` can name."""
    meanings = []
    spellings = [(name, str(number)) for number, name in enumerate(names)]
    for number, spelled in enumerate(spellings):
        if asked in spelled:
            meanings.append([number])
    for first, second in itertools.permutations(range(len(names)), 2):
        for pair in itertools.product(spellings[first], spellings[second]):
            if asked == "-".join(pair) and [first, second] not in meanings:
                meanings.append([first, second])
    return meanings


def label_names(config: dict[str, Any], labels: int) -> list[str]:
    """Return the names of labels in a config.json, or their numbers as text."""
    id2label = config.get("id2label") or {}
    names = {int(number): str(name) for number, name in id2label.items()}
    return [names.get(number, str(number)) for number in range(labels)]


def default_prompt(encoder: Any) -> str:
    """Return what sentence-transformers puts before a query; may be empty."""
    return encoder.prompts.get(encoder.default_prompt_name) or ""


def _encoding_facts(encoder: Any, model: str) -> dict[str, Any]:
    settings = getattr(encoder[0], "processing_kwargs", None) or {}
    text = settings.get("text") or {}
    common = settings.get("common") or {}
    chat = dict(settings.get("chat_template") or {})
    facts: dict[str, Any] = {
        "max_length": _max_length(encoder, model),
        "truncation": "longest_first",
        "prompt": default_prompt(encoder),
        "prompts": dict(encoder.prompts),
        "template": [],
    }
    # Settings are merged in the order of sentence-transformers.
    if "message" not in encoder[0].modality_config:
        return facts | _length_facts({**text, **common}, model)
    moved = {name: chat.pop(name) for name in TOKENIZER_SETTINGS if name in chat}
    facts |= _length_facts({**common, **text, **moved}, model)
    facts["truncation"] = "longest_first"  # the template makes one text of a pair
    facts["restores_suffix"] = bool(chat.pop("restore_suffix", True))
    facts |= _templates(encoder, chat, model)
    if facts["restores_suffix"]:
        facts["suffix"] = _suffix(encoder.tokenizer, facts["template"])
    return facts


def _length_facts(settings: dict[str, Any], model: str) -> dict[str, Any]:
    """Return what settings say of lengths. Raises BadInput for other settings."""
    facts: dict[str, Any] = {}
    for name, value in settings.items():
        is_length = name == "max_length" and type(value) is int
        is_truncation = name == "truncation" and value in TRUNCATIONS
        if is_length or is_truncation:
            facts[name] = value
        elif name not in UNUSED_SETTINGS:
            raise BadInput(
                f"{model}: its processing_kwargs set {name}={value!r}, "
                "which is not reproduced; leave it out"
            )
    if facts.get("truncation") is True:
        facts["truncation"] = "longest_first"
    return facts


def _templates(encoder: Any, settings: dict[str, Any], model: str) -> dict[str, list[str]]:
    """Return the chat template as `render` takes it, with the model's prompt, any, and none."""
    if any(clock in str(encoder.tokenizer.chat_template) for clock in CLOCKS):
        raise BadInput(
            f"{model}: its chat template writes the date, which changes; "
            f"{_another_template(encoder)}"
        )

    def rendered(pair: Pair, prompt: str) -> str:
        return _rendered(encoder, settings, pair, prompt)

    own = default_prompt(encoder)
    named = [prompt for prompt in encoder.prompts.values() if prompt]
    try:
        template = _parts(rendered, [own])
    except Exception as error:  # from Jinja, or raised by the template
        raise BadInput(
            f"{model}: its chat template cannot render a query and a document ({error}); "
            f"{_another_template(encoder)}"
        ) from error
    if template is None:
        raise BadInput(f"{model}: its chat template {_why_not(rendered, own, encoder)}")
    return {
        "template": template,
        "prompted": _parts_if_any(rendered, [*PROMPT_TESTS, *named]),
        "unprompted": _parts_if_any(rendered, [""]),
    }


def _rendered(encoder: Any, settings: dict[str, Any], pair: Pair, prompt: str) -> str:
    """Return the text that sentence-transformers makes of a pair and a prompt."""
    formatter = encoder[0].input_formatter
    messages = [formatter.pair_to_messages(pair)]
    if prompt:
        messages = formatter.prepend_prompt_to_messages(messages, prompt)
    return str(encoder.tokenizer.apply_chat_template(messages[0], tokenize=False, **settings))


def _another_template(encoder: Any) -> str:
    """Return the way out where a chat template cannot be used."""
    way_out = "export it with one that places both (`template=`)"
    if isinstance(encoder[-1], LogitScore):
        return way_out
    return (
        f"{way_out}, or for plain pairs take its chat template out (chat_template in "
        "tokenizer_config.json, or chat_template.jinja)"
    )


def _why_not(rendered: Callable[[Pair, str], str], prompt: str, encoder: Any) -> str:
    """Return why a chat template is not reproduced, and the way out where there is one."""
    text = rendered(("alpha", "bravo"), prompt)
    lost = []
    if text == rendered(("charlie", "bravo"), prompt):
        lost.append("a query")
    if text == rendered(("alpha", "foxtrot"), prompt):
        lost.append("a document")
    if lost:
        return f"has no place for {' and '.join(lost)}; {_another_template(encoder)}"
    return (
        "does more with the texts than place them, which is not reproduced; "
        f"{_another_template(encoder)}"
    )


def _parts_if_any(rendered: Callable[[Pair, str], str], prompts: list[str]) -> list[str]:
    """Return `_parts`, or nothing where the template takes no such prompts."""
    try:
        return _parts(rendered, prompts) or []
    except Exception:  # from Jinja, or raised by the template
        return []


def _parts(rendered: Callable[[Pair, str], str], prompts: list[str]) -> list[str] | None:
    """Return a template for `render`; None where it does more than place texts.

    One prompt becomes part of it, several a place for any.
    """
    query, document, placed_prompt = PLACEHOLDERS
    prompt = prompts[0] if len(prompts) == 1 else placed_prompt
    parts = re.split(f"({'|'.join(PLACEHOLDERS)})", rendered((query, document), prompt))
    texts = [PLACEHOLDERS[placeholder] for placeholder in parts[1::2]]
    if not {"query", "document"} <= set(texts):
        return None
    tests = list(itertools.product(TEMPLATE_TESTS, prompts))
    for endings in itertools.product(("", ".strip"), repeat=len(texts)):
        template = list(parts)
        template[1::2] = ["".join(ended) for ended in zip(texts, endings, strict=True)]
        if all(render(template, *test) == rendered(*test) for test in tests):
            return template
    return None


def _suffix(tokenizer: Any, template: list[str]) -> list[int]:
    """Return the ids that every text ends in, which are restored after a cut."""
    texts = [render(template, (filler, filler)) for filler in FILLERS]
    short, long = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return common_suffix(short, long)


def _max_length(encoder: Any, model: str) -> int:
    """Return the length at which pairs are cut, in tokens, and set it in `encoder`.

    A table of positions has an end. Relative and rotary positions have none.
    """
    end = _last_position(encoder)
    length = encoder.max_seq_length
    if length is None or length > max(end, UNLIMITED):
        encoder.max_seq_length = end
    elif length > end and _has_position_table(encoder.model):
        encoder.max_seq_length = end
        text = "%s: its max_length is %d, its positions end at %d: pairs are cut there"
        log.warning(text, model, length, end)
    if encoder.max_seq_length < 1:
        raise BadInput(
            f"{model}: its max_length is {encoder.max_seq_length}; "
            "set model_max_length in tokenizer_config.json to 1 or more"
        )
    return int(encoder.max_seq_length)


def _last_position(encoder: Any) -> int:
    positions = getattr(encoder.config, "max_position_embeddings", None) or 0
    if positions < 1:  # XLNet has -1
        return UNLIMITED
    embeddings = getattr(encoder.model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding_id = getattr(table, "padding_idx", None)
    # RoBERTa's positions begin after the padding id.
    return positions if padding_id is None else positions - padding_id - 1


def _has_position_table(network: torch.nn.Module) -> bool:
    for name, module in network.named_modules():
        is_positions = "position" in name or name.endswith("wpe")
        if is_positions and isinstance(module, torch.nn.Embedding):
            return True
    return False
