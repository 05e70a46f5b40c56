"""Published sparse autoencoders, read from a local folder: SAELens and Gemma Scope. Nothing is downloaded.

Both write the encoder in slightly different ways. Everything that differs is folded into the weights here, so what
comes back is an ordinary `SAE`, with a = act((x - b_dec) W_enc + b_enc):

    apply_b_dec_to_input false   (x) W_enc + b              -> b_enc = b + b_dec W_enc
    center_writing_weights       states minus their mean    -> W_enc minus the mean of each column
    rescale_acts_by_decoder_norm a |f_j|, unit rows         -> W_enc, b_enc times |f_j|, W_dec divided by it
    expected_average_only_in     states times a number s    -> W_enc times s, W_dec and b_dec divided by s
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from mi_course.models import SiteError

from .sae import SAE

ARCHITECTURES = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}  # SAELens -> kind
OLD_NAMES = {  # before version 6
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
HOOKS = {  # TransformerLens hook -> site
    r"blocks\.(\d+)\.hook_resid_pre": lambda layer: f"x{layer}",
    r"blocks\.(\d+)\.hook_resid_mid": lambda layer: f"mid{layer}",
    r"blocks\.(\d+)\.hook_resid_post": lambda layer: f"x{layer + 1}",
    r"blocks\.(\d+)\.hook_attn_out": lambda layer: f"attn{layer}.write",
    r"blocks\.(\d+)\.hook_mlp_out": lambda layer: f"mlp{layer}.write",
    r"blocks\.(\d+)\.attn\.hook_z": lambda layer: f"z{layer}",
    r"blocks\.(\d+)\.mlp\.hook_post": lambda layer: f"neurons{layer}",
}


def load_saelens(folder: str | Path, model=None, site: str | None = None, scale: float | None = None) -> SAE:
    """An SAE that SAELens saved: `cfg.json` and `sae_weights.safetensors`, in the form of version 6 or before.

    model: checks that the site is there and as wide as the SAE, and brings the SAE to its device and precision.
    site:  overrides the one that cfg.json names.
    scale: for SAEs of normalised activations ("expected_average_only_in"), what states are multiplied by before they
           are encoded, sqrt(d) / mean |x|; the files do not hold it.
    Raises ValueError for a missing file, an unknown architecture, a wrong width or a normalisation that depends on the
    input.
    """
    config = _config(_file(folder, "cfg.json"))
    from safetensors.torch import load_file

    w = {name: t.float() for name, t in load_file(_file(folder, "sae_weights.safetensors")).items()}
    architecture = config.get("architecture", "standard")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"folder: cfg.json says architecture={architecture!r}; this reads {', '.join(ARCHITECTURES)}. "
                         "(Training forms such as batchtopk are saved by SAELens for inference as jumprelu or topk)")
    activation = config.get("activation_fn") or "relu"
    if activation not in ("relu", "topk"):
        raise ValueError(f"folder: cfg.json says activation_fn={activation!r}; this reads relu and topk")
    kind = ARCHITECTURES[architecture]
    names = {"W_enc", "W_dec", "b_dec"} | {"gated": {"b_gate", "b_mag", "r_mag"}}.get(kind, {"b_enc"})
    if kind == "jumprelu" and "log_threshold" in w:
        w["threshold"] = w["log_threshold"].exp()
    names |= {"threshold"} if kind == "jumprelu" else set()
    if names - set(w):
        raise ValueError(f"folder: sae_weights.safetensors lacks {', '.join(sorted(names - set(w)))}, which a "
                         f"{architecture} SAE needs; it has {', '.join(sorted(w))}")
    if "scaling_factor" in w:  # an older form of fine-tuning: activations times this number before decoding
        w["W_dec"] = w["W_dec"] * w["scaling_factor"][:, None]
    if config.get("rescale_acts_by_decoder_norm"):
        norm = w["W_dec"].norm(dim=1)
        w["W_enc"], w["b_enc"], w["W_dec"] = w["W_enc"] * norm, w["b_enc"] * norm, w["W_dec"] / norm[:, None]
    return _make(w, kind, _k(config) if kind == "topk" else None, site or _site(config), model,
                 subtract=config.get("apply_b_dec_to_input", True), centred=_centred(config),
                 scale=_scale(config, scale))


def load_gemma_scope(path: str | Path, site: str, model=None) -> SAE:
    """A Gemma Scope SAE: `params.npz` (or the folder that holds it), with W_enc, b_enc, W_dec, b_dec, threshold.

    site: the file does not name it. The repositories do: res, layer 20 -> "x21" (after block 20); mlp -> "mlp20.write"
    (after the post-norm); att -> "z20" (heads side by side).
    model: as in `load_saelens`. Raises ValueError for a missing file, a missing array or a wrong width.
    """
    import numpy as np

    path = Path(path)
    file = _file(path, "params.npz") if path.is_dir() or not path.suffix else _file(path.parent, path.name)
    with np.load(file, allow_pickle=False) as arrays:
        w = {name: torch.from_numpy(arrays[name]).float() for name in arrays.files}
    missing = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"} - set(w)
    if missing:
        raise ValueError(f"path {file.name} lacks {', '.join(sorted(missing))}; a Gemma Scope SAE has W_enc, b_enc, "
                         "W_dec, b_dec and threshold")
    return _make(w, "jumprelu", None, site, model, subtract=False)


@torch.no_grad()
def _make(w: dict[str, Tensor], kind: str, k: int | None, site: str | None, model, subtract: bool,
          centred: bool = False, scale: float = 1.0) -> SAE:
    """An SAE with these weights, all conventions folded in; see the top of this file."""
    d, m = w["W_enc"].shape
    if w["W_dec"].shape != (m, d) or w["b_dec"].shape != (d,):
        raise ValueError(f"W_enc is {tuple(w['W_enc'].shape)}, W_dec {tuple(w['W_dec'].shape)}, b_dec "
                         f"{tuple(w['b_dec'].shape)}: these do not belong together; they should be [d, m], [m, d], [d]")
    sae = SAE(d, m, kind, k, site)
    W_enc = w["W_enc"] * scale
    if centred:
        W_enc = W_enc - W_enc.mean(0)
    b_dec = w["b_dec"] / scale
    # what a zero state gives, with ours: -b_dec W_enc + b_enc
    shift = b_dec @ W_enc - (w["b_dec"] @ w["W_enc"] if subtract else 0)
    sae.W_enc.copy_(W_enc)
    sae.W_dec.copy_(w["W_dec"] / scale)
    sae.b_dec.copy_(b_dec)
    sae.b_enc.copy_(w["b_gate" if kind == "gated" else "b_enc"] + shift)
    if kind == "gated":
        sae.r_mag.copy_(w["r_mag"])
        sae.b_mag.copy_(w["b_mag"] + shift * w["r_mag"].exp())
    if kind == "jumprelu":
        sae.threshold.copy_(w["threshold"].relu())  # both formats take max(z, 0): below 0 a threshold means 0
    if model is not None:
        _check_width(model, site, d)
        sae.to(device=model.device, dtype=model.dtype)
    return sae.requires_grad_(False).eval()


def _file(folder: str | Path, name: str) -> Path:
    file = Path(folder) / name
    if not file.is_file():
        raise ValueError(f"{name} is not in {Path(folder).name or folder}; give the folder of one SAE, which holds it")
    return file


def _config(file: Path) -> dict:
    """cfg.json in one form: version 6 keeps what it knows of the model under `metadata`, older ones beside the rest."""
    config = json.loads(file.read_text())
    config = {OLD_NAMES.get(key, key): value for key, value in config.items()}
    config |= {key: value for key, value in (config.get("metadata") or {}).items() if value is not None}
    if config.get("activation_fn") == "topk":
        config["architecture"] = "topk"
    return config


def _k(config: dict) -> int:
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    if not k:
        raise ValueError("folder: cfg.json of a topk SAE names no k")
    return int(k)


def _centred(config: dict) -> bool:
    return bool((config.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))


def _scale(config: dict, scale: float | None) -> float:
    how = config.get("normalize_activations") or "none"
    how = "expected_average_only_in" if how is True else how  # a bool in the oldest form
    if how == "none":
        if scale is not None:
            raise ValueError(f"scale={scale}, but this SAE reads states as they are (normalize_activations is none)")
        return 1.0
    if how != "expected_average_only_in":
        raise ValueError(f"folder: cfg.json says normalize_activations={how!r}, which divides each state by a number "
                         "of its own; a decoder that must know the state is no SAE of Eq. 7-8, and is not read here")
    if scale is None:
        raise ValueError("scale: this SAE was trained on states brought to mean norm sqrt(d), and its files do not say "
                         "how; give scale = sqrt(d) / mean |x| at its site")
    return float(scale)


def _site(config: dict) -> str:
    name, head = config.get("hook_name", ""), config.get("hook_head_index")
    for pattern, site in HOOKS.items():
        found = re.fullmatch(pattern, name)
        if found:
            layer = int(found[1])
            return site(layer) if head is None or not name.endswith("hook_z") else f"L{layer}H{head}.z"
    raise SiteError(f"hook_name {name!r} in cfg.json is no site of ours; say site='x4' or the like to override it")


def _check_width(model, site: str | None, d: int) -> None:
    from mi_course.models import record

    if site is None:
        raise ValueError("site is not known; give site='x4' or the like, so that it can be checked against the model")
    width = record(model, torch.zeros(1, 1, dtype=torch.long), [site], logits=False)[site].flatten(2).shape[-1]
    if width != d:
        raise ValueError(f"this SAE reads states of width {d}, but '{site}' of {model.name} has width {width}; it "
                         "belongs to another model or site")
