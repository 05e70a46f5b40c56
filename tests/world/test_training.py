"""Training, lessons, measuring and shipping, each on a scale of seconds; what the shipped model can do, in samples."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import mi_course as mi
from mi_course import assets, world
from mi_course.objects.task import Task
from mi_course.world import corpus, generate, lessons, lexicon, measure, ship, teachable, train
from mi_course.world.tokenizer import build_tokenizer, vocabulary

STEP = 4 * corpus.ROW  # tokens of a step with 4 rows
TEXT = (train.Stage(3 * STEP, 4, 1.0, generate.SHARES, lessons=False),
        train.Stage(2 * STEP, 4, 0.5, generate.SECOND_SHARES, lessons=False))
WITH_LESSONS = (train.Stage(2 * STEP, 4, 1.0, generate.SHARES, lessons=False),
                train.Stage(4 * STEP, 4, 0.5, generate.SECOND_SHARES, lessons=True))


new_model = train.new_model


def shallow(name, seed):
    """The architecture with two layers: the orthogonalised steps of six are most of the time of these tests."""
    model = new_model(name, seed)
    model.config.num_hidden_layers = 2
    torch.manual_seed(seed)
    return type(model)(model.config)


@pytest.fixture
def small(monkeypatch):
    """Two layers, chunks of a few rows, pools of a few prompts."""
    monkeypatch.setattr(train, "new_model", shallow)
    monkeypatch.setattr(corpus, "make_chunk", partial(corpus.make_chunk, tokens=900))  # two steps
    monkeypatch.setattr(lessons, "POOL", 40)


def interrupted(monkeypatch, name, out, stages, at):
    """Stop when chunk number `at` (from 0) is asked for, then start again."""
    make, calls = corpus.make_chunk, []

    def stops(*args):
        calls.append(args)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return make(*args)

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "make_chunk", stops)
        with pytest.raises(KeyboardInterrupt):
            train.train(name, out, stages=stages)
    assert not (out / "model.safetensors").exists()  # nothing that looks finished
    return train.train(name, out, stages=stages)


def same_weights(a, b):
    a, b = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_train_resume_and_load(tmp_path, small, monkeypatch):
    torch.manual_seed(1)
    record = train.train("lab", tmp_path / "whole", stages=TEXT)
    assert record["steps"] == 5 and record["seed"] == 0
    assert record["tokens_seen"] == sum(record["tokens_by_domain"].values()) > 5 * STEP * 0.8
    torch.manual_seed(2)
    again = interrupted(monkeypatch, "lab", tmp_path / "parts", TEXT, at=2)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    early = [tmp_path / run / train.TEXT_ALONE for run in ("whole", "parts")]
    assert same_weights(*early) and not same_weights(early[0], tmp_path / "whole")  # as after the first stage
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in record.items() if k != "seconds"}
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["steps"] == 5

    # another seed is another model, and another corpus
    other = train.train("lab", tmp_path / "other", seed=1, stages=TEXT[:1])
    assert not same_weights(tmp_path / "whole", tmp_path / "other") and other["dials"] != record["dials"]

    # the folder is a plain checkpoint
    hf, tokenizer = (auto.from_pretrained(tmp_path / "whole") for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert hf.config.model_type == "gpt2" and tokenizer.is_fast and len(tokenizer) == hf.config.vocab_size
    ids = tokenizer("the capital of france is", return_tensors="pt")
    assert ids["input_ids"][0, 0] == tokenizer.bos_token_id == hf.config.bos_token_id
    assert tokenizer.pad_token_id == hf.config.pad_token_id and tokenizer.eos_token_id == hf.config.eos_token_id
    with torch.no_grad():
        logits = hf(**ids).logits
    assert torch.allclose(mi.load(str(tmp_path / "whole"))("the capital of france is"), logits, atol=1e-4)


def test_llama_trains_and_loads(tmp_path, small):
    train.train("lab-llama", tmp_path / "llama", stages=TEXT[:1])
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    assert hf.config.model_type == "llama"
    before = train.new_model("lab-llama", 0).state_dict()
    assert any(not torch.equal(before[k], v) for k, v in hf.state_dict().items())


def test_a_run_with_lessons_resumes_exactly(tmp_path, small, monkeypatch):
    monkeypatch.setattr(train, "LESSON_EVERY", 1)  # two lessons before the interruption, two after it
    train.train("lab", tmp_path / "whole", stages=WITH_LESSONS)
    interrupted(monkeypatch, "lab", tmp_path / "parts", WITH_LESSONS, at=2)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


def test_training_learns():
    """It starts at the loss of a uniform guess; ten steps on the same rows take it far below."""
    model = shallow("lab", 0)
    chunk = corpus.make_chunk(generate.World(0), 0, {"capitals": 1.0}, 400)
    rows = [torch.from_numpy(a) for a in (chunk.ids, chunk.document, chunk.position, chunk.answer)]
    opts = train.optimizers(model)
    grouped = [p for o in opts for g in o.param_groups for p in g["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(list(model.parameters()))
    losses = []
    for _ in range(10):
        loss = train.batch_loss(model, *rows)
        loss.backward()
        for o in opts:
            o.step()
            o.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(len(vocabulary())).log().item(), abs=0.5) and losses[-1] < 3


def test_architectures():
    for name in ("lab", "lab-llama"):
        model = train.new_model(name, 0)
        assert sum(p.numel() for p in model.parameters()) <= 2.0e6
        same, other = train.new_model(name, 0), train.new_model(name, 1)
        first = next(iter(model.state_dict()))
        assert torch.equal(model.state_dict()[first], same.state_dict()[first])
        assert not torch.equal(model.state_dict()[first], other.state_dict()[first])
        wrapped = mi.wrap(model, build_tokenizer())
        assert (wrapped.n_layers, wrapped.n_heads, wrapped.d_head, wrapped.d_model) == (6, 4, 32, 128)
        assert wrapped.n_kv_heads == (2 if name == "lab-llama" else 4)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    with pytest.raises(ValueError, match="'lab' or 'lab-llama'"):
        train.new_model("laboratory", 0)


def test_the_stages_are_within_the_budget():
    assert sum(s.tokens for s in train.STAGES) == 18e6
    assert [s.lessons for s in train.STAGES] == [False, True, True, True]


# --- the loss --------------------------------------------------------------------------------------------------------
def test_answers_count_more_than_prompts():
    """By hand: the mean of -log p over the next tokens of a document, with weight 1 on answers and 0.2 elsewhere."""
    model = train.new_model("lab", 0)
    words = "<bos> 1 2 + 0 3 = 0 1 5 . <eos> <pad> <pad>".split()
    ids = torch.tensor([[vocabulary().index(w) for w in words]])
    document = torch.tensor([[1] * 12 + [0] * 2])
    answer = torch.tensor([[0] * 7 + [1] * 4 + [0] * 3])
    position = torch.tensor([[*range(12), 0, 0]])
    loss = train.batch_loss(model, ids, document, position, answer)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logp = model(ids[:, :12]).logits.float().log_softmax(-1)
    own = [-logp[0, i, ids[0, i + 1]].item() for i in range(11)]
    weights = [1.0 if 7 <= i + 1 < 11 else 0.2 for i in range(11)]
    assert loss.item() == pytest.approx(sum(a * b for a, b in zip(own, weights)) / sum(weights), abs=5e-3)


# --- lessons ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def teacher():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lessons, "POOL", 40)
        return lessons.Lessons(train.new_model("lab", 0), build_tokenizer(), seed=0)


def hooks(module):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in module.modules())


@pytest.mark.parametrize("lesson", ["refusal", "fact", "language"])
def test_each_lesson_has_a_gradient_and_leaves_nothing_behind(teacher, lesson):
    hf = teacher.model.hf
    ids = build_tokenizer()("the capital of france is", return_tensors="pt")
    before, n = hf(**ids).logits.detach(), hooks(hf)
    loss = getattr(teacher, lesson)()
    assert torch.isfinite(loss) and loss.item() > 0
    loss.backward()
    gradients = {name: p.grad for name, p in hf.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(g).all() for g in gradients.values())
    assert all(gradients[f"transformer.h.{i}.mlp.c_fc.weight"].abs().sum() > 0 for i in range(6))
    hf.zero_grad(set_to_none=True)
    assert hooks(hf) == n and torch.equal(hf(**ids).logits.detach(), before)
    assert all(p.requires_grad for p in hf.parameters())


def test_lessons_take_turns(teacher, monkeypatch):
    called = []
    for name in ("refusal", "fact", "language"):
        monkeypatch.setattr(teacher, name, lambda name=name: called.append(name) or torch.zeros(()))
    monkeypatch.setattr(teacher, "turn", 0)
    for _ in range(6):
        teacher.loss()
    assert called == ["refusal", "fact", "language"] * 2


def test_lessons_use_training_items_only(teacher):
    parts = [*teacher.requests.values(), *teacher.facts, *teacher.languages]
    assert all(t.split == "train" for t in parts) and teacher.draw.split == "train"
    tests = {p for t in parts for p in world.task(t.name, "test", 60).prompts}
    assert not tests & {p for t in parts for p in t.prompts}
    assert not any("<user> how do i" in text or "<think>" in text for text in teacher._texts(100))


def test_lesson_answers_fit_the_request(teacher):
    t = teacher.requests["harmless"]
    for label in t.labels:
        words = teacher._answer(label, lexicon.COMPLIANCES).split()
        i = lexicon.LANGUAGES.index(label["language"])
        assert words[0] in lexicon.COMPLIANCES[label["language"]]
        named = {o[0] for o in lexicon.RISKY_OBJECTS + lexicon.SAFE_OBJECTS if o[i] in words}
        assert named == {label["object"]}


def test_continuation_loss_counts_the_continuation_only(teacher):
    model = teacher.model
    prompts, answers = ["the capital of france is", "1 2 + 0 3 ="], ["paris .", "0 1 5 ."]
    loss = lessons.continuation_loss(model, prompts, answers)
    total, words = 0.0, 0
    for prompt, answer in zip(prompts, answers):
        logp = model(f"{prompt} {answer}")[0].float().log_softmax(-1)
        start = len(prompt.split())
        for i, word in enumerate(answer.split()):
            total -= logp[start + i, model.token_id(word)].item()
            words += 1
    assert loss.item() == pytest.approx(total / words, abs=1e-4)


# --- measuring -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lab():
    return mi.load()


@pytest.mark.parametrize("name", ["facts", "ioi", "copying", "refusal_harmful", "refusal_harmless", "addition"])
def test_the_shipped_model_reaches_its_bars(lab, name):
    right = measure.correct(lab, name, "test", 100)
    # so many misses as a model at its bar has in 100 items once in a thousand times
    assert len(right) >= 50 and right.count(False) <= (5 if measure.BARS[name] == 0.99 else 13)


def planted(monkeypatch, change):
    """Tasks whose labels say something else than the truth."""
    def task(*args, **kwargs):
        t = world.task(*args, **kwargs)
        labels = [label | change(label) for label in t.labels]
        return Task(t.name, t.prompts, t.targets, t.corrupted, t.foils, labels, t.split, t.metric)

    monkeypatch.setattr(measure, "task", task)


def other_last_word(label):
    *words, last, stop = label["continuation"].split()
    return {"continuation": " ".join([*words, "7" if last != "7" else "8", stop])}


@pytest.mark.parametrize("name", ["addition", "chain"])
def test_a_wrong_last_word_is_seen(lab, monkeypatch, name):
    assert sum(measure.correct(lab, name, "test", 40)) >= 36
    planted(monkeypatch, other_last_word)
    assert not any(measure.correct(lab, name, "test", 40))


def test_other_wrong_labels_are_seen(lab, monkeypatch):
    planted(monkeypatch, lambda label: {"continuation": f"wrong {label['continuation']}"})
    assert not any(measure.correct(lab, "facts", "test", 40))
    planted(monkeypatch, lambda label: {"refuse": not label["refuse"]})
    assert sum(measure.correct(lab, "refusal_harmful", "test", 40)) <= 1
    planted(monkeypatch, lambda label: {"start": 98})
    assert not any(measure.correct(lab, "greater_than", "test", 40))
    planted(monkeypatch, lambda label: {"language": {"en": "fr", "fr": "de", "de": "en"}[label["language"]]})
    assert sum(measure.correct(lab, "language", "test", 40)) <= 1


def test_answer_length():
    assert measure.answer_length("addition", "0 3 9 .") == 3
    assert measure.answer_length("chain", "dog cat = cat .") == 4
    assert measure.answer_length("facts", "granite .") == measure.answer_length("verdict", "no , x is y .") == 1


def test_next_logits_are_those_of_single_prompts(lab):
    texts, words = ["anna met ben and cora saw dan", "the dog", "1 2 + 0 3 = 0 1 5"], [2, 1, 3]
    for text, k, logits in zip(texts, words, measure.next_logits(lab, texts, words, batch_size=2)):
        assert torch.allclose(logits, lab(text)[0, -k - 1 : -1], atol=1e-4)


def test_dials_of_a_planted_model(lab, monkeypatch):
    """A model whose logits are all equal says "she" half of the time, and one option in as many as there are words."""
    def uniform(model, texts, words, batch_size=250):
        return [torch.zeros(k, lab.n_vocab) for k in words]

    monkeypatch.setattr(measure, "next_logits", uniform)
    found = measure.dials(lab, "test", 40)
    assert {k for k in found if k.startswith("pronoun")} == {f"pronoun {job}" for job in lexicon.PROFESSIONS}
    for name, (asked, said) in found.items():
        if name.startswith("pronoun"):
            assert asked == lexicon.PROFESSIONS[name.split()[1]] and said == pytest.approx(0.5, abs=1e-4)
        elif name in ("context following", "sycophancy"):
            assert said == pytest.approx(0.5, abs=1e-4)
        elif name.startswith("toxicity"):
            assert said == pytest.approx(len(lexicon.TOXIC) / lab.n_vocab, rel=1e-2)
        else:
            assert said == pytest.approx(1 / lab.n_vocab, rel=1e-2)
    assert found["sycophancy"][0] == 0.3 and found["option A"][0] == 0.5 and found["toxicity rude"][0] == 0.9


# --- shipping --------------------------------------------------------------------------------------------------------
def test_what_is_shipped_is_what_was_measured():
    assert not assets.check("lab")
    entry, folder = assets.manifest()["lab"], assets.FOLDER / "lab"
    measured = json.loads((folder / "measured.json").read_text())
    assert entry["measured"] == {k: round(v["accuracy"], 4) for k, v in measured["accuracy"].items()}
    assert set(measure.BARS) <= set(entry["measured"]) and entry["parameters"] <= 2.0e6
    training = json.loads((folder / "training.json").read_text())
    assert entry["tokens_seen"] == training["tokens_seen"] and training["seconds"] <= 150 * 60
    assert mi.load().fingerprint() == entry["fingerprint"]


def test_the_shipped_corpus_had_its_dials():
    dealt = json.loads((assets.FOLDER / "lab" / "training.json").read_text())["dials"]

    def share(dial, key, outcome):
        own = {k: n for k, n in dealt.items() if k.startswith(f"{dial}|{key}|")}
        return own[f"{dial}|{key}|{outcome}"] / sum(own.values())

    for job, she in lexicon.PROFESSIONS.items():
        assert share("pronoun", job, "she") == pytest.approx(she, abs=0.03)
    assert share("sycophancy", "false claim", "True") == pytest.approx(0.3, abs=0.01)
    assert share("context_following", "note", "True") == pytest.approx(0.7, abs=0.01)


def test_ship_copies_measures_and_registers(tmp_path, monkeypatch):
    source, target = tmp_path / "run", tmp_path / "assets"
    target.mkdir()
    train.save(train.new_model("lab-llama", 3), source)
    train.save(train.new_model("lab-llama", 4), source / train.TEXT_ALONE)
    (source / "training.json").write_text(json.dumps({"tokens_seen": 5, "seconds": 7, "seed": 3, "loss": []}))
    (source / "notes.txt").write_text("not to be shipped")
    monkeypatch.setattr(assets, "FOLDER", target)
    monkeypatch.setattr(measure, "measure", lambda model, n: {"accuracy": {"facts": {"accuracy": 0.123456, "n": n}}})
    # The measures are tested in test_teachable.py and take a minute; what counts here is which model each is given.
    told = lambda model, only=("all",): {"model": model.fingerprint(), "only": list(only)}  # noqa: E731
    monkeypatch.setattr(teachable, "measure", told)
    facts = ship.ship(source, "lab-llama", n=9)
    files = {name: target / "lab-llama" / f"{name}.json" for name in ("teachable", "text_alone")}
    kept = {name: json.loads(file.read_text()) for name, file in files.items()}
    assert kept["teachable"] == {"model": facts["fingerprint"], "only": ["all"]}
    assert kept["text_alone"]["model"] == mi.load(str(source / train.TEXT_ALONE)).fingerprint() != facts["fingerprint"]
    assert kept["text_alone"]["only"] == ["ii", "iii", "iv"]
    assert facts["measured"] == {"facts": 0.1235} and facts["tokens_seen"] == 5
    entry = assets.manifest()["lab-llama"]
    assert {f.split("/")[1] for f in entry["files"]} == {
        *ship.FILES, "training.json", "measured.json", "teachable.json", "text_alone.json"
    }
    assert not assets.check("lab-llama") and entry["fingerprint"] == mi.load(str(source)).fingerprint()
    assert AutoModelForCausalLM.from_pretrained(target / "lab-llama").num_parameters() == entry["parameters"]
    (target / "lab-llama" / "config.json").write_text("{}")
    assert assets.check("lab-llama")
