"""Words that may stand beside a number without making it another one, and those that scale it."""

from __future__ import annotations

import re

_UNITS = """
mm millimeter millimetre|cm centimeter centimetre|m meter metre|km kms kilometer kilometre
in inch inches|ft foot feet|yd yard|mi mile|mg milligram|g gm gram|kg kilo kilogram|ton tonne
lb lbs pound|oz ounce|ml mL milliliter millilitre|l L liter litre|gal gallon|pint|quart|cup
s sec secs second|min mins minute|h hr hrs hour|day|week|month|yr yrs year|decade|century centuries
cent|dollar USD buck|EUR euro|GBP|rupee INR Rs|yen|yuan|peso|° deg degree|rad radian|acre|ha hectare
mph|kmh kmph kph
"""
UNITS = {
    alias: names.split()[0]
    for names in _UNITS.replace("\n", "|").split("|")
    for alias in names.split()
}
"""Canonical names of units by their aliases; plurals in s are understood."""
CURRENCIES = {"USD", "EUR", "GBP", "INR", "Rs"}
RATES = {"mph": ["mi", "h"], "kmh": ["km", "h"]}
_VERBS = """
ate bought buys cost costs drank drives drove earned earns eats found gave gets gives got had has
kept leaves made makes needs paid pays picked planted ran read reads received runs saved saves sells
sold spends spent takes took travels used walked walks worked
"""
_FRAME = """
a about altogether amount an and angle answer answers approx approximately are area around as
average be could difference distance equal equals exactly final finally for have he height hence
her his i in is it its just left length mean my now number of only our perimeter price probability
product radius ratio result results roughly rs she simply so solution speed sum that the their
then there therefore they this thus time to total totals value volume we were width will with
would you your
"""
VERBS = frozenset(_VERBS.split())
FRAME = VERBS.union(_FRAME.split())
"""Words before a number: how an answer is introduced, and the verbs of word problems."""
_TAIL = """
a all altogether an and apart away children cubic daily day deep deer dice each every feet
fish geese high hour in item left long men mice minute money month now of old one per people
person remaining sheep sq square student tall teeth the total unit week wide women year
"""
TAIL = frozenset(_TAIL.split())
"""Words after a number, besides units and plurals."""
SCALES = {
    "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12,
}  # fmt: skip
NO_PLURAL = re.compile(
    r".*(?:ss|us|is|[dn]ths|teenths|ieths)"
    r"|(?:hundred|thousand|dozen|time|half|halve|third|quarter|fourth|fifth|sixth|seventh|eighth"
    r"|score|pair|couple|double|triple|power|root|square|cube|\w+illion)s|les+|always|yes"
)
"""Words in s that count nothing: "5 times" and "5 sixths" are not 5."""
_WORD = re.compile(r"[A-Za-z°]+")
_POINTS = " .,:;'\"/-()*"


def sign_before(text: str) -> int:
    """1 or -1 for the words that stand before a number, 0 if they make it no number."""
    found = _WORD.findall(text.replace("'s ", " "))
    sign = -1 if found and found[-1].lower() in ("minus", "negative") else 1
    if sign < 0:
        found.pop()
    if len(found) > 1 and found[0].istitle() and found[1] in VERBS:
        del found[0]  # a name, as in "Natalia sold"
    is_frame = all(w.lower() in FRAME or w in CURRENCIES or _is_plural(w) for w in found)
    return sign if is_frame and not _WORD.sub("", text).strip(_POINTS.replace("-", "")) else 0


def scale_after(text: str) -> tuple[int, set[str]] | None:
    """The factor that the words after a number stand for, and their units; None if they make it
    no number."""
    found = _WORD.findall(text)
    # 3x and 3m are maths.
    touches = bool(re.match(r"[A-Za-z](?![A-Za-z])", text))
    if touches or _WORD.sub("", text).strip(_POINTS):
        return None
    scale, units = 1, set[str]()
    while found and found[0].lower() in SCALES:
        scale *= SCALES[found.pop(0).lower()]
    for position, word in enumerate(found):
        if unit := _unit(word):
            units.update(RATES.get(unit, [unit]))
        elif word == "of":
            break  # what there is so much of
        elif not (word.lower() in TAIL and found[position:] != ["a"]) and not _is_plural(word):
            return None
    return scale, units


def _unit(word: str) -> str | None:
    """Short names as they are written: M is no metre."""
    if word in UNITS or len(word) < 3:
        return UNITS.get(word)
    return UNITS.get(word.lower()) or UNITS.get(word.lower().removesuffix("s"))


def _is_plural(word: str) -> bool:
    return len(word) > 3 and word.islower() and word[-1] == "s" and not NO_PLURAL.fullmatch(word)
