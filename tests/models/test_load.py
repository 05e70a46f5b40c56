"""Loading: the self-check refuses a wrong row, the default path needs no network, and a fingerprint names a model."""

import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import mi_course as mi
from mi_course.models import families
from mi_course.models.selfcheck import SelfCheckError
from tests.models.common import FAMILIES, PROMPTS, random_model

# one wrong fact per case: family of the random model -> fields of its row
WRONG_ROWS = [
    ("gpt2", dict(parallel=True)),
    ("gpt2", dict(attn_norm="ln_2")),
    ("gpt2", dict(norm="rms")),
    ("gpt2", dict(qkv_layout="heads")),
    ("gpt2", dict(pos=None)),
    ("gpt2", dict(mlp_norm="ln_1")),
    ("gpt_neo", dict(private_attention=False)),
    ("gptj", dict(parallel=False)),
    ("gptj", dict(rotary="half", rotary_module="transformer.drop")),
    ("gptj", dict(rotary=None)),
    ("gpt_neox", dict(parallel=False)),
    ("gpt_neox", dict(qkv_layout="blocks")),
    ("gpt_neox_sequential", dict(parallel=True)),
    ("opt", dict(pos_offset=0)),
    ("opt", dict(q_prescaled=False)),
    ("llama", dict(rotary=None)),
    ("llama", dict(gate="mlp.up_proj", up="mlp.gate_proj")),
    ("llama", dict(k="self_attn.v_proj", v="self_attn.k_proj")),
    ("llama", dict(gain_offset=1.0)),
    ("llama", dict(o="self_attn.missing")),
    ("llama", dict(mlp_out="mlp.missing")),
    ("llama", dict(final_norm="model.missing")),
    ("qwen3", dict(qk_norm=False)),
    ("gemma2", dict(gain_offset=0.0)),
    ("gemma2", dict(attn_post_norm=None)),
    ("gemma2", dict(mlp_post_norm=None)),
    ("phi3", dict(gate_up=None, mlp_in="mlp.gate_up_proj")),
]


@pytest.mark.parametrize("family, fields", WRONG_ROWS, ids=lambda value: str(value))
def test_a_wrong_row_is_an_error(family, fields, monkeypatch):
    hf = random_model(family)
    row = families.FAMILIES[hf.config.model_type]
    monkeypatch.setitem(families.FAMILIES, row.name, replace(row, **fields))
    with pytest.raises(SelfCheckError, match="mi_course.models.families"):
        mi.wrap(hf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_right_row_passes_whatever_the_weights(family, dtype):
    for seed in (1, 2):
        model = mi.wrap(random_model(family, seed=seed).to(dtype))
        assert model.dtype == dtype


def test_an_unknown_family_says_what_to_add():
    from transformers import BloomConfig, BloomForCausalLM

    hf = BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(mi.models.UnknownFamily, match="'bloom' has no row.*append Family.*blocks=.*self-check"):
        mi.wrap(hf)


def test_opt_with_norms_after_the_branch_is_refused():
    with pytest.raises(mi.models.UnknownFamily, match="opt-350m"):
        mi.wrap(random_model("opt", do_layer_norm_before=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model with a word-level tokenizer, as the shipped ones have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<bos>", "<eos>", "<pad>", *[f"w{i}" for i in range(47)]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )
    path = tmp_path_factory.mktemp("saved") / "tiny"
    random_model("llama").save_pretrained(path)
    fast.save_pretrained(path)
    return path


def test_a_folder_loads_without_network(folder, monkeypatch):
    def refuse(*_):
        raise AssertionError("a network connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = mi.load(str(folder))
    assert model.dtype == torch.float32 and model.device.type == "cpu" and model.family.name == "llama"
    assert torch.equal(model(PROMPTS), mi.wrap(random_model("llama"))(PROMPTS))
    assert model.tokenize("w1 w2").ids.tolist() == [[0, 4, 5]]
    assert model.tokens("w1 w2") == ["<bos>", "w1", "w2"]
    assert model.token_id("w1") == 4
    texts = model.generate(["w1 w2", "w3"], 4)
    assert len(texts) == 2 and all(set(text.split()) <= {f"w{i}" for i in range(47)} for text in texts)
    assert mi.load(str(folder), dtype="bfloat16").dtype == torch.bfloat16


def test_a_shipped_model_is_verified_and_never_looked_for_on_the_hub(folder, tmp_path, monkeypatch):
    from mi_course import assets
    from mi_course.models import model as module

    monkeypatch.setattr(module, "ASSETS", tmp_path)
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="shipped model 'lab' is missing.*mi_course.world.train"):
        mi.load()
    shutil.copytree(folder, tmp_path / "lab")
    assets.register("lab", list((tmp_path / "lab").iterdir()))
    assert mi.load().name == "lab"
    weights = tmp_path / "lab" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(assets.AssetError, match="model.safetensors is not the file that was shipped; restore it"):
        mi.load()


def test_a_target_of_several_tokens_names_its_pieces(folder):
    model = mi.load(str(folder))
    with pytest.raises(ValueError, match="2 tokens.*'w1', 'w2'.*choose a word that is one token"):
        model.token_id("w1 w2")
    with pytest.raises(ValueError, match="not in the vocabulary"):
        model.token_id("elephant")


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, mi_course; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    code = "import sys, mi_course.models; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_fingerprints_name_config_and_weights(folder):
    model = mi.wrap(random_model("llama"))
    digest = model.fingerprint()
    assert len(digest) == 12 and digest == mi.wrap(random_model("llama")).fingerprint()
    assert digest == mi.load(str(folder)).fingerprint()  # where it was read from does not matter
    assert digest != mi.wrap(random_model("llama", seed=1)).fingerprint()
    assert digest != mi.wrap(random_model("llama", rms_norm_eps=1e-5)).fingerprint()
    with mi.intervene(model, mi.zero(["x1", "pattern0"])):
        assert model.fingerprint() == digest
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    assert model.fingerprint() != digest


def test_wrapping_a_module_with_sdpa_and_dropout_gives_eager_eval():
    hf = random_model("llama", attention_dropout=0.5)
    hf.set_attn_implementation("sdpa")
    model = mi.wrap(hf.train())
    assert mi.record(model, PROMPTS, "pattern0")["pattern0"].shape == (3, 4, 7, 7)
    assert torch.equal(model(PROMPTS), model(PROMPTS))
