"""From options to a core that is ready to step: the checkpoint, the model, the KV cache, the scheduler."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from engines.base import EngineInfo, EngineOptions
from engines.checkpoint.checkpoint import Checkpoint
from engines.checkpoint.model_config import ModelConfig
from engines.checkpoint.tensors import DenseTensors, Fp4Tensors
from engines.cpu import kernels
from engines.cpu.core import EngineCore
from engines.cpu.kv_cache import KvCache, KvCacheShape
from engines.cpu.linear import Linear, LinearOptions, build_linear
from engines.cpu.model_runner import ModelRunner
from engines.cpu.models.decoder import Decoder
from engines.cpu.models.loader import load_decoder
from engines.cpu.prefill_pacer import PrefillPacer
from engines.cpu.speculation.speculator import Speculator
from engines.errors import InvalidRequest, StartFailed
from engines.grammar.notation import ALL_KINDS
from engines.grammar.vocabulary import TOKENIZER_FILE
from engines.host_memory import available_memory_bytes
from engines.load_tracker import LoadTracker
from engines.request import GrammarKind
from engines.scheduler import Scheduler, SchedulerConfig

_logger = logging.getLogger(__name__)

Module = DenseTensors | Fp4Tensors

# Of the memory left once the weights are loaded, the share the KV cache takes when the user names no size.
_DEFAULT_KV_CACHE_SHARE = 0.5
_MAX_BLOCK_SIZE = 256  # the attention kernel's


def load_core(options: EngineOptions, tracker: LoadTracker | None = None) -> EngineCore:
    """Open the checkpoint, repack its weights and size the KV cache. Blocks for as long as that takes.

    Tells `tracker` what it is doing.
    Raises CheckpointError for the files, StartFailed for options that cannot be met.
    """
    _check_options(options)
    assert options.checkpoint is not None
    started = time.monotonic()
    tracker = tracker or LoadTracker()
    tracker.begin("checking the checkpoint")
    checkpoint = Checkpoint.open(options.checkpoint)
    config = checkpoint.config
    max_model_len = _max_model_len(options, config)
    if options.num_threads:
        kernels.set_num_threads(options.num_threads)
    model = _load_model(options, checkpoint, max_model_len, tracker)
    tracker.begin("allocating the KV cache")
    shape = _cache_shape(options, config)
    num_blocks = _num_blocks(options, shape, max_model_len)
    cache = KvCache(shape, num_blocks)
    info = _engine_info(options, checkpoint, model.vocab_size, max_model_len, num_blocks)
    _logger.info(
        "loaded %s (%s) in %.1f s: %s activations, %s numerics, %s kernels on %d threads, "
        "KV cache of %s tokens in %.0f MiB",
        options.checkpoint,
        checkpoint.layout.value,
        time.monotonic() - started,
        options.activations,
        options.numerics,
        kernels.isa_name(),
        kernels.num_threads(),
        f"{num_blocks * options.block_size:,}",
        num_blocks * shape.block_bytes / 2**20,
    )
    runner = ModelRunner(model, cache, options.block_size)
    speculator = Speculator() if options.speculation == "auto" else None
    pacer = PrefillPacer(options.max_step_stretch) if options.max_step_stretch else None
    return EngineCore(
        _scheduler(options, num_blocks, max_model_len),
        runner,
        info,
        speculator=speculator,
        pacer=pacer,
        check_integrity=options.check_integrity,
    )


def _load_model(
    options: EngineOptions, checkpoint: Checkpoint, max_model_len: int, tracker: LoadTracker
) -> Decoder:
    """The model with repacked weights; `tracker` counts the bytes of those that are done."""
    tracker.begin("repacking weights", total_bytes=_linear_bytes(checkpoint))

    def build(modules: Sequence[Module], linear: LinearOptions) -> Linear:
        built = build_linear(modules, linear)
        tracker.advance(sum(module.num_bytes for module in modules))
        return built

    linear_options = LinearOptions(options.activations == "checkpoint", options.numerics == "reference")
    return load_decoder(
        checkpoint, linear_options, max_model_len, build, screens_head=options.may_screen_head
    )


def _scheduler(options: EngineOptions, num_blocks: int, max_model_len: int) -> Scheduler:
    return Scheduler(
        SchedulerConfig(
            num_blocks=num_blocks,
            block_size=options.block_size,
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            prefix_caching=options.prefix_caching,
            max_model_len=max_model_len,
        )
    )


def _cache_shape(options: EngineOptions, config: ModelConfig) -> KvCacheShape:
    try:
        return KvCacheShape.of(
            config,
            options.block_size,
            reference_numerics=options.numerics == "reference",
            kv_cache_dtype=options.kv_cache_dtype,
        )
    except InvalidRequest as error:
        raise StartFailed(str(error)) from error


def _engine_info(
    options: EngineOptions, checkpoint: Checkpoint, vocab_size: int, max_model_len: int, num_blocks: int
) -> EngineInfo:
    return EngineInfo(
        engine="cpu",
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=checkpoint.config.eos_token_ids,
        block_size=options.block_size,
        num_blocks=num_blocks,
        max_num_seqs=options.max_num_seqs,
        grammar_kinds=_grammar_kinds(options, checkpoint.config),
        details=(
            ("layout", checkpoint.layout.value),
            ("activations", options.activations),
            ("numerics", options.numerics),
            ("kv_cache_dtype", options.kv_cache_dtype),
            ("speculation", options.speculation),
            ("isa", kernels.isa_name()),
            ("num_threads", str(kernels.num_threads())),
        ),
    )


def _grammar_kinds(options: EngineOptions, config: ModelConfig) -> frozenset[GrammarKind]:
    """All, where there are a vocabulary to spell with and a way to say that a text is complete."""
    assert options.checkpoint is not None
    can_be_spelt = config.eos_token_ids and (options.checkpoint / TOKENIZER_FILE).is_file()
    return ALL_KINDS if can_be_spelt and options.structured_output else frozenset()


def _linear_bytes(checkpoint: Checkpoint) -> int:
    """What `load_decoder` hands to its builder: all but norms and an embedding beside a head."""
    head = checkpoint.linear("lm_head")
    return sum(
        module.num_bytes
        for module in checkpoint.modules()
        if module is head or isinstance(module, Fp4Tensors) or _is_dense_linear(module)
    )


def _is_dense_linear(module: DenseTensors) -> bool:
    return module.data.ndim == 2 and module.name != "model.embed_tokens"


def _check_options(options: EngineOptions) -> None:
    if options.checkpoint is None:
        raise StartFailed("the CPU engine needs a checkpoint directory; none was given")
    for name, value, allowed in (
        ("activations", options.activations, ("checkpoint", "bf16")),
        ("numerics", options.numerics, ("fast", "reference")),
        ("speculation", options.speculation, ("auto", "off")),
    ):
        if value not in allowed:
            raise StartFailed(f"{name} {value!r} is unknown; expected one of: {', '.join(allowed)}")
    for name, number in (
        ("block_size", options.block_size),
        ("max_num_seqs", options.max_num_seqs),
        ("max_num_batched_tokens", options.max_num_batched_tokens),
    ):
        if number < 1:
            raise StartFailed(f"{name} is {number}; expected at least 1")
    if options.block_size > _MAX_BLOCK_SIZE:
        raise StartFailed(f"block_size is {options.block_size}; expected at most {_MAX_BLOCK_SIZE}")
    if options.max_num_batched_tokens < options.max_num_seqs:
        raise StartFailed(
            f"max_num_batched_tokens is {options.max_num_batched_tokens}; expected at least max_num_seqs, "
            f"{options.max_num_seqs}, so that every running sequence can get a token in each step"
        )
    if options.max_step_stretch != 0 and not options.max_step_stretch >= 1:
        raise StartFailed(
            f"max_step_stretch is {options.max_step_stretch}; expected 0 (no bound) or at least 1"
        )
    if options.num_threads < 0:
        raise StartFailed(f"num_threads is {options.num_threads}; expected 0 (all physical cores) or more")


def _max_model_len(options: EngineOptions, config: ModelConfig) -> int:
    if options.max_model_len is None:
        return config.max_position_embeddings
    if not 2 <= options.max_model_len <= config.max_position_embeddings:
        raise StartFailed(
            f"max_model_len is {options.max_model_len}; expected 2 to {config.max_position_embeddings} "
            "(max_position_embeddings in config.json)"
        )
    return options.max_model_len


def _num_blocks(options: EngineOptions, shape: KvCacheShape, max_model_len: int) -> int:
    """As many blocks as the memory allows, but no more than all slots at full length could fill."""
    memory_bytes = options.kv_cache_memory_bytes
    if memory_bytes is not None:
        return shape.num_blocks_within(memory_bytes, max_model_len)
    blocks_per_sequence = -(-max_model_len // options.block_size)
    fitting = shape.num_blocks_within(int(available_memory_bytes() * _DEFAULT_KV_CACHE_SHARE), max_model_len)
    return min(fitting, blocks_per_sequence * options.max_num_seqs)
