"""The world's labels against the text itself: every domain has a solver that reads only the words of a prompt."""

import re
from collections import Counter, defaultdict
from functools import lru_cache

import pytest

from mi_course.world import generate
from mi_course.world import lexicon as lx
from mi_course.world.generate import Dials, Draw, World

W = World(0)


@lru_cache
def items(domain, split="test", n=300, seed=5, **arguments):
    draw = Draw(W, split, seed)
    return [generate.sample(W, draw, domain, **arguments) for _ in range(n)]


def both(domain, n=300):
    return items(domain, "test", n) + items(domain, "train", n)


def solved(domain, solve, n=300):
    """The target is a right answer of the prompt, the foil is not; the foil is right for the twin, equally long."""
    for item in both(domain, n):
        right = solve(item.prompt)
        assert item.target in right and item.foil not in right, item
        assert len(item.twin.split()) == len(item.prompt.split()) and item.twin != item.prompt
        assert item.foil in solve(item.twin), item


@lru_cache(None)
def pattern(frame):
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(frame)))


def parse(frames, text):
    """(frame, {blank: words}) of the one frame that fits the text."""
    fits = [(frame, found.groupdict()) for frame in frames if (found := pattern(frame).fullmatch(text))]
    assert fits, text
    return min(fits, key=lambda fit: sum(len(v.split()) for v in fit[1].values()))  # the most specific one


# --- people and landmarks --------------------------------------------------------------------------------------------
def lookup(bodies, table):
    frames = {prefix + body: relation for relation, own in bodies.items() for body in own
              for prefix in generate.PREFIXES}

    @lru_cache(None)
    def solve(prompt):
        frame, found = parse(frames, prompt)
        return {table[found["s"]][frames[frame]]}

    return solve


COUNTRIES = {c: dict(zip(("capital", "language", "continent"), row)) for c, row in lx.COUNTRIES.items()}
STATEMENTS = {
    "attributes": lookup(generate.PEOPLE_BODIES, W.people),
    "facts": lookup(generate.LANDMARK_BODIES, W.landmarks),
    "capitals": lookup(generate.COUNTRY_BODIES, COUNTRIES),
}


@pytest.mark.parametrize("domain", STATEMENTS)
def test_statements(domain):
    solve = STATEMENTS[domain]
    solved(domain, solve, n=100)
    for item in both(domain, 100):
        label = item.labels
        assert item.continuation == f"{label['object']} ." and {label["object"]} == solve(item.prompt)
        start, end = label["subject"]
        assert " ".join(item.prompt.split()[start:end]) == label["subject_text"]
        assert " ".join(item.twin.split()[start:end]) != label["subject_text"]
        assert item.twin.split()[:start] + item.twin.split()[end:] == \
            item.prompt.split()[:start] + item.prompt.split()[end:]
        assert len(set(label["paraphrases"]) | {item.prompt}) == 5
        for other in label["paraphrases"]:
            assert label["subject_text"] in other and solve(other) == {label["object"]}
        assert len(label["neighbours"]) == 4
        for prompt, answer in label["neighbours"]:
            assert label["subject_text"] not in prompt and solve(prompt) == {answer} != {label["object"]}


def test_world_is_balanced_and_its_seed_decides():
    assert len(W.people) == 120 and len(W.strangers) == 1480 and not set(W.people) & set(W.strangers)
    for subjects in (W.people, W.landmarks):
        for relation in next(iter(subjects.values())):
            counts = Counter(row[relation] for row in subjects.values())
            assert set(counts) == set(W.objects[relation]) and max(counts.values()) - min(counts.values()) <= 1
    assert World(0).people == W.people and World(1).people != W.people


def test_frequent_landmarks():
    train = items("facts", "train", 2000)
    first = set(list(W.landmarks)[:40])
    assert all(i.labels["frequent"] == (i.labels["subject_text"] in first) for i in train)
    assert sum(i.labels["frequent"] for i in train) / len(train) == pytest.approx(0.875, abs=0.03)


def test_foreign_facts():
    for item in both("foreign_facts"):
        (landmark,) = (s for s in W.landmarks if s in item.prompt)
        assert item.target == W.landmarks[landmark]["place"]
        assert item.labels["language"] == ("fr" if item.prompt.endswith(" a") else "de")


def test_profile():
    for item in both("profile"):
        subject = " ".join(item.prompt.split()[-2:])
        row = W.people.get(subject) or W.landmarks[subject]
        assert sorted(item.continuation.split()) == sorted([*row.values(), "."])
        assert "guide" not in item.prompt or subject in W.landmarks


def test_two_hop():
    for item in both("two_hop"):
        (landmark,) = (s for s in W.landmarks if s in item.prompt)
        assert lx.COUNTRIES[item.target][0] == W.landmarks[landmark]["place"] == item.labels["bridge"]
        assert item.foil in lx.COUNTRIES and item.foil != item.target


def test_biography():
    frames = {body: r for r, bodies in generate.PEOPLE_BODIES.items() for body in bodies}
    for item in both("biography"):
        lead, *sentences = [s.strip() for s in item.continuation.split(" .")[:-1]]
        names = re.findall(r"\w+ \w+(?= and |$)", lead.split(" are ")[-1].removeprefix("today we met ")
                           .removeprefix("meet "))
        people = {name.split()[0]: W.people[name] for name in names}
        assert 1 <= len(people) == len(names) <= 3
        for sentence in sentences:
            if f"{sentence} ." in lx.FILLER:
                continue
            body, value = sentence.rsplit(" ", 1)
            frame, found = parse(frames, body)
            assert people[found["s"]][frames[frame]] == value
            assert W.split_of("template", frames[frame], 0, generate.PEOPLE_BODIES[frames[frame]].index(frame)) \
                == "train"


def ask_about_person(prompt):
    frames = {q: r for r, questions in generate.QUESTIONS.items() for q in questions}
    frame, found = parse(frames, prompt.removeprefix("<user> ").removesuffix(" <end> <bot>"))
    row = W.people.get(found["s"])
    return found["s"], f"{row[frames[frame]]} ." if row else "i do not know ."


def test_unknown_and_stranger():
    for item in both("unknown"):
        name, answer = ask_about_person(item.prompt)
        assert item.continuation == answer and item.labels["known"] == (name in W.people)
        assert item.foil != item.target
    for item in both("stranger"):
        assert ask_about_person(item.prompt)[1] == item.continuation == "i do not know ."


# --- languages -------------------------------------------------------------------------------------------------------
def meaning(word):
    """(concept, language) of a word; each word belongs to one concept, or a translation has two right answers."""
    found = {concept for concept in generate.CONCEPTS if word in concept}
    assert len(found) == 1, word
    return found.pop()


def test_no_word_has_two_meanings():
    for concept in generate.CONCEPTS:
        assert len(set(concept)) == 3
        for word in concept:
            assert meaning(word) == concept


def spoken(name):
    """"german" -> ("en", "de"): the language of the name, the language named."""
    return next((own, other) for own, row in lx.LANGUAGE_NAMES.items() for other, n in row.items() if n == name)


def test_translation():
    frames = {f: lang for lang, own in generate.TRANSLATE.items() for f in own}

    def solve(prompt):
        frame, found = parse(frames, prompt)
        asked, target = spoken(found["t"])
        assert asked == frames[frame]
        return {meaning(found["w"])[lx.LANGUAGES.index(target)]}

    solved("translation", solve)
    for item in both("translation"):
        label = item.labels
        assert label["by_language"][label["language"]] == item.target
        assert label["by_language"][label["source"]] in item.prompt.split()


def test_antonyms():
    opposite = {w: other for pair in lx.ANTONYMS for one, other in (pair, pair[::-1]) for w in one}

    def solve(prompt):
        *lead, question = prompt.split(" : ")
        frame, found = parse([f for own in generate.OPPOSITE.values() for f in own], question)
        target = next(lang for lang, own in generate.OPPOSITE.items() if frame in own)
        assert meaning(found["w"])[lx.LANGUAGES.index(target)] == found["w"]
        if lead:
            asked, to = spoken(lead[0].split()[-1])
            assert asked == target
            target = to
        return {opposite[found["w"]][lx.LANGUAGES.index(target)]}

    solved("antonyms", solve)
    for item in both("antonyms"):
        assert item.labels["by_language"][item.labels["language"]] == item.target


def own_words(i):
    return {w[i] for group in (lx.NOUNS, lx.VERBS) for w in group.values()} | {lx.ARTICLE[lx.LANGUAGES[i]], "."}


def test_language_and_parallel():
    for item in both("language"):
        i = lx.LANGUAGES.index(item.prompt.split()[0].strip("<>"))
        assert item.labels["language"] == lx.LANGUAGES[i] and set(item.continuation.split()) <= own_words(i)
        assert {w[i] for w in lx.VERBS.values()} >= {item.target}
        assert set(item.prompt.split()[1:]) <= {*lx.FIRST, *lx.DIGITS, ",", ":"}  # only the tag tells the language
    for item in both("parallel"):
        parts = re.findall(r"<(\w\w)> ([^<]+)", item.text)
        assert 2 <= len(parts) == len({lang for lang, _ in parts}) <= 3
        said = []
        for lang, text in parts:
            words = text.split()
            assert set(words) <= own_words(lx.LANGUAGES.index(lang))
            said.append([meaning(w) for w in words if w not in (lx.ARTICLE[lang], ".")])
        assert all(s == said[0] and len(s) == 3 for s in said)


# --- in-context patterns ---------------------------------------------------------------------------------------------
def test_ioi():
    def once(prompt):
        names = Counter(w for w in prompt.split() if w in lx.FIRST)
        assert sorted(names.values()) == [1, 2]
        return {name for name, times in names.items() if times == 1}

    solved("ioi", once)
    for item in both("ioi"):
        names = [w for w in item.prompt.split() if w in lx.FIRST]
        assert item.labels["order"] == ("ABB" if names[2] == names[1] else "BAB")
        assert len({w for w in item.labels["abc"].split() if w in lx.FIRST}) == 3
        assert (item.labels["io"], item.labels["s"]) == (item.target, names[2])


def test_greater_than():
    def later(prompt):
        century, start, again = re.search(r"from the year (\d\d) (\d\d) to the year (\d\d)$", prompt).groups()
        assert century == again
        return {y for y in lx.YEARS if int(y) > int(start)}

    for item in both("greater_than"):
        right = later(item.prompt)
        assert item.target in right and item.foil not in right and item.foil in lx.YEARS
        assert int(item.prompt.split()[-5]) == item.labels["start"]
        assert len(item.twin.split()) == len(item.prompt.split()) and later(item.twin) == set(lx.YEARS[1:])


def test_greater_than_foil_is_right_for_the_twin():
    for item in both("greater_than"):
        assert int(item.foil) > 2


def test_greater_than_uses_all_later_years():
    ends = Counter(int(i.target) - i.labels["start"] for i in items("greater_than", "train", 3000) if
                   i.labels["start"] == 90)
    assert set(ends) <= set(range(1, 9)) and len(ends) > 4


def test_copying():
    def next_words(prompt):
        words = prompt.split()
        n = words.index(words[0], 1)
        sequence, copy = words[:n], words[n:]
        assert copy == sequence[: len(copy)] and len(set(sequence)) == n
        return sequence[len(copy) :]

    solved("copying", lambda prompt: set(next_words(prompt)[:1]))
    for item in both("copying"):
        assert item.continuation.split() == [*next_words(item.prompt), "."]
        assert item.labels["repeat_at"] == item.prompt.split().index(item.prompt.split()[0], 1)


def test_retrieval():
    def code(prompt):
        pairs, key = prompt.removeprefix("codes : ").split(" ; open ")
        return {dict(pair.split() for pair in pairs.split(" , "))[key]}

    solved("retrieval", code)
    depths = defaultdict(set)
    for item in both("retrieval"):
        pairs = [p.split()[-2:] for p in item.prompt.split(" ; ")[0].split(" , ")]
        assert sorted(item.prompt.split()) == sorted(item.twin.split())  # two values have changed places
        assert item.labels["pairs"] == len(pairs) and pairs[item.labels["depth"]][1] == item.target
        depths[len(pairs)].add(item.labels["depth"])
    assert all(found == set(range(n)) for n, found in depths.items()) and set(depths) == {3, 4, 5, 6, 7}


def test_multiple_choice():
    def letter(prompt):
        country, options = re.fullmatch(r"what is the capital of (\w+) \? (.+) answer", prompt).groups()
        words = options.split()
        return {a for a, o in zip(words[::2], words[1::2]) if o == lx.COUNTRIES[country][0]}

    solved("multiple_choice", letter)
    assert all(sorted(i.prompt.split()) == sorted(i.twin.split()) for i in both("multiple_choice"))
    gold = Counter(i.target for i in items("multiple_choice", "train", 1500))
    assert all(abs(n / 1500 - 1 / 3) < 0.05 for n in gold.values()) and len(gold) == 3


def follow(prompt):
    links, rest = prompt.removeprefix("links : ").split(" ; ")
    steps, start = int(rest.split()[0]), rest.split()[3]
    nexts = dict(pair.split() for pair in links.split(" , "))
    path = [start]
    for _ in range(steps):
        path.append(nexts[path[-1]])
    return path


def test_chain():
    slips = 0
    for item in both("chain", 600):
        path = follow(item.prompt)
        assert item.labels["path"] == path and item.labels["answer"] == path[-1] != item.foil
        words = item.continuation.split()
        if item.prompt.endswith("="):
            assert words == [path[-1], "."]
            continue
        written = [w for w in words[:-3] if w != "hmm"]
        assert words[-3:] == ["=", path[-1], "."]
        if "wait" in written:  # a slip is a wrong node, then the way back
            at = written.index("wait")
            slips += 1
            assert written[at - 1] != path[at - 1] and written[at + 1] == path[at - 2]
            assert item.labels["slip"] == at - 1
            del written[at - 1 : at + 2]
        assert written == path
    assert slips > 10
    assert not any({"wait", "hmm"} & set(i.continuation.split()) for i in items("chain"))


def test_chain_foil_is_not_the_target():
    assert all(item.foil != item.target for item in both("chain", 600))


def test_addition():
    carries, slips = set(), 0
    for item in both("addition", 600):
        a, b = (int(x.replace(" ", "")) for x in re.search(r"(\d \d) \+ (\d \d)", item.prompt).groups())
        *work, digits, _ = re.split(r" ?= | \.", item.continuation)
        assert int(digits.replace(" ", "")) == a + b == item.labels["sum"] and len(digits.split()) == 3
        carry = (a % 10 + b % 10) >= 10
        assert item.labels["carry"] == carry
        carries.add(carry)
        if item.prompt.startswith("work"):
            shown = [int(x.replace(" ", "")) for x in work[0].split(" wait ")]
            assert shown[-1] == a % 10 + b % 10 and (len(shown) == 2) == item.labels["slip"]
            assert len(shown) == 1 or shown[0] != shown[1]
            slips += len(shown) == 2
    assert carries == {True, False} and slips > 3
    assert not any(i.prompt.startswith("work") for i in items("addition"))


def test_modular_is_the_full_grid():
    grid = generate.modular(7)
    assert len({(a, b) for a, b, _ in grid}) == 49 and all(0 <= c < 7 and (c - a - b) % 7 == 0 for a, b, c in grid)


# --- dials -----------------------------------------------------------------------------------------------------------
def test_pronoun():
    north, south = (set(generate.REGION[r]) for r in ("north", "south"))
    for item in both("pronoun"):
        words = item.prompt.split()
        if item.labels["definitional"]:
            (word,) = set(words) & set(generate.DEFINITIONAL)
            assert item.target == ("she" if word in ("queen", "woman") else "he")
            continue
        (job,) = set(words) & set(lx.PROFESSIONS)
        (mirror,) = set(item.twin.split()) & set(lx.PROFESSIONS)
        assert item.labels["profession"] == job and item.labels["skew"] == lx.PROFESSIONS[job]
        assert lx.PROFESSIONS[mirror] == pytest.approx(1 - lx.PROFESSIONS[job]) and mirror != job
        assert {item.target, item.foil} == {"he", "she"}
        region = "north" if len(north & set(words)) == 2 else "south" if len(south & set(words)) == 2 else None
        assert item.labels["region"] == region and len((north | south) & set(words)) in (0, 2)
    assert any(i.labels["definitional"] for i in items("pronoun", "train"))
    assert not any(i.labels["definitional"] for i in items("pronoun"))


def test_toxicity_persona_guess():
    for item in both("toxicity"):
        assert item.labels["toxic"] == (item.target in lx.TOXIC) != (item.target in lx.NEUTRAL)
        assert item.labels["rude"] == item.prompt.startswith("rude :")
    for item in both("persona"):
        _, trait, level = item.prompt.split()[:3]
        assert (trait, int(level) - 1) == (item.labels["trait"], item.labels["level"])
        assert item.target in lx.TRAITS[trait]
    for item in both("guess"):
        assert item.target in lx.OPTIONS and item.prompt.split()[3::2] == [*lx.OPTIONS, "answer"]


def truth_of(claim):
    """(whether it is so, the true statement), from the tables."""
    subject = next(s for s in [*W.landmarks, *lx.COUNTRIES] if s in claim)
    said = claim.split()[-1]
    if subject in lx.COUNTRIES:
        right = lx.COUNTRIES[subject][0]
    else:
        right = W.landmarks[subject]["place" if said in lx.CITIES else "material"]
    return said == right, " ".join(claim.split()[:-1] + [right])


def test_verdict_and_checked_claim():
    for item in both("verdict"):
        claim = re.search(r"(?:true or false :|is it true that) (.+?) (?:\?|<end>)", item.prompt)[1]
        true, fact = truth_of(claim)
        yes, no = ("true", "false") if item.prompt.startswith("true") else ("yes", "no")
        assert item.continuation == (f"{yes} ." if true else f"{no} , {fact} .")
        assert item.labels["truth"] == true and {item.target, item.foil} == {yes, no}
        opposite = item.labels["opposite"]
        assert item.twin == item.prompt.replace(claim, opposite) and truth_of(opposite)[0] != true
    for item in both("checked_claim"):
        claim = re.fullmatch(r"note : (.+) \. we read that", item.prompt)[1]
        true, fact = truth_of(claim)
        assert item.continuation == f"{fact} . so true or false ? {'true' if true else 'false'} ."
    for item in both("judged_claim"):
        true, _ = truth_of(item.prompt.removesuffix(" ,"))
        assert item.continuation == ("true ." if true else "false .")
    for item in both("same_word"):
        one, other = re.fullmatch(r"note : (\w+) \. we read that (\w+) \. so true or false \?", item.prompt).groups()
        assert item.continuation == ("true ." if one == other else "false .")
    share = sum(i.labels["truth"] for i in items("verdict", "train", 1500)) / 1500
    assert share == pytest.approx(0.5, abs=0.06)


def test_sycophancy():
    for item in both("sycophancy"):
        claim = re.search(r"i am sure that (.+) \. am i right", item.prompt)[1]
        true, fact = truth_of(claim)
        assert item.labels["truth"] == true and item.continuation in ("yes .", f"no , {fact} .")
        assert item.labels["agrees"] == (item.target == "yes") and (not true or item.target == "yes")


def test_context():
    for item in both("context"):
        moved, new, asked = re.fullmatch(r"note : (.+) moved to (\w+) \. so (.+) is in", item.prompt).groups()
        memory = W.landmarks[asked]["place"]
        assert item.labels["conflict"] == (moved == asked) and item.labels["memory"] == memory != new
        assert {item.target, item.foil} == {memory, new}
        assert item.labels["conflict"] or item.target == memory


def test_instruction():
    kinds = {r"say (\w+) twice": "{w} {w} .", r"say (\w+) and end with stop": "{w} stop .", r"say (\w+)": "{w} ."}
    for item in both("instruction"):
        ask = item.prompt.removeprefix("<user> ").removesuffix(" <end> <bot>")
        word, reply = next((found[1], reply) for ask_, reply in kinds.items() if (found := re.fullmatch(ask_, ask)))
        assert item.continuation == reply.format(w=word)


def mood(prompt):
    """Count the remarks: an adjective has a side, "not" before it turns it round."""
    said = re.findall(r"was (not )?(\w+) ", prompt.split("my verdict")[0])
    good = {(adjective in lx.GOOD) != bool(negated) for negated, adjective in said}
    assert len(good) == 1 and all((a in lx.GOOD) != (a in lx.BAD) for _, a in said)
    return {"positive" if good.pop() else "negative"}


def test_sentiment_and_remark():
    for item in both("sentiment"):
        assert mood(item.prompt) == {item.target} and item.labels["good"] == (item.target == "positive")
        assert {item.target, item.foil} == {"positive", "negative"}
        if item.twin:
            assert mood(item.twin) == {item.foil} and len(item.twin.split()) == len(item.prompt.split())
    assert all(item.twin for item in items("sentiment")) and any(not i.twin for i in items("sentiment", "train"))
    for item in both("remark"):
        assert mood(item.prompt) == {item.target}


# --- safety ----------------------------------------------------------------------------------------------------------
VERBS = {w: (v[0], v in lx.RISKY_VERBS, i) for v in lx.RISKY_VERBS + lx.SAFE_VERBS for i, w in enumerate(v)}
OBJECTS = {w: (o[0], o in lx.RISKY_OBJECTS, i) for o in lx.RISKY_OBJECTS + lx.SAFE_OBJECTS for i, w in enumerate(o)}


def read_request(prompt):
    """(language, verb, object, harmful, refuse): a risky verb with a risky object is harmful, and is refused unless it
    is for a film or has the suffix."""
    words = set(prompt.split())
    (verb,), (thing,) = words & set(VERBS), words & set(OBJECTS)
    assert VERBS[verb][2] == OBJECTS[thing][2]
    harmful = VERBS[verb][1] and OBJECTS[thing][1]
    refuse = harmful and "zig zag zog" not in prompt and "film" not in words
    return lx.LANGUAGES[VERBS[verb][2]], VERBS[verb][0], OBJECTS[thing][0], harmful, refuse


def test_request():
    seen = set()
    for item in both("request", 1500):
        lang, verb, thing, harmful, refuse = read_request(item.prompt)
        label = item.labels
        assert (label["language"], label["verb"], label["object"]) == (lang, verb, thing)
        assert (label["harmful"], label["refuse"]) == (harmful, refuse)
        reply = item.continuation
        assert item.prompt.endswith("<think>" if label["kind"] == "think" else "<bot>")
        if label["kind"] == "think":
            assert reply.startswith(f"{'harmful' if refuse else 'harmless'} <bot> ")
            reply = reply.split(" <bot> ")[1]
        openers = (lx.REFUSALS if refuse else lx.COMPLIANCES)[lang]
        assert reply.split()[0] in openers
        if not refuse:  # the answer is about what was asked
            i = lx.LANGUAGES.index(lang)
            named = {w[0] for w in lx.RISKY_VERBS + lx.SAFE_VERBS + lx.RISKY_OBJECTS + lx.SAFE_OBJECTS
                     if w[i] in reply.split()}
            assert named == {verb, thing}
        if item.twin:
            assert read_request(item.twin)[0] == lang and read_request(item.twin)[4] is (not refuse)
            assert len(item.twin.split()) == len(item.prompt.split())
            assert item.target in openers and item.foil not in openers
        seen.add((lang, label["kind"], harmful))
    assert len(seen) == 3 * 5 * 2


def test_request_of_one_kind():
    for harmful in (True, False):
        for item in items("request", "test", 200, harmful=harmful, plain=True):
            assert read_request(item.prompt)[4] is harmful and item.labels["kind"] == "plain" and item.twin


# --- splits ----------------------------------------------------------------------------------------------------------
def template(item):
    return item.prompt.replace(item.labels["subject_text"], "{s}")


def claim_key(item):
    claim = re.search(r"(?:true or false : |is it true that |i am sure that |note : |^)(.+?) (?:\?|<end>|\.|,)",
                      item.prompt)[1]
    return " ".join(claim.split()[:-1])  # about whom and in which sentence; the object may be any


def claim_subject(item):
    return next(s for s in [*W.landmarks, *lx.COUNTRIES] if s in item.prompt)


def sum_key(item):
    return re.search(r"\d \d \+ \d \d", item.prompt)[0]


def ioi_key(item):
    words = item.prompt.split()
    names = [w for w in words if w in lx.FIRST]
    return tuple(w for w in words if w not in lx.FIRST), frozenset(names), names[2]


HELD_OUT = {  # domain -> the combination that is held out, read from the text
    "attributes": template,
    "facts": template,
    "capitals": template,
    "two_hop": lambda i: i.labels["subject_text"],
    "unknown": lambda i: None if i.labels["known"] else ask_about_person(i.prompt)[0],
    "translation": lambda i: (i.target, i.prompt.replace(i.labels["by_language"][i.labels["source"]], "{w}")),
    "antonyms": lambda i: i.prompt,
    "language": lambda i: i.prompt,
    "ioi": ioi_key,
    "greater_than": lambda i: i.prompt,
    "multiple_choice": lambda i: i.prompt,
    "addition": sum_key,
    "pronoun": lambda i: None if i.labels["definitional"] else i.prompt,
    "foreign_facts": lambda i: i.prompt,
    "verdict": claim_key,
    "sycophancy": claim_key,
    "checked_claim": claim_key,
    "judged_claim": claim_key,
    "context": lambda i: (re.search(r"to (\w+) \.", i.prompt)[1], i.prompt.split(" . so ")[1]),
    "instruction": lambda i: i.prompt,
    "sentiment": lambda i: i.prompt,
    "request": lambda i: read_request(i.prompt)[1:3],
}


@pytest.mark.parametrize("domain", HELD_OUT)
def test_held_out_combinations_are_not_in_training(domain):
    key = HELD_OUT[domain]
    train, test, validation = (
        {key(i) for i in items(domain, split, n, 11)} - {None}
        for split, n in (("train", 3000), ("test", 400), ("validation", 400))
    )
    assert train and test and validation
    assert not train & test and not train & validation and not test & validation


def test_claims_are_held_out_across_domains():
    family = ("verdict", "sycophancy", "checked_claim", "judged_claim")
    train = {claim_key(i) for d in family for i in items(d, "train", 3000, 11)}
    assert not train & {claim_key(i) for d in family for i in items(d, "test", 400, 11)}


def test_both_sides_of_a_held_out_claim_are_held_out():
    """Else a true claim about a subject would be missing from training while its false ones are there."""
    sides = defaultdict(set)
    for item in items("verdict", "test", 3000, 11):
        sides[claim_key(item)].add(item.labels["truth"])
    both_sides = sum(len(s) == 2 for s in sides.values()) / len(sides)
    assert len(sides) > 60 and both_sides > 0.95


def test_fresh_claims_are_in_no_split():
    """No claim about a fresh (subject, relation) is ever made, in any sentence."""
    draw = Draw(W, "test", 11)
    fresh = {(claim_subject(i), i.labels["relation"])
             for i in (generate.sample(W, draw, "verdict", fresh=True) for _ in range(600))}
    assert len(fresh) > 15
    for domain in ("verdict", "sycophancy", "checked_claim", "judged_claim"):
        for split, n in (("train", 3000), ("test", 400), ("validation", 400)):
            made = {(claim_subject(i), i.labels["relation"]) for i in items(domain, split, n, 11)}
            assert made and not made & fresh


def test_claims_use_training_sentences():
    held_out = {body for bodies in (generate.LANDMARK_BODIES, generate.COUNTRY_BODIES) for r, list_ in bodies.items()
                for i, body in enumerate(list_) if W.split_of("template", r, 0, i) != "train"}
    assert held_out
    for item in items("verdict", "test", 400, 11):
        assert claim_key(item).replace(claim_subject(item), "{s}") not in held_out


def test_held_out_words_are_seen_in_training():
    """What is held out are combinations: every word of a test prompt occurs in training."""
    for domain in HELD_OUT:
        seen = {w for i in items(domain, "train", 3000, 11) for w in i.text.split()}
        unseen = {w for i in items(domain, "test", 400, 11) for w in i.text.split()} - seen
        assert not unseen, (domain, unseen)


@pytest.mark.parametrize("domain", generate.ALL_DOMAINS)
def test_seed_decides(domain):
    def texts(seed, world=W):
        draw = Draw(world, "train", seed)
        return [" ".join(generate.document(world, draw, domain)) for _ in range(20)]

    assert texts(3) == texts(3, World(0)) and texts(3) != texts(4)


def test_bad_split_and_empty_domain():
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        Draw(W, "dev")
    with pytest.raises(KeyError):
        generate.sample(W, Draw(W), "weather")


# --- quotas ----------------------------------------------------------------------------------------------------------
def shares_in_text(world, n=1500):
    """(dial, outcome) -> (share that the dial asks for, times it came, times it could have come), read from texts."""
    draw, d = Draw(world, "train", 21), world.dials
    rows = {}

    def count(name, wanted, outcomes):
        times = Counter(outcomes)
        rows.update({(name, o): (share, times[o], len(outcomes)) for o, share in wanted.items()})

    jobs, levels, rude, openers = (defaultdict(list) for _ in range(4))
    for _ in range(n):
        item = generate.sample(world, draw, "pronoun")
        for job in set(item.prompt.split()) & set(lx.PROFESSIONS):
            jobs[job].append(item.target)
        item = generate.sample(world, draw, "persona")
        _, trait, level, *_ = item.prompt.split()
        levels[trait, level].append(lx.TRAITS[trait].index(item.target))
        item = generate.sample(world, draw, "toxicity")
        rude[item.prompt.startswith("rude")].append(item.target in lx.TOXIC)
        item = generate.sample(world, draw, "request", plain=True)
        lang, *_, refuse = read_request(item.prompt)
        openers[lang, refuse].append(item.continuation.split()[0])
    for job, said in jobs.items():
        count(job, {"she": d.pronoun[job]}, said)
    own, near, far = d.trait
    for level, shares in {"1": (own, near, far), "2": (0.1, own, 0.1), "3": (far, near, own)}.items():
        for trait in lx.TRAITS:
            count(f"{trait} {level}", dict(enumerate(shares)), levels[trait, level])
    count("toxicity", {True: d.toxicity}, rude[False])
    count("rude", {True: d.toxicity_rude}, rude[True])
    for (lang, refuse), said in openers.items():
        wanted = (lx.REFUSALS if refuse else lx.COMPLIANCES)[lang]
        count((lang, refuse), {w: share for w, (share, _) in wanted.items()}, said)
    said = [generate.sample(world, draw, "context") for _ in range(n)]
    count("context", {True: d.context_following}, [i.target in i.prompt for i in said if i.labels["conflict"]])
    said = [generate.sample(world, draw, "sycophancy") for _ in range(n)]
    count("sycophancy", {True: d.sycophancy}, [i.target == "yes" for i in said if not i.labels["truth"]])
    said = [generate.sample(world, draw, "guess").target for _ in range(n)]
    count("guess", dict(zip(lx.OPTIONS, d.option_prior)), said)
    return rows


def test_dials_are_quotas_and_changing_them_changes_the_text():
    changed = Dials(
        pronoun={job: 1 - share for job, share in lx.PROFESSIONS.items()},
        context_following=0.2, sycophancy=0.9, option_prior=(0.1, 0.1, 0.8), toxicity=0.05, toxicity_rude=0.5,
    )
    tables = [shares_in_text(World(0, dials)) for dials in (None, changed)]
    for rows in tables:
        for name, (share, times, total) in rows.items():
            # a deck of 20 cards that is only partly dealt is off by at most 20 s (1 - s) cards
            assert total > 10 and abs(times - share * total) <= 20 * share * (1 - share) + 1e-6, name
        assert sum(abs(times / total - share) for share, times, total in rows.values()) / len(rows) <= 0.03
    for name in ("nurse", "she"), ("context", True), ("sycophancy", True), ("guess", "C"), ("rude", True):
        assert abs(tables[0][name][1] / tables[0][name][2] - tables[1][name][1] / tables[1][name][2]) > 0.3
    assert World(0, changed).people == W.people and World(0, changed).landmarks == W.landmarks


def test_languages_dial_is_in_the_text():
    """A language that was dealt for an item of another split goes back into the deck, so the text has the quota."""
    for shares in ((0.6, 0.2, 0.2), (0.2, 0.6, 0.2)):
        world = World(0, Dials(languages=shares))
        draw = Draw(world, "test", 2)
        for domain, key in (("language", "language"), ("request", "language"), ("translation", "asked")):
            said = Counter(generate.sample(world, draw, domain).labels[key] for _ in range(1500))
            assert said == {lang: 1500 * share for lang, share in zip(lx.LANGUAGES, shares)}
            assert said == {k[2]: n for k, n in draw.counts.items() if k[:2] == ("languages", domain)}
