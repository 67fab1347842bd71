r"""Where the answer of a response stands: in the last \boxed{…}, behind "the answer is" or ####, or at the end."""

from __future__ import annotations

import re
from collections.abc import Iterator

from anypolicy.tasks.language.expressions import NAMES, PRODUCTS

TAIL, WHOLE = 20_000, 300  # characters of a response that are looked at; of one that may be an answer as a whole

UNIT_NAMES = """
mm millimeter millimeters millimetre millimetres; cm centimeter centimeters centimetre centimetres
km kilometer kilometers kilometre kilometres; m meter meters metre metres; ft foot feet; in inch inches
yd yard yards; mi mile miles; mg milligram milligrams; g gram grams; kg kilogram kilograms; oz ounce ounces
lb lbs pound pounds; ml mL milliliter milliliters millilitre millilitres; L liter liters litre litres
ms millisecond milliseconds; s sec second seconds; min mins minute minutes; h hr hrs hour hours; day days
week weeks; month months; year years; $ dollar dollars usd; euro euros eur; cent cents; degree degrees deg
rad radian radians; J joule joules; N newton newtons; W watt watts; V volt volts; Hz hertz; mph; % percent pct
2 square sq squared; 3 cubic cu; / per
"""
UNITS = {name: names.split()[0] for names in re.split("[;\n]", UNIT_NAMES.strip()) for name in names.split()}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
LONG = "|".join(sorted((u for u in UNITS if len(u) > 1), key=len, reverse=True))
WORDS = (
    rf"(?:(?:{LONG})(?![A-Za-z])|(?<=[\s/])[mgshLJNWV](?![A-Za-z])|"
    rf"(?<=\s)(?!(?:{'|'.join(sorted(NAMES))}|and|or)(?![A-Za-z]))[A-Za-z]{{3,}})"
)
BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
MARK = re.compile(r"\banswers?\b[^\n.:=]{0,40}?(?:\b(?:is|are|be)\b(?:\s*:)?|:|=)[*_\s]*|####\s*", re.IGNORECASE)
TAG = re.compile(r"</?[A-Za-z]{3,20}>|</?s>|<\|[^<>|\s]{1,30}\|>")
MATHS = re.compile(
    r"\$\$(.{1,1000}?)\$\$|\$(?=\S)([^$\n]{0,1000}?[^$\s])\$(?!\d)|\\\((.{1,1000}?)\\\)|\\\[(.{1,1000}?)\\\]", re.DOTALL
)
OTHER = re.compile(  # words behind a number that are no unit: with them it is another number
    r"thirds?|fourths?|(?:fif|six|seven|eigh|nin|ten|hundred|thousand)ths?|squared|cubed|factorial", re.IGNORECASE
)
ALTERING = re.compile(  # words beside a number that make another number of it
    rf"{OTHER.pattern}|half|halves|quarters?|dozens?|hundred|over|times|plus|minus|divided|multiplied|negative|root|"
    r"power|modulo|mod", re.IGNORECASE
)  # fmt: skip
DENYING = ("not", "isn't", "isn’t")
LETTERS = re.compile(r"\\?[A-Za-z]+")
ALLOWED = re.compile(r"[\w\s.,;:+\-*/^!|()\[\]{}<>=%$\\&°πσ√∞≤≥∪∈±−×÷·²³½¼¾€£∅]+")
OPERATOR = re.compile(r"[-+*/^<>=≤≥×÷·−±∪∈:]|<=|>=|\\(?:pm|cdot|times|div|le|ge|leq|geq|cup|in|lt|gt)")
LINKS = ("and", "or")


def answers(response: str) -> Iterator[str]:
    """Texts that may be the answer, the likeliest first; the first that can be read is."""
    text = TAG.sub(lambda m: " answer: " if m[0].lower() == "<answer>" else " ", response[-TAIL:])
    boxed = last_boxed(text)
    if boxed is not None:
        yield boxed
        return
    marks = list(MARK.finditer(text))
    if marks:
        after = text[marks[-1].end() :]
        line = (after.strip().splitlines() or [""])[0]
        if len(line) <= WHOLE:
            yield line.strip("*_ ").removesuffix("!")
        found = runs(after)
        if found:
            yield found[0]
            return
    if len(text.strip()) <= WHOLE:
        yield text.strip().strip("*_ ")
    found = runs(text)
    if found:
        yield found[-1]


def marked(text: str) -> str | None:
    r"""The answer of a solution, in \boxed{…} or behind ####; None where neither stands there."""
    boxed = last_boxed(text)
    if boxed is None and "####" in text:
        return text.rpartition("####")[2].strip()
    return boxed


def last_boxed(text: str) -> str | None:
    r"""What stands in the last \boxed{…}; nothing where it is not closed; None where there is none."""
    starts = list(BOXED.finditer(text))
    if not starts:
        return None
    start, depth = starts[-1].end(), 1
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if not depth:
            return text[start:i]
    return ""


def runs(text: str) -> list[str]:
    """The stretches of mathematics among the words, each as a whole; "" for one that a word beside it changes."""
    found: list[str] = []
    run: list[str] = []
    words = pieces(text)
    first = 0
    for n, word in enumerate([*words, ""]):
        bare, ends = edges(word)
        inside = bool(bare) and belongs(
            bare, words[n - 1] if n else "", words[n + 1] if n + 1 < len(words) else "", run
        )
        if inside:
            first = first if run else n
            run.append(bare)
        if run and (ends or not inside):
            after = [] if inside else words[n : n + 2]
            found.extend(closed(run, words[max(first - 2, 0) : first][::-1], after))
            run = []
    return found


def closed(run: list[str], before: list[str], after: list[str]) -> list[str]:
    """A run that has ended, if it is a value at all; `before` and `after` are the words next to it, nearest first."""
    while run and run[-1] in LINKS:
        run = run[:-1]
    while run and (run[0] in LINKS or run[0] in ("=", ":")):
        run = run[1:]
    text = " ".join(run).rstrip(",;:")
    if not run or not (re.search(r"[\d½¼¾]|\\[A-Za-z]|[π∞∅√]", text) or len(LETTERS.findall(text)) > 1):
        return []
    broken = OPERATOR.fullmatch(run[0]) or OPERATOR.fullmatch(run[-1])
    denied = bool(before) and edges(before[0])[0].lower() in DENYING
    return [""] if broken or denied or altered(before) or altered(after) else [text]


def altered(words: list[str]) -> bool:
    """Whether the nearest word, articles aside, makes another number of the one beside it."""
    near = [edges(w)[0].lower() for w in words]
    near = near[1:] if near and near[0] in ("a", "an", "one", "the", "of", "by") else near[:1]
    return any(ALTERING.fullmatch(w) for w in near)


def belongs(word: str, before: str, after: str, run: list[str]) -> bool:
    """Whether a word is part of a stretch of mathematics."""
    number = bool(run) and run[-1][-1:].isdigit()
    if number and (word.lower() in SCALES or re.fullmatch(r"[ap]\.?m\.?", word, re.IGNORECASE)):
        return True
    if (
        run
        and (number or run[-1].lower() in UNITS or run[-1] == "per")
        and all(w in UNITS or w.lower() in UNITS for w in word.split("/"))
    ):
        return word != "in" or after == ""
    if word in LINKS:
        return bool(run)
    if not ALLOWED.fullmatch(word) or not re.search(r"[^.,;:]", word) or re.search(r"\.(?!\d)", word):
        return False
    if OPERATOR.fullmatch(word):
        return True
    if word.isalpha() and word.isascii():
        beside = OPERATOR.fullmatch(edges(before)[0]) or OPERATOR.fullmatch(edges(after)[0])
        return word in NAMES or (len(word) == 1 and (bool(beside) or (number and word not in "aAI")))
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf|textrm|operatorname|begin|end)\s*\{[^{}]*\}", "", word)
    return all(
        name[0] == "\\" or len(name) == 1 or name in NAMES or name in UNITS or name in LINKS or PRODUCTS.fullmatch(name)
        for name in LETTERS.findall(text)
    )


def edges(word: str) -> tuple[str, bool]:
    """A word without marks around it, and whether a sentence ends with it."""
    word = word.strip("*_`\"'")
    bare = word.rstrip("." if word.endswith("!.") else ".!?,;:*_`\"'")
    ends = bool(re.search(r"[.?!:]", word[len(bare) :]))
    return (bare + "," if bare and word[len(bare) :][:1] == "," else bare), ends


def pieces(text: str) -> list[str]:
    """Words at white space outside brackets and mathematics; each $…$ is one, without its delimiters."""
    text = re.sub(r"(?m)^\s*[-+*•]\s+", " ", text)
    held: list[str] = []

    def hold(match: re.Match[str]) -> str:
        held.append(next(g for g in match.groups() if g is not None))
        return f"\ue000{len(held) - 1}\ue001"

    text = MATHS.sub(hold, text.replace("\ue000", "").replace("\ue001", ""))
    inside = [False] * (len(text) + 1)
    stack: list[int] = []
    for i, c in enumerate(text):
        if c in "([{":
            stack.append(i)
        elif c in ")]}" and stack:
            start = stack.pop()
            if not stack and i - start <= WHOLE:
                inside[start:i] = [True] * (i - start)
        elif c == "\n":
            stack.clear()
    split = "".join("\ue002" if c.isspace() and not inside[i] else c for i, c in enumerate(text))
    found = [w for w in re.split("\ue002+", split) if w]
    return [re.sub("\ue000(\\d+)\ue001", lambda m: held[int(m[1])], w) for w in found]
