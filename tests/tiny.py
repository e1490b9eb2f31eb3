"""Tiny random cross-encoders of each architecture that xopt exports, with word-level tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

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
TYPED = {"bert", "electra", "deberta-v2"}  # tell the query's tokens from the document's
PAD_IS_ONE = {"roberta", "xlm-roberta", "camembert", "mpnet"}  # and positions start behind it
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


def make_tiny(folder: Path, architecture: str = "bert", labels: int = 1, **config: Any) -> Path:
    """Write a random cross-encoder into `folder`; `config` overrides its configuration."""
    torch.manual_seed(7)
    tokenizer = _tokenizer(architecture)
    special = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "cls", "sep", "bos", "eos")
    }
    values = {**SIZES, **special, **SPECIAL.get(architecture, {}), **config}
    made = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), num_labels=labels, **values)
    model = AutoModelForSequenceClassification.from_config(made).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    pad_is_one = architecture in PAD_IS_ONE
    special = ["[CLS]", "[PAD]"] if pad_is_one else ["[PAD]", "[CLS]"]
    special += ["[SEP]", "[UNK]", "[MASK]"]
    words = sorted({word.strip("',()").lower() for word in TEXT.split()} | set("abcdefghijklmnopqrstuvwxyz"))
    vocabulary = {word: i for i, word in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    second = 1 if architecture in TYPED else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
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
