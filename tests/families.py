"""Tiny random-weight models, one for every architecture family that the course supports.

    from tests.families import FAMILIES, random_model
    hf = random_model("llama", seed=0)          # a Hugging Face causal LM: eval mode, float32, CPU

Fresh Hugging Face weights are a poor test: norms are all ones, biases all zero and attention nearly uniform, so a
forgotten norm weight, a dropped bias or a wrong head order changes nothing. Here every parameter is drawn so that each
of them matters: norm weights vary by coordinate, every bias is non-zero, attention is far from uniform.
"""

import math

import torch

VOCAB = 50

_COMMON = dict(vocab_size=VOCAB, bos_token_id=0, eos_token_id=1, pad_token_id=2)
_ROTARY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
               max_position_embeddings=64, attention_dropout=0.0)


def _rows():
    """Family name -> (configuration class, keyword arguments). Transformers is imported only when a model is made."""
    import transformers as tf

    def neox(**kw):
        return (tf.GPTNeoXConfig, _COMMON | dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
            max_position_embeddings=64, hidden_act="gelu", attention_bias=True, hidden_dropout=0.0,
            attention_dropout=0.0, rope_parameters={"rope_type": "default", "rope_theta": 100.0,
                                                    "partial_rotary_factor": 0.5}) | kw)

    return {
        "gpt2": (tf.GPT2Config, _COMMON | dict(n_embd=32, n_layer=3, n_head=4, n_positions=64)),
        # one global and two local layers; the window (4) is shorter than the test prompts
        "gpt_neo": (tf.GPTNeoConfig, _COMMON | dict(
            hidden_size=32, num_layers=3, num_heads=4, window_size=4,
            attention_types=[[["global", "local", "local"], 1]], intermediate_size=40, max_position_embeddings=64)),
        "gptj": (tf.GPTJConfig, _COMMON | dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4)),
        "gpt_neox": neox(use_parallel_residual=True),
        "gpt_neox_sequential": neox(use_parallel_residual=False),
        "opt": (tf.OPTConfig, _COMMON | dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=40, max_position_embeddings=64,
            word_embed_proj_dim=32, do_layer_norm_before=True)),
        "llama": (tf.LlamaConfig, _COMMON | _ROTARY | dict(num_key_value_heads=2)),
        "mistral": (tf.MistralConfig, _COMMON | _ROTARY | dict(num_key_value_heads=2, sliding_window=4)),
        "qwen2": (tf.Qwen2Config, _COMMON | _ROTARY | dict(num_key_value_heads=2, tie_word_embeddings=False)),
        "qwen3": (tf.Qwen3Config, _COMMON | _ROTARY | dict(num_key_value_heads=2, head_dim=12)),
        # soft-caps low enough to bend scores and logits; layer 0 slides with a window of 4, layer 1 is global
        "gemma2": (tf.Gemma2Config, _COMMON | _ROTARY | dict(
            num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=20, attn_logit_softcapping=5.0,
            final_logit_softcapping=1.0, sliding_window=4, layer_types=["sliding_attention", "full_attention"])),
        "phi3": (tf.Phi3Config, _COMMON | _ROTARY | dict(
            num_key_value_heads=2, resid_pdrop=0.0, embd_pdrop=0.0)),
    }


FAMILIES = ["gpt2", "gpt_neo", "gptj", "gpt_neox", "gpt_neox_sequential", "opt", "llama", "mistral", "qwen2", "qwen3",
            "gemma2", "phi3"]


def random_model(family, seed=0, **overrides):
    """A tiny random causal LM of `family`; `overrides` replace fields of its configuration.

    Returns the Hugging Face module in eval mode, float32, on the CPU, with eager attention. The same seed gives the
    same weights. The global random state of torch is left as it was.
    """
    from transformers import AutoModelForCausalLM

    rows = _rows()
    if family not in rows:
        raise KeyError(f"family {family!r} has no random test model; choose one of {FAMILIES}")
    make_config, kwargs = rows[family]
    config = make_config(**(kwargs | overrides))
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
    _randomise(model, torch.Generator().manual_seed(seed))
    return model


def _randomise(model, generator):
    """Draw every parameter again: norm gains around neutral, biases away from zero, matrices of gain about 1.3."""
    zero_centred = model.config.model_type.startswith("gemma")          # gemma's norms multiply by (1 + weight)
    with torch.no_grad():
        for name, p in model.named_parameters():                        # tied parameters are listed once
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1 and name.endswith("weight"):                 # norm gain
                p.copy_(0.4 * noise + (0.0 if zero_centred else 1.0))
            elif p.ndim == 1:                                           # any bias
                p.copy_(0.3 * noise)
            elif "embed" in name or "wte" in name or "wpe" in name:
                scale = 0.1 if zero_centred else 0.5                   # gemma multiplies embeddings by sqrt(d_model)
                p.copy_(scale * noise)
            else:
                p.copy_(1.3 / math.sqrt(min(p.shape)) * noise)
