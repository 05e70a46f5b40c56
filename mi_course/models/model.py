"""Model: a thin wrapper around a Hugging Face causal LM, which stays reachable as `model.hf`.

It knows the family's row, pads and numbers prompts correctly, and holds the taps that `record` and `intervene` use.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from . import weights
from .batch import Batch
from .families import family_of
from .hooks import Taps
from .memory import import_transformers, keep_freed

ASSETS = Path(__file__).parent.parent / "assets"
SHIPPED = ("lab", "lab-llama")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model:
    """A causal LM with its family's row. Made by `load` or `wrap`, which run the self-check.

    hf, tokenizer, family, config: the Hugging Face module, its tokenizer (or None), the `Family` row, the settings.
    n_layers, n_heads, n_kv_heads, d_model, d_head, d_ffn, n_vocab, n_ctx: sizes.
    saes: SAEs by name, for `<sae>F123` sites; anything with `.site` (where it reads), `.encode(x)` and `.decode(a)`.
    """

    def __init__(self, hf, tokenizer=None, name: str | None = None):
        config = hf.config
        self.hf, self.tokenizer, self.config, self.family = hf, tokenizer, config, family_of(config)
        self.name = name or getattr(config, "_name_or_path", "") or self.family.name
        self.body = hf.get_submodule(self.family.blocks.rpartition(".")[0])  # embeddings, blocks and final norm
        self.blocks = hf.get_submodule(self.family.blocks)
        self.n_layers, self.n_heads = len(self.blocks), config.num_attention_heads
        self.n_kv_heads = getattr(config, "num_key_value_heads", None) or self.n_heads
        self.d_model = config.hidden_size
        self.d_head = getattr(config, "head_dim", None) or self.d_model // self.n_heads
        self.n_vocab, self.n_ctx = hf.get_submodule(self.family.embed).weight.shape[0], config.max_position_embeddings
        self.d_ffn = weights.ffn(self, 0).W_out.shape[0]
        self.saes: dict[str, object] = {}
        self.taps = Taps(self)

    @property
    def device(self) -> torch.device:
        return self.hf.get_submodule(self.family.embed).weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.get_submodule(self.family.embed).weight.dtype

    def __repr__(self) -> str:
        return (
            f"Model({self.name}: {self.family.name}, {self.n_layers} layers x {self.n_heads} heads, "
            f"d_model {self.d_model}, d_ffn {self.d_ffn}, vocabulary {self.n_vocab}, {self.dtype} on {self.device})"
        )

    def block(self, layer: int):
        """The Hugging Face module of block `layer`."""
        return self.blocks[layer]

    # -- tokens --------------------------------------------------------------------------------------------------

    def tokenize(self, prompts, side: str = "left") -> Batch:
        """Prompts as a padded Batch. prompts: a text, a list of texts or of token-id lists, a 2-D LongTensor, a Batch.

        Texts get the special tokens that the tokenizer adds by default (`lab`: <bos>). side: where padding goes.
        Raises ValueError or TypeError for an empty batch, an empty prompt, unknown ids or too many tokens.
        """
        if isinstance(prompts, Batch):
            return prompts.to(self.device)
        if isinstance(prompts, Tensor):
            if prompts.dim() != 2 or prompts.is_floating_point() or prompts.dtype == torch.bool:
                raise TypeError(
                    f"prompts is a {prompts.dtype} tensor of shape {tuple(prompts.shape)}; give ids as a 2-D LongTensor"
                )
            rows = prompts.tolist()
        else:
            rows = [self._ids(prompt) for prompt in ([prompts] if isinstance(prompts, str) else prompts)]
        if not rows:
            raise ValueError("prompts is empty; give at least one prompt")
        for i, row in enumerate(rows):
            if not len(row):
                raise ValueError(f"prompts[{i}] has no token; give at least one word")
            if min(row) < 0 or max(row) >= self.n_vocab:
                raise ValueError(f"prompts[{i}] has an id outside 0 to {self.n_vocab - 1}; use this model's tokenizer")
        longest = max(map(len, rows))
        if longest > self.n_ctx:
            raise ValueError(f"prompts: {longest} tokens are more than the model's {self.n_ctx}; shorten it")
        return Batch.from_rows(rows, self._pad_id(), side, self.device)

    def _ids(self, prompt) -> Sequence[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise TypeError("prompts: this model has no tokenizer; give token-id lists, or mi.wrap(hf, tokenizer)")
            return self.tokenizer(prompt)["input_ids"]
        ids = prompt.tolist() if isinstance(prompt, Tensor) else list(prompt)
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise TypeError(f"prompts: {prompt!r} is neither a text nor a list of token ids (integers)")
        return ids

    def _pad_id(self) -> int:
        for source in (self.tokenizer, self.config):
            for name in ("pad_token_id", "eos_token_id"):
                value = getattr(source, name, None)
                if isinstance(value, int) and 0 <= value < self.n_vocab:
                    return value
        return 0

    def token_id(self, word: str) -> int:
        """The id of a word that is one token. Raises ValueError naming the pieces when it is several, or unknown."""
        if self.tokenizer is None:
            raise TypeError("token_id needs a tokenizer; make the model with mi.wrap(hf, tokenizer=...)")
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            pieces = ", ".join(repr(piece) for piece in self.tokenizer.convert_ids_to_tokens(ids))
            raise ValueError(
                f"word {word!r} is {len(ids)} tokens ({pieces}) in {self.name}; choose a word that is one token "
                "(many vocabularies have one form with a leading space, ' word', and another without)"
            )
        if ids[0] == getattr(self.tokenizer, "unk_token_id", None):
            raise ValueError(f"word {word!r} is not in the vocabulary of {self.name}; choose another")
        return ids[0]

    def tokens(self, prompt) -> list[str]:
        """The tokens of one prompt as strings, special tokens included: labels for the position axis."""
        ids = self.tokenize(prompt if isinstance(prompt, str) else [prompt]).ids[0].tolist()
        return [self.tokenizer.decode([i]) for i in ids] if self.tokenizer else [str(i) for i in ids]

    # -- running -------------------------------------------------------------------------------------------------

    def __call__(self, prompts, grad: bool = False) -> Tensor:
        """Logits [B, T, V] over the columns of `model.tokenize(prompts)`. grad: build the graph (off by default)."""
        batch = self.tokenize(prompts)
        with torch.set_grad_enabled(grad):
            return self.hf(**_inputs(batch)).logits

    def last_logits(self, prompts, grad: bool = False) -> Tensor:
        """Logits [B, V] that predict the token after each prompt: at its last real token, whichever side is padded.

        Only these B positions are unembedded.
        """
        batch = self.tokenize(prompts)
        with torch.set_grad_enabled(grad):
            states = self.states(batch, grad)
            return self._head(states[torch.arange(len(batch), device=self.device), batch.last])

    def states(self, prompts, grad: bool = False) -> Tensor:
        """The last states after the final norm [B, T, d]: all of the model but the unembedding."""
        with torch.set_grad_enabled(grad):
            return self.body(**_inputs(self.tokenize(prompts))).last_hidden_state

    def _head(self, normed: Tensor) -> Tensor:
        """States after the final norm [..., d] -> logits [..., V]."""
        logits = self.hf.get_submodule(self.family.unembed)(normed)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def unembed(self, x: Tensor) -> Tensor:
        """Residual states before the final norm [..., d] -> logits [..., V]: the logit lens (survey 3.5, audit A27)."""
        return self._head(self.hf.get_submodule(self.family.final_norm)(x))

    def resume(self, layer: int, x: Tensor, prompts, grad: bool = False, last: bool = False) -> Tensor:
        """Run the blocks from `layer` on, with x [B, T, d] as x^layer; blocks below are not computed.

        Equals a full run with x patched in at `x{layer}`. Active interventions at or above `x{layer}` apply.
        Returns logits [B, T, V], or [B, V] at the last real token of each row if `last`.
        """
        from .edits import intervene, patch

        batch = self.tokenize(prompts)
        if x.shape != (*batch.ids.shape, self.d_model):
            raise ValueError(f"x has shape {tuple(x.shape)}; these prompts need {(*batch.ids.shape, self.d_model)}")
        if not 0 <= layer <= self.n_layers:
            raise ValueError(f"layer {layer} is out of range; {self.name} has residual states 0 to {self.n_layers}")
        with self.without_blocks(range(layer)), intervene(self, patch(f"x{layer}", x)):
            return self.last_logits(batch, grad) if last else self(batch, grad)

    @contextmanager
    def without_blocks(self, layers: Iterable[int]):
        """While active, the blocks of these layers are not computed: they return their input."""
        skipped = [self.blocks[layer] for layer in layers]
        returns_tuple = self.family.name in ("gptj", "gpt_neo")
        for block in skipped:
            block.forward = lambda x, *_, **__: (x, None) if returns_tuple else x
        try:
            yield
        finally:
            for block in skipped:
                del block.forward

    def generate_ids(self, prompts, max_new_tokens: int = 20, **options) -> Tensor:
        """New token ids [B, <= max_new_tokens], greedy unless `options` say otherwise, with the KV cache.

        options go to Hugging Face's `generate`. Rows that end early are filled with the padding id.
        """
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens!r}; give a positive integer")
        batch = self.tokenize(prompts)
        if (batch.mask[:, -1] == 0).any():
            raise ValueError("prompts is padded on the right, where replies go; use model.tokenize(..., side='left')")
        options = {"do_sample": False, "pad_token_id": self._pad_id()} | options
        self.taps.prompt_width = batch.ids.shape[1]
        log = logging.getLogger("transformers.modeling_utils")
        log.addFilter(_no_false_alarm)
        try:
            with torch.no_grad():
                ids = self.hf.generate(batch.ids, attention_mask=batch.mask, max_new_tokens=max_new_tokens, **options)
        finally:
            self.taps.prompt_width = None
            log.removeFilter(_no_false_alarm)
        return ids[:, batch.ids.shape[1] :]

    def generate(self, prompts, max_new_tokens: int = 20, **options) -> list[str]:
        """Continuations as texts (the new tokens only, without special tokens), greedy, with the KV cache.

        Active interventions apply; their `positions` count from the prompt. options: see `generate_ids`.
        """
        if self.tokenizer is None:
            raise TypeError("generate needs a tokenizer; use generate_ids, or mi.wrap(hf, tokenizer=...)")
        ids = self.generate_ids(prompts, max_new_tokens, **options)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def fingerprint(self) -> str:
        """12 hex digits that change with any weight or any setting that the computation depends on."""
        settings = self.config.to_diff_dict()
        for name in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache"):
            settings.pop(name, None)
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=6)
        add_to_digest(digest, self.hf.named_parameters())
        return digest.hexdigest()


def add_to_digest(digest, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Add named tensors to a hash of hashlib, in the order of their names: every number counts."""
    for name, tensor in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)


def _no_false_alarm(record: logging.LogRecord) -> bool:
    """Leave out what transformers says when a row has ended and is filled up: that there is no attention mask."""
    return "attention_mask" not in record.getMessage()


def _inputs(batch: Batch) -> dict:
    return dict(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False)


def load(name: str = "lab", device=None, dtype=None) -> Model:
    """Load a model: a shipped one ("lab", "lab-llama"), a local folder, or a Hugging Face hub name ("gpt2").

    Shipped models and folders are read without any network access. device: default CPU. dtype: "float32" (default),
    "bfloat16", "float16" or the torch dtype. Raises UnknownFamily for an architecture without a row, AssetError for a
    damaged shipped file, ValueError for anything else that is wrong with the arguments.
    """
    dtype, device = _dtype(dtype), _device(device)
    source, local = _find(str(name))
    import_transformers()

    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        family_of(config)
        with _quiet(local):
            hf = AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, attn_implementation="eager", local_files_only=local
            )
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except OSError as error:
        raise ValueError(
            f"name: model {name!r} could not be read ({str(error).splitlines()[0]}). Give a shipped model "
            f"({', '.join(SHIPPED)}), a folder with config.json, or a hub name that can be reached"
        ) from error
    return wrap(hf.to(device), tokenizer, name=str(name))


def wrap(hf, tokenizer=None, name: str | None = None) -> Model:
    """The same wrapper for a Hugging Face module in memory, which is put in eval mode, with eager attention.

    tokenizer None: prompts must be token ids. Raises UnknownFamily, or SelfCheckError when the family's row is wrong.
    """
    from .selfcheck import SelfCheckError, check

    if not hasattr(hf, "config"):
        raise TypeError(f"hf is a {type(hf).__name__}; give a Hugging Face causal LM (AutoModelForCausalLM)")
    keep_freed()
    hf.eval()
    hf.config._attn_implementation = "eager"
    try:
        model = Model(hf, tokenizer, name)
    except AttributeError as error:
        row = f"the row of {family_of(hf.config).name!r} in mi_course.models.families"
        raise SelfCheckError(f"{row} points at a part that this model does not have ({error})") from error
    check(model)
    return model


@contextmanager
def _quiet(local: bool):
    """No progress bar while reading a local folder; downloads keep theirs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _find(name: str) -> tuple[str, bool]:
    """Where to read `name` from, and whether that is local."""
    from .. import assets

    if name in assets.manifest():
        return str(assets.path(name)), True
    for folder in (ASSETS / name, Path(name).expanduser()):
        if (folder / "config.json").exists():
            return str(folder), True
    if name in SHIPPED:  # never looked for on the hub
        raise ValueError(
            f"name: the shipped model {name!r} is missing from mi_course/assets; reinstall the package, or make it "
            "again with `python -m mi_course.world.train`"
        )
    return name, False


def _dtype(dtype) -> torch.dtype:
    found = DTYPES.get(str(dtype).removeprefix("torch.")) if dtype is not None else torch.float32
    if found is None:
        raise ValueError(f"dtype {dtype!r} is not supported; choose one of {', '.join(DTYPES)}")
    return found


def _device(device) -> torch.device:
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} is not available ({reason}); leave it out for the CPU") from error
    return found
