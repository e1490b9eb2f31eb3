"""Tiny random cross-encoders of each kind that xopt exports, with word-level tokenizers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from tokenizers import (
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, PreTrainedTokenizerFast

from xopt.optimize.model.parity import TEXT

MAX_LENGTH = 64
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_LENGTH + 2,
    "initializer_range": 0.3,  # so that logits spread
}
TYPED = {
    "bert",
    "electra",
    "deberta-v2",
    "albert",
    "mobilebert",
    "ernie",
}  # tell the query's tokens from the document's
PAD_IS_ONE = {"roberta", "xlm-roberta", "camembert", "mpnet"}  # and positions start behind it
DECODER: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 8, "rope_theta": 500.0}
DECODER_TYPES = ("qwen2", "llama", "gemma", "qwen3", "mistral")
SPECIAL: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "pooler_hidden_size": 32,
        "type_vocab_size": 2,
    },
    "modernbert": {"reference_compile": False, "classifier_pooling": "cls", "local_attention": 16},
    "electra": {"embedding_size": 32},
    "albert": {"embedding_size": 16},
    "mobilebert": {
        "embedding_size": 32,
        "true_hidden_size": 32,
        "intra_bottleneck_size": 32,
        "num_feedforward_networks": 2,
        # nothing is normalised between layers: with more, rounding is all that is left
        "initializer_range": 0.2,
    },
    "deberta": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
    },
    **dict.fromkeys(DECODER_TYPES, DECODER),
}
ARCHITECTURES = (
    "bert",
    "distilbert",
    "electra",
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "deberta-v2",
    "modernbert",
)
OTHERS = ("albert", "mobilebert", "deberta", "ernie")
DECODERS = ("qwen2", "llama", "gemma")
# How Qwen's tokenizers split a text into words.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for m in messages if m.role == 'system' %}Rank: {{ m.content }} {% endfor %}"
    "query {{ (messages | selectattr('role', 'eq', 'query') | first).content }} "
    "document {{ (messages | selectattr('role', 'eq', 'document') | first).content | trim }} "
    "[SEP] score"
)


def make_tiny(folder: Path, architecture: str = "bert", labels: int = 1, **config: Any) -> Path:
    """Write a random cross-encoder into `folder`; `config` overrides its configuration."""
    network, tokenizer = _network(
        architecture, "SequenceClassification", num_labels=labels, **config
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_modular(
    folder: Path, architecture: str = "modernbert", pooling: str = "cls", labels: int = 1
) -> Path:
    """Write a random cross-encoder of modules, as Ettin's are: a body, a pooling and a head of
    their own.
    """
    transformer = make_body(folder, architecture, "feature-extraction")
    size = transformer.get_embedding_dimension()
    modules = [
        transformer,
        Pooling(size, pooling_mode=pooling),
        Dense(size, size, activation_function=torch.nn.GELU()),
        LayerNorm(size),
        Dense(size, labels, activation_function=torch.nn.Identity(), module_output_name="scores"),
    ]
    CrossEncoder(modules=modules).save_pretrained(str(folder), create_model_card=False)
    return folder


def make_logit_score(
    folder: Path, architecture: str = "qwen3", template: str = TEMPLATE, **prompt: Any
) -> Path:
    """Write a random language model that ranks by the logit of one word less that of another, as
    Qwen3-Reranker.
    """
    transformer = make_body(folder, architecture, "text-generation", template)
    ids = transformer.tokenizer.get_vocab()
    score = LogitScore(true_token_id=ids["data"], false_token_id=ids["index"])
    CrossEncoder(modules=[transformer, score], **prompt).save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


def make_language_model(
    folder: Path, architecture: str = "qwen3", texts: Sequence[str] = ()
) -> Path:
    """Write a random language model as hubs have them: without modules, and byte-level tokens.

    The texts are among those that the tokenizer is trained with.
    """
    tokenizer = Tokenizer(models.BPE())
    pre_tokenizer = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    special = ["<pad>", "<bos>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    answers = " yes no Yes\nyes\nno\nYes" * 9
    tokenizer.train_from_iterator([TEXT, answers, *texts], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=256,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
    )
    network = _random_network(architecture, "CausalLM", fast, max_position_embeddings=256)
    network.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def make_behind_the_head(folder: Path, architecture: str) -> Path:
    """Write a random cross-encoder with a module that changes what its classification head
    gives.
    """
    head = make_tiny(folder.with_name(f"{folder.name}-head"), architecture)
    scores = {"module_input_name": "scores", "module_output_name": "scores"}
    dense = Dense(1, 1, activation_function=torch.nn.Identity(), **scores)
    dense.linear.weight.data.fill_(-2.0)
    modules = [CrossEncoder(str(head), device="cpu")[0], dense]
    CrossEncoder(modules=modules, device="cpu").save_pretrained(
        str(folder), create_model_card=False
    )
    return folder


def make_body(
    folder: Path, architecture: str, task: str, template: str | None = None
) -> Transformer:
    """sentence-transformers' first module, of a random network."""
    scratch = folder.with_name(f"{folder.name}-body")
    network, tokenizer = _network(architecture, "CausalLM" if task == "text-generation" else "")
    tokenizer.chat_template = template
    network.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return Transformer(str(scratch), transformer_task=task)


def _network(architecture: str, task: str, **config: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    tokenizer = _tokenizer(architecture)
    return _random_network(architecture, task, tokenizer, **config), tokenizer


def _random_network(
    architecture: str, task: str, tokenizer: PreTrainedTokenizerFast, **config: Any
) -> Any:
    torch.manual_seed(7)
    special = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id")
        for role in ("pad", "cls", "sep", "bos", "eos")
    }
    values = {**SIZES, **special, **SPECIAL.get(architecture, {}), **config}
    made = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), **values)
    kind = getattr(transformers, f"AutoModelFor{task}" if task else "AutoModel")
    return kind.from_config(made).eval()


def _tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    pad_is_one = architecture in PAD_IS_ONE
    special = ["[CLS]", "[PAD]"] if pad_is_one else ["[PAD]", "[CLS]"]
    special += ["[SEP]", "[UNK]", "[MASK]"]
    words = sorted(
        {word.strip("',()").lower() for word in TEXT.split()} | set("abcdefghijklmnopqrstuvwxyz")
    )
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    second = 1 if architecture in TYPED else 0
    causal = architecture in DECODER_TYPES
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A" if causal else "[CLS] $A [SEP]",
        pair="[CLS] $A [CLS] $B" if causal else f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    names = ["input_ids", *(["token_type_ids"] if second else []), "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=names,
        model_max_length=MAX_LENGTH,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    )


PROMPT: dict[str, Any] = {"prompts": {"rank": "search data"}, "default_prompt_name": "rank"}
# every kind of CrossEncoder that sentence-transformers has
KINDS: dict[str, Callable[[Path], Path]] = {
    **{name: functools.partial(make_tiny, architecture=name) for name in (*ARCHITECTURES, *OTHERS)},
    **{f"{name}, head": functools.partial(make_tiny, architecture=name) for name in DECODERS},
    "llama, head of 3 labels": functools.partial(make_tiny, architecture="llama", labels=3),
    "modernbert, modules, cls": make_modular,
    "bert, modules, mean": functools.partial(make_modular, architecture="bert", pooling="mean"),
    "distilbert, modules, max": functools.partial(
        make_modular, architecture="distilbert", pooling="max"
    ),
    "roberta, modules, 3 labels": functools.partial(make_modular, architecture="roberta", labels=3),
    "qwen3, modules, last token": functools.partial(
        make_modular, architecture="qwen3", pooling="lasttoken"
    ),
    "electra, module behind the head": functools.partial(
        make_behind_the_head, architecture="electra"
    ),
    "qwen2, module behind the head": functools.partial(make_behind_the_head, architecture="qwen2"),
    "qwen3, LogitScore": make_logit_score,
    "gemma, LogitScore": functools.partial(make_logit_score, architecture="gemma"),
    "qwen2, LogitScore, prompt": functools.partial(
        make_logit_score, architecture="qwen2", **PROMPT
    ),
}
