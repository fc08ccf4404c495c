"""What is in the demo checkpoint: its tokenizer, its configuration and its random weights, as values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from engines.fp4 import bfloat16, mxfp4
from engines.quantize.layouts import compressed_tensors_config

HIDDEN_SIZE = 256
INTERMEDIATE_SIZE = 768
NUM_LAYERS = 4
NUM_HEADS = 8
NUM_KEY_VALUE_HEADS = 4
HEAD_DIM = 32
VOCAB_SIZE = 2048
MAX_POSITION_EMBEDDINGS = 4096
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")

Tensors = dict[str, tuple[str, NDArray[Any]]]  # name -> (safetensors dtype, raw array)


def train_tokenizer(lines: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of VOCAB_SIZE entries: any text can be encoded and comes back unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens; expected {VOCAB_SIZE}")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def tokenizer_config() -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    return {
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": MAX_POSITION_EMBEDDINGS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    }


def model_config() -> dict[str, Any]:
    """The contents of config.json, with the quantization_config that llm-compressor writes for MXFP4."""
    return {
        "architectures": ["MistralForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE_SIZE,
        "max_position_embeddings": MAX_POSITION_EMBEDDINGS,
        "model_type": "mistral",
        "num_attention_heads": NUM_HEADS,
        "num_hidden_layers": NUM_LAYERS,
        "num_key_value_heads": NUM_KEY_VALUE_HEADS,
        "pad_token_id": None,
        "quantization_config": compressed_tensors_config(["lm_head"], "mxfp4"),
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": VOCAB_SIZE,
    }


def random_weights(seed: int) -> Tensors:
    """Every tensor of the checkpoint.

    Weights are normal with variance 1 / num_inputs, so that activations keep their size from layer to layer.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    tensors: Tensors = {}

    def normal(rows: int, columns: int, deviation: float) -> NDArray[np.float32]:
        values: NDArray[np.float32] = random.standard_normal((rows, columns), dtype=np.float32)
        values *= np.float32(deviation)
        return values

    def add_bfloat16(name: str, values: NDArray[np.float32]) -> None:
        tensors[name] = ("BF16", bfloat16.encode(values))

    def add_linear(name: str, num_outputs: int, num_inputs: int) -> None:
        blocks = mxfp4.quantize(normal(num_outputs, num_inputs, num_inputs**-0.5))
        tensors[f"{name}.weight_packed"] = ("U8", blocks.packed)
        tensors[f"{name}.weight_scale"] = ("U8", blocks.scales)

    add_bfloat16("model.embed_tokens.weight", normal(VOCAB_SIZE, HIDDEN_SIZE, 1.0))
    for layer in range(NUM_LAYERS):
        prefix = f"model.layers.{layer}"
        add_bfloat16(f"{prefix}.input_layernorm.weight", np.ones(HIDDEN_SIZE, np.float32))
        add_linear(f"{prefix}.self_attn.q_proj", NUM_HEADS * HEAD_DIM, HIDDEN_SIZE)
        add_linear(f"{prefix}.self_attn.k_proj", NUM_KEY_VALUE_HEADS * HEAD_DIM, HIDDEN_SIZE)
        add_linear(f"{prefix}.self_attn.v_proj", NUM_KEY_VALUE_HEADS * HEAD_DIM, HIDDEN_SIZE)
        add_linear(f"{prefix}.self_attn.o_proj", HIDDEN_SIZE, NUM_HEADS * HEAD_DIM)
        add_bfloat16(f"{prefix}.post_attention_layernorm.weight", np.ones(HIDDEN_SIZE, np.float32))
        add_linear(f"{prefix}.mlp.gate_proj", INTERMEDIATE_SIZE, HIDDEN_SIZE)
        add_linear(f"{prefix}.mlp.up_proj", INTERMEDIATE_SIZE, HIDDEN_SIZE)
        add_linear(f"{prefix}.mlp.down_proj", HIDDEN_SIZE, INTERMEDIATE_SIZE)
    add_bfloat16("model.norm.weight", np.ones(HIDDEN_SIZE, np.float32))
    add_bfloat16("lm_head.weight", normal(VOCAB_SIZE, HIDDEN_SIZE, HIDDEN_SIZE**-0.5))
    return tensors
