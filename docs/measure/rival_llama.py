"""llama.cpp's server, by xllamacpp, with a BERT CrossEncoder as GGUF.

    python docs/measure/rival_llama.py MODEL FILE PORT THREADS [SLOTS]

Runs in an environment with gguf, safetensors and xllamacpp. Writes FILE of the folder MODEL where
it is missing: weights of matrices in Q8_0, others in FP32.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import xllamacpp
from safetensors.numpy import load_file

LONGEST = 512
# The head, by llama.cpp's names for it.
HEAD = {"bert.pooler.dense": "cls", "classifier": "cls.output"}


def convert(model: Path, file: Path) -> None:
    """Write a BERT with its head, as llama.cpp reads it."""
    config = json.loads((model / "config.json").read_text())
    layers = config["num_hidden_layers"]
    writer = gguf.GGUFWriter(file, "bert")
    writer.add_name("demo")
    writer.add_context_length(LONGEST)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(layers)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_classifier_output_labels(["LABEL_0"])
    add_vocabulary(writer, model)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, layers)
    for name, values in load_file(model / "model.safetensors").items():
        stem, _, kind = name.rpartition(".")
        place = HEAD.get(stem) or names.get_name(stem.removeprefix("bert."))
        if place:
            add(writer, f"{place}.{kind}", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add(writer: gguf.GGUFWriter, name: str, values: np.ndarray) -> None:
    """Add a tensor; those of the blocks' products in eight bits."""
    if name.startswith("blk.") and values.ndim == 2:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, values)


def add_vocabulary(writer: gguf.GGUFWriter, model: Path) -> None:
    """Add WordPiece's words: llama.cpp marks where one begins, not where it goes on."""
    words = (model / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    tokens = []
    kinds = []
    for word in words:
        special = word.startswith("[") and word.endswith("]") and len(word) > 2
        kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.NORMAL)
        begins = word if special else f"\u2581{word}"
        tokens.append(word[2:] if word.startswith("##") else begins)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_type_count(2)
    # Between query and document and behind it stands what llama.cpp calls the end: [SEP].
    ids = {"bos": "[CLS]", "eos": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
    for name, word in ids.items():
        add_id = getattr(writer, f"add_{name}_token_id")
        add_id(words.index(word))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)
    writer.add_add_sep_token(False)


def serve(file: Path, port: int, threads: int, slots: int) -> None:
    """Serve until the process is ended."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_RANK
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.n_parallel = slots
    parameters.n_ctx = slots * LONGEST
    parameters.n_batch = parameters.n_ubatch = slots * LONGEST
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    given = sys.argv[1:]
    gguf_file = Path(given[1])
    if not gguf_file.exists():
        convert(Path(given[0]), gguf_file)
    serve(gguf_file, int(given[2]), int(given[3]), int(given[4]) if given[4:] else 4)
