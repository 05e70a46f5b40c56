"""Where each architecture keeps its parts: one row per family, and nothing else in the package knows.

A row is data. It names the modules of a Hugging Face causal LM (paths from the model, or from one block) and states
the few facts that change a formula: parallel blocks, fused projections, the kind of norm, where rotation happens.
Everything that the configuration already says (layers, heads, soft-caps, windows) is read from the configuration.

To add a family: append a row to `FAMILIES`. Every load runs `selfcheck.check`, which recomputes each block from the
weights that the row points at, so a wrong row is an error and never a wrong number.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One architecture. Module paths are relative to the model (first group) or to one block (second group)."""

    name: str  # `model_type` of the Hugging Face configuration
    blocks: str
    embed: str
    final_norm: str
    pos: str | None = None  # learned position embedding; None where position enters by rotation
    pos_offset: int = 0  # OPT stores position i in row i + 2
    unembed: str = "lm_head"

    attn_norm: str = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"  # None: the FFN shares the norm of the attention
    attn: str = "self_attn"  # the module that computes scores
    q: str | None = None
    k: str | None = None
    v: str | None = None
    qkv: str | None = None  # fused projection, instead of q, k and v
    qkv_layout: str = ""  # "blocks": all q, all k, all v; "heads": q, k, v of head 0, then of head 1, ...
    o: str = "self_attn.o_proj"
    attn_post_norm: str | None = None  # norm between the block output and the residual stream
    mlp_in: str | None = None  # ungated FFN: s = act(x W_in + b_in)
    gate: str | None = None  # gated FFN: s = act(x W_gate) * (x W_up)
    up: str | None = None
    gate_up: str | None = None  # gate and up in one projection, gate first
    act: str = "mlp.act_fn"
    mlp_out: str = "mlp.down_proj"
    mlp_post_norm: str | None = None

    norm: str = "rms"  # "layer" (centred, with bias) or "rms"
    gain_offset: float = 0.0  # Gemma multiplies by (1 + weight)
    parallel: bool | str = False  # both branches read x^l; a string names the configuration flag that says so
    rotary: str | None = None  # "half": pairs (i, i + n/2); "pairs": pairs (2i, 2i + 1)
    rotary_module: str | None = None
    qk_norm: bool = False  # q_norm and k_norm of the attention module, per head, before rotation
    q_prescaled: bool = False  # OPT multiplies q, not the scores, by the scale
    private_attention: bool = False  # scores are computed in the module's own `_attn`
    softmax_float32: bool = True  # GPT-2 takes the softmax in the model's own dtype

    @property
    def gated(self) -> bool:
        """Whether a neuron has two keys: s = act(x W_gate) * (x W_up)."""
        return self.mlp_in is None

    def is_parallel(self, config) -> bool:
        """Whether attention and FFN of a block both read x^l (then there is no x^mid). Audit A1."""
        return bool(getattr(config, self.parallel)) if isinstance(self.parallel, str) else self.parallel


_LLAMA = dict(
    blocks="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    rotary="half",
    rotary_module="model.rotary_emb",
)

_ROWS = [
    Family(
        name="gpt2",
        blocks="transformer.h",
        embed="transformer.wte",
        pos="transformer.wpe",
        final_norm="transformer.ln_f",
        attn_norm="ln_1",
        mlp_norm="ln_2",
        attn="attn",
        qkv="attn.c_attn",
        qkv_layout="blocks",
        o="attn.c_proj",
        mlp_in="mlp.c_fc",
        act="mlp.act",
        mlp_out="mlp.c_proj",
        norm="layer",
        softmax_float32=False,
    ),
    Family(
        name="gpt_neo",
        blocks="transformer.h",
        embed="transformer.wte",
        pos="transformer.wpe",
        final_norm="transformer.ln_f",
        attn_norm="ln_1",
        mlp_norm="ln_2",
        attn="attn.attention",
        q="attn.attention.q_proj",
        k="attn.attention.k_proj",
        v="attn.attention.v_proj",
        o="attn.attention.out_proj",
        mlp_in="mlp.c_fc",
        act="mlp.act",
        mlp_out="mlp.c_proj",
        norm="layer",
        private_attention=True,
    ),
    Family(
        name="gptj",
        blocks="transformer.h",
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        attn_norm="ln_1",
        mlp_norm=None,
        attn="attn",
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        o="attn.out_proj",
        mlp_in="mlp.fc_in",
        act="mlp.act",
        mlp_out="mlp.fc_out",
        norm="layer",
        parallel=True,
        rotary="pairs",
        private_attention=True,
    ),
    Family(
        name="gpt_neox",
        blocks="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        attn="attention",
        qkv="attention.query_key_value",
        qkv_layout="heads",
        o="attention.dense",
        mlp_in="mlp.dense_h_to_4h",
        act="mlp.act",
        mlp_out="mlp.dense_4h_to_h",
        norm="layer",
        parallel="use_parallel_residual",
        rotary="half",
        rotary_module="gpt_neox.rotary_emb",
    ),
    Family(
        name="opt",
        blocks="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        pos="model.decoder.embed_positions",
        pos_offset=2,
        final_norm="model.decoder.final_layer_norm",
        attn_norm="self_attn_layer_norm",
        mlp_norm="final_layer_norm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.out_proj",
        mlp_in="fc1",
        act="activation_fn",
        mlp_out="fc2",
        norm="layer",
        q_prescaled=True,
    ),
    Family(name="llama", **_LLAMA),
    Family(name="mistral", **_LLAMA),
    Family(name="qwen2", **_LLAMA),
    Family(name="qwen3", **_LLAMA, qk_norm=True),
    Family(
        name="gemma2",
        **_LLAMA,
        attn_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        gain_offset=1.0,
    ),
    Family(
        name="phi3",
        **{key: value for key, value in _LLAMA.items() if key not in ("q", "k", "v", "gate", "up")},
        qkv="self_attn.qkv_proj",
        qkv_layout="blocks",
        gate_up="mlp.gate_up_proj",
        act="mlp.activation_fn",
    ),
]

FAMILIES: dict[str, Family] = {row.name: row for row in _ROWS}


class UnknownFamily(ValueError):
    """The architecture has no row in `FAMILIES`; the message says what to add."""


def family_of(config) -> Family:
    """The row for a Hugging Face configuration. Raises UnknownFamily, naming what a new row needs."""
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise UnknownFamily(
            f"model_type {kind!r} has no row in mi_course.models.families.FAMILIES (rows: {', '.join(FAMILIES)}). "
            f"To add it, append Family(name={kind!r}, blocks=..., embed=..., final_norm=..., attn_norm=..., "
            "mlp_norm=..., q=/k=/v= or qkv=, o=, mlp_in= or gate=/up=, mlp_out=, norm=, rotary=) with the paths that "
            "`print(model)` shows; the self-check on load says whether the row is right"
        )
    family = FAMILIES[kind]
    if kind == "opt" and not (config.do_layer_norm_before and config.word_embed_proj_dim == config.hidden_size):
        raise UnknownFamily(
            "this OPT model normalises after each branch (as opt-350m does), so it has no residual stream in the "
            "survey's sense; use another OPT size"
        )
    return family


OBJECTS = {
    "embed": "token embedding as it enters the stream, [B, T, d]",
    "pos": "position embedding as it enters the stream, [B, T, d]",
    "x": "residual state x^l, [B, T, d]",
    "mid": "x^mid, between the two branches, [B, T, d]",
    "q": "queries, normed and rotated, [B, T, H, d_head]",
    "k": "keys, normed and rotated, [B, T, H_kv, d_head]",
    "v": "values, [B, T, H_kv, d_head]",
    "scores": "q k / sqrt(d_head), soft-capped, before the mask, [B, H, T, T]",
    "pattern": "softmax of the masked scores, [B, H, T, T]",
    "z": "pattern v, the input of W_O, [B, T, H, d_head]",
    "result": "z W_O per head, [B, T, H, d]",
    "attn": "sum of results + b_O, [B, T, d]",
    "attn.write": "what attention adds to the stream, [B, T, d]",
    "gate": "x W_gate, before the activation, [B, T, d_ffn]",
    "up": "x W_up, [B, T, d_ffn]",
    "neurons": "s, the input of W_out, [B, T, d_ffn]",
    "mlp": "s W_out + b_out, [B, T, d]",
    "mlp.write": "what the FFN adds to the stream, [B, T, d]",
}


def absent(family: Family, config, thing: str) -> str | None:
    """Why `thing` (a key of `OBJECTS`) does not exist in this model, or None when it does."""
    if thing == "pos" and family.pos is None:
        return "position enters by rotating q and k (RoPE), so there is no position embedding"
    if thing == "mid" and config is not None and family.is_parallel(config):
        return "attention and FFN run in parallel on x^l, so there is no state between them"
    if thing in ("gate", "up") and not family.gated:
        return "the FFN is not gated; its neurons have one key each"
    return None


def matrix() -> str:
    """Table family x object, as text: `yes`, `-` (absent, and asking for it says why) or a note.

    Every `yes` can be read with `record` and written with `intervene`.
    """
    lines = ["family".ljust(10) + "".join(name.rjust(12) for name in OBJECTS)]
    for family in FAMILIES.values():
        cells = []
        for thing in OBJECTS:
            gone = absent(family, None, thing) or (thing == "mid" and family.parallel is True)
            by_config = thing == "mid" and isinstance(family.parallel, str)
            cells.append("config" if by_config else "-" if gone else "yes")
        lines.append(family.name.ljust(10) + "".join(cell.rjust(12) for cell in cells))
    lines.append("config: absent when the configuration sets use_parallel_residual (as Pythia does).")
    return "\n".join(lines)
