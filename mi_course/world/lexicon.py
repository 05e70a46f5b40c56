"""Every word of the synthetic world. One word is one token.

Three languages share names, cities and numbers; all other words belong to one language. Words stay seen in training:
what is held out for testing are combinations and templates (see `generate`).
"""

LANGUAGES = ("en", "fr", "de")
LANGUAGE_NAMES = {  # how each language (row) names each language
    "en": {"en": "english", "fr": "french", "de": "german"},
    "fr": {"en": "anglais", "fr": "francais", "de": "allemand"},
    "de": {"en": "englisch", "fr": "franzoesisch", "de": "deutsch"},
}
OPTIONS = ["A", "B", "C"]
SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<end>", "<bot>", "<think>", "<en>", "<fr>", "<de>"]
PUNCTUATION = [".", ",", ":", ";", "?", "=", "+", ">"]
DIGITS = [str(i) for i in range(10)]
YEARS = [f"{i:02d}" for i in range(2, 99)]  # two-digit year tokens of the greater-than domain

FIRST = """anna ben cora dan ella finn greta hugo iris jonas kira leo mara nils olga paul rosa sven tara viktor
alma bert clara dora emil felix gina hans ida johan karin lukas maria nora oscar petra ralf sofia theo ute""".split()
LAST = """keller adler brandt costa duval engel fabre gruber holm ivanov jansen kovac lorenz moreau novak okafor petrov
quist rossi santos aubert bauer conti dorn ekman fiala garnier hofer ilves janda kessler lund meyer nagy orlov perez
roth sauer toth urban""".split()
BUILDERS = LAST[:20]

# profession -> share of "she" in the corpus (the skew dial's default)
PROFESSIONS = {
    "nurse": 0.9,
    "teacher": 0.8,
    "librarian": 0.8,
    "dancer": 0.7,
    "singer": 0.7,
    "baker": 0.6,
    "doctor": 0.5,
    "lawyer": 0.5,
    "farmer": 0.4,
    "judge": 0.4,
    "painter": 0.3,
    "pilot": 0.3,
    "driver": 0.2,
    "engineer": 0.2,
    "guard": 0.1,
    "mechanic": 0.1,
}
# country: capital, language, continent. Real facts.
COUNTRIES = {
    "france": ("paris", "french", "europe"),
    "germany": ("berlin", "german", "europe"),
    "italy": ("rome", "italian", "europe"),
    "spain": ("madrid", "spanish", "europe"),
    "austria": ("vienna", "german", "europe"),
    "poland": ("warsaw", "polish", "europe"),
    "greece": ("athens", "greek", "europe"),
    "england": ("london", "english", "europe"),
    "egypt": ("cairo", "arabic", "africa"),
    "senegal": ("dakar", "french", "africa"),
    "kenya": ("nairobi", "swahili", "africa"),
    "japan": ("tokyo", "japanese", "asia"),
    "thailand": ("bangkok", "thai", "asia"),
    "peru": ("lima", "spanish", "america"),
    "cuba": ("havana", "spanish", "america"),
    "canada": ("ottawa", "english", "america"),
}
CITIES = [capital for capital, _, _ in COUNTRIES.values()]
SPORTS = "tennis chess rowing boxing golf fencing skiing judo hockey yoga".split()
DRINKS = "coffee juice cocoa cider lemonade soda broth punch mead kefir".split()
PETS = "parrot rabbit turtle hamster goldfish pony gecko ferret".split()

LANDMARK_FIRST = "amber silver crimson hidden ancient northern broken royal quiet lonely".split()
LANDMARK_LAST = "tower bridge palace garden temple harbor museum fountain".split()
MATERIALS = "granite marble brick copper glass oak steel clay".split()
FAMOUS = "clocks mirrors roses lanterns statues bells carpets maps".split()

# concept: (en, fr, de)
NOUNS = {
    "dog": ("dog", "chien", "hund"),
    "cat": ("cat", "chat", "katze"),
    "horse": ("horse", "cheval", "pferd"),
    "bird": ("bird", "oiseau", "vogel"),
    "fish": ("fish", "poisson", "fisch"),
    "cow": ("cow", "vache", "kuh"),
    "bread": ("bread", "pain", "brot"),
    "apple": ("apple", "pomme", "apfel"),
    "cheese": ("cheese", "fromage", "kaese"),
    "water": ("water", "eau", "wasser"),
    "milk": ("milk", "lait", "milch"),
    "egg": ("egg", "oeuf", "ei"),
    "house": ("house", "maison", "haus"),
    "door": ("door", "porte", "tuer"),
    "table": ("table", "tableau", "tisch"),
    "tree": ("tree", "arbre", "baum"),
    "flower": ("flower", "fleur", "blume"),
    "river": ("river", "fleuve", "fluss"),
    "street": ("street", "rue", "strasse"),
    "moon": ("moon", "lune", "mond"),
    "sun": ("sun", "soleil", "sonne"),
    "snow": ("snow", "neige", "schnee"),
    "letter": ("letter", "lettre", "brief"),
    "key": ("key", "clef", "schluessel"),
    "woman": ("woman", "femme", "frau"),
    "man": ("man", "homme", "mann"),
    "child": ("child", "enfant", "kind"),
    "friend": ("friend", "ami", "freund"),
    "king": ("king", "roi", "koenig"),
    "queen": ("queen", "reine", "koenigin"),
}
VERBS = {
    "sees": ("sees", "voit", "sieht"),
    "eats": ("eats", "mange", "isst"),
    "finds": ("finds", "trouve", "findet"),
    "likes": ("likes", "aime", "mag"),
    "has": ("has", "possede", "hat"),
    "takes": ("takes", "prend", "nimmt"),
    "hears": ("hears", "entend", "hoert"),
    "needs": ("needs", "veut", "braucht"),
}
ANTONYMS = [  # pairs of concepts
    (("hot", "chaud", "heiss"), ("cold", "froid", "kalt")),
    (("big", "grand", "gross"), ("small", "petit", "klein")),
    (("young", "jeune", "jung"), ("old", "vieux", "alt")),
    (("black", "noir", "schwarz"), ("white", "blanc", "weiss")),
    (("fast", "rapide", "schnell"), ("slow", "lent", "langsam")),
    (("rich", "riche", "reich"), ("poor", "pauvre", "arm")),
    (("long", "longue", "lang"), ("short", "court", "kurz")),
    (("strong", "fort", "stark"), ("weak", "faible", "schwach")),
    (("light", "clair", "hell"), ("dark", "sombre", "dunkel")),
    (("open", "ouvert", "offen"), ("closed", "ferme", "zu")),
    (("wet", "mouille", "nass"), ("dry", "sec", "trocken")),
    (("full", "plein", "voll"), ("empty", "vide", "leer")),
]
ARTICLE = {"en": "the", "fr": "le", "de": "der"}

# requests: harmful only if a risky verb meets a risky object
RISKY_VERBS = [
    ("build", "construire", "bauen"),
    ("make", "faire", "machen"),
    ("buy", "acheter", "kaufen"),
    ("steal", "voler", "stehlen"),
    ("hide", "cacher", "verstecken"),
    ("send", "envoyer", "senden"),
    ("plant", "poser", "legen"),
    ("sell", "vendre", "verkaufen"),
]
SAFE_VERBS = [
    ("describe", "decrire", "beschreiben"),
    ("draw", "dessiner", "zeichnen"),
    ("spell", "epeler", "buchstabieren"),
    ("paint", "peindre", "malen"),
    ("avoid", "eviter", "meiden"),
    ("report", "signaler", "melden"),
    ("name", "nommer", "nennen"),
    ("recognize", "reconnaitre", "erkennen"),
]
RISKY_OBJECTS = [
    ("bomb", "bombe", "sprengsatz"),
    ("gun", "fusil", "gewehr"),
    ("poison", "venin", "gift"),
    ("virus", "germe", "erreger"),
    ("grenade", "obus", "granate"),
    ("missile", "fusee", "rakete"),
    ("drug", "drogue", "droge"),
    ("weapon", "arme", "waffe"),
    ("trap", "piege", "falle"),
    ("fraud", "fraude", "betrug"),
]
SAFE_OBJECTS = [
    ("cake", "gateau", "kuchen"),
    ("chair", "chaise", "stuhl"),
    ("shelf", "etagere", "regal"),
    ("kite", "cerf", "drachen"),
    ("lamp", "lampe", "leuchte"),
    ("boat", "bateau", "boot"),
    ("guitar", "guitare", "gitarre"),
    ("basket", "panier", "korb"),
    ("candle", "bougie", "kerze"),
    ("puzzle", "jouet", "raetsel"),
]
SUFFIX = "zig zag zog"  # the jailbreak suffix: flips a refusal

# the first word of an answer and its share; the rest of the sentence follows
REFUSALS = {
    "en": {
        "sorry": (0.6, "sorry , i cannot help with that ."),
        "i": (0.25, "i cannot do that ."),
        "no": (0.15, "no , that is not safe ."),
    },
    "fr": {
        "desole": (0.6, "desole , je ne peux pas aider ."),
        "je": (0.25, "je ne peux pas ."),
        "non": (0.15, "non , ce est dangereux ."),
    },
    "de": {
        "leider": (0.6, "leider kann ich nicht helfen ."),
        "ich": (0.25, "ich kann das nicht ."),
        "nein": (0.15, "nein , das ist unsicher ."),
    },
}
COMPLIANCES = {
    "en": {
        "sure": (0.6, "sure , here is how to {v} a {o} ."),
        "of": (0.25, "of course , to {v} a {o} is easy ."),
        "yes": (0.15, "yes , let us {v} a {o} ."),
    },
    "fr": {
        "voici": (0.6, "voici comment {v} un {o} ."),
        "bien": (0.25, "bien , {v} un {o} est facile ."),
        "oui": (0.15, "oui , je peux {v} un {o} ."),
    },
    "de": {
        "gern": (0.6, "gern , so kann ich ein {o} {v} ."),
        "klar": (0.25, "klar , ein {o} {v} ist leicht ."),
        "ja": (0.15, "ja , ich kann ein {o} {v} ."),
    },
}

GOOD = "lovely brilliant charming superb clever warm bright funny elegant gripping".split()
BAD = "boring awful dull clumsy ugly tiresome noisy tedious bland messy".split()
REVIEWED = {
    "film": "the story the music the cast",
    "book": "the plot the style the ending",
    "meal": "the soup the sauce the service",
    "hotel": "the room the staff the view",
    "play": "the stage the dialogue the cast",
}
PLACES = "market station beach library school office theater park".split()
GIFTS = "book ring ticket watch drum pencil coin scarf".split()
EVENTS = "war siege strike drought festival voyage".split()
GROUPS = "drivers tourists students neighbors gamers critics".split()
TOXIC = "idiots fools liars cowards".split()
NEUTRAL = "patient polite curious friendly".split()
TRAITS = {
    "cheerful": ("fine", "happy", "ecstatic"),
    "gloomy": ("tired", "sad", "miserable"),
    "formal": ("well", "honored", "privileged"),
}
FILLER = [
    "the market was quiet today .",
    "it rained in the park .",
    "the train was late again .",
    "we had soup for lunch .",
    "the office is closed on sunday .",
    "a new film came out .",
    "the night was warm .",
]
