"""The words that the bundled rows are made of, in one form for every language, and the English."""

from collections.abc import Callable
from dataclasses import dataclass

Table = tuple[str, ...]


def split(text: str) -> Table:
    """The words of a text, separated by blanks."""
    return tuple(text.split())


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs, each written as one/other."""
    found = (pair.partition("/") for pair in text.split())
    return tuple((one, other) for one, _, other in found)


@dataclass(frozen=True)
class Words:
    """The tables of a language; every fifth entry of a table is for held-out rows alone.

    Labels, forms, keys and units are not tables: training and held-out rows share them.
    """

    kinds: dict[str, Table]
    qualities: Table
    described: str
    opposites: tuple[tuple[str, str], ...]
    opposed: str
    reviews: dict[str, Table]
    reviewed: Table
    review_forms: Table
    names: Table
    cities: Table
    person_keys: tuple[str, str]
    person_forms: Table
    places: Table
    year_forms: Table
    units: tuple[tuple[str, str, int], ...]
    """A unit, a smaller one, and how many zeros the number gets."""
    measured: str
    months: Table
    date_form: str
    halves: tuple[str, str]
    time_form: str
    comma: str
    spell: Callable[[int], str]
    """A number from 0 to 9999 in words."""
    classifiers: tuple[tuple[str, str], ...] = ()
    """Nouns with the one measure word that is usual."""

    @property
    def things(self) -> Table:
        """The words of all kinds."""
        return sum(self.kinds.values(), ())


UNITS = split("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
""")

TENS = split("twenty thirty forty fifty sixty seventy eighty ninety")


def spell(number: int) -> str:
    """A number from 0 to 9999 in English words, as in "three thousand seven hundred and five"."""
    if number < len(UNITS):
        return UNITS[number]
    if number < 100:
        tens, units = divmod(number, 10)
        return TENS[tens - 2] + (f"-{UNITS[units]}" if units else "")
    size, name, joint = (100, "hundred", " and ") if number < 1000 else (1000, "thousand", " ")
    many, rest = divmod(number, size)
    joint = " and " if rest < 100 else joint
    return f"{UNITS[many]} {name}" + (joint + spell(rest) if rest else "")


ENGLISH = Words(
    kinds={
        "animal": split("""
dog cat horse cow lion pig goat bear rabbit tiger duck monkey zebra camel elephant donkey eagle
parrot penguin frog snake lizard turtle whale owl shark crab bee spider dolphin ant beetle squirrel
panda butterfly kangaroo crocodile hamster lobster hen giraffe leopard swan pigeon sparrow crow hawk
otter walrus badger hedgehog rat gorilla puppy kitten llama pony rooster peacock scorpion
"""),
        "food": split("""
carrot onion lemon banana apple cherry peach grape plum pear pepper cabbage pumpkin walnut almond
coconut olive bean pea strawberry pineapple cucumber orange melon cookie pancake sandwich burger
cake pie egg cheese sausage noodle berry muffin biscuit bagel pretzel turnip waffle dumpling taco
pizza omelet croissant doughnut meatball lentil radish leek apricot lime fig raisin peanut hazelnut
brownie tortilla artichoke
"""),
        "tool": split("""
hammer saw drill wrench ladder axe rake shovel needle ruler pump lever clamp broom brush bucket fork
spoon pencil pen hook key lamp pan kettle razor comb microscope telescope compass calculator plow
tractor screwdriver chisel spade mop scraper stapler thermometer crowbar mallet trowel wheelbarrow
sieve whisk ladle spatula grater corkscrew funnel anvil pickaxe hoe hatchet hacksaw sander stopwatch
magnet flashlight
"""),
    },
    qualities=split("""
red green blue white black brown yellow grey pink purple golden striped spotted tiny huge heavy nice
strange famous local French Italian Dutch German Greek Spanish Swedish Chinese Turkish Mexican
"""),
    described="the {} {}",
    opposites=pairs("""
hot/cold big/small fast/slow tall/short happy/sad old/young rich/poor strong/weak light/dark
full/empty clean/dirty wet/dry early/late near/far loud/quiet hard/soft thick/thin wide/narrow
deep/shallow high/low good/bad true/false left/right up/down day/night win/lose buy/sell give/take
push/pull open/closed love/hate start/finish question/answer friend/enemy north/south summer/winter
above/below inside/outside before/after east/west always/never first/last more/less safe/dangerous
cheap/expensive smooth/rough simple/complex public/private ancient/modern sharp/blunt polite/rude
victory/defeat success/failure accept/reject remember/forget increase/decrease laugh/cry
brave/cowardly guilty/innocent arrive/depart possible/impossible legal/illegal visible/invisible
correct/incorrect honest/dishonest lucky/unlucky fair/unfair known/unknown usual/unusual able/unable
regular/irregular patient/impatient same/different straight/curved sweet/sour awake/asleep
alive/dead absent/present entrance/exit top/bottom front/back war/peace profit/loss praise/blame
attack/defend build/destroy add/subtract multiply/divide float/sink appear/disappear lock/unlock
agree/disagree ascend/descend tight/loose fresh/stale tame/wild vertical/horizontal import/export
include/exclude sunrise/sunset
"""),
    opposed="{} and {}, {} and ...",
    reviews={
        "positive": split("""
wonderful great excellent lovely fantastic delightful perfect amazing brilliant superb charming
beautiful splendid pleasant outstanding marvelous enjoyable impressive terrific memorable fabulous
magnificent awesome stunning refreshing exceptional gorgeous remarkable satisfying inspiring
thrilling fascinating flawless heavenly phenomenal exquisite glorious stellar spectacular admirable
"""),
        "negative": split("""
awful terrible horrible appalling disappointing dreadful boring ugly nasty disgusting mediocre
unpleasant useless broken miserable annoying filthy dull pathetic lousy revolting dismal atrocious
hideous tedious frustrating shabby gloomy dreary tasteless sloppy horrid ghastly shocking worthless
depressing unbearable disastrous abysmal inferior
"""),
    },
    reviewed=split("""
soup hotel film book room coffee service food concert tour lunch show song meal trip garden party
museum beach phone dinner breakfast tea wine beer bread salad steak dessert menu restaurant cafe bar
kitchen bed bathroom view pool flight train cruise ferry taxi guide staff play opera band album
novel
"""),
    review_forms=(
        *("The {} was {}.", "I found the {} {}.", "This {} is {}.", "Our {} was {}."),
        *("We thought the {} was {}.", "Honestly, the {} was {}."),
    ),
    names=split("""
Anna Ben Clara David Emma Felix Grace Henry Ivy Jack Kate Leo Mia Noah Olivia Paul Ruth Sam Tina
Victor Walter Alice Bruno Carla Daniel Eva Frank Helen Irene James Laura Martin Nina Oscar Peter
Rosa Simon Sofia Thomas Vera Aaron Bella Carl Diana Edward Fiona George Hannah Isaac Julia Kevin
Lily Max Nora Owen Pamela Quentin Rachel Steven Teresa Ursula Vincent Wendy Xavier Yvonne Zoe Adam
Beth Chris Dora Eric Flora Gavin Hugo Iris Jonas Karen Louis Maria Nathan
"""),
    cities=split("""
Oslo Paris London Rome Berlin Madrid Vienna Lisbon Dublin Athens Prague Warsaw Cairo Tokyo Boston
Chicago Sydney Toronto Lima Delhi Seoul Denver Dallas Moscow Milan Naples Geneva Zurich Munich
Hamburg Helsinki Budapest Nairobi Istanbul Stockholm Miami Seattle Glasgow Havana Montreal Santiago
Bogota Caracas Manila Jakarta Bangkok Hanoi Osaka Kyoto Beijing Shanghai Taipei Mumbai Karachi
Tehran Baghdad Ankara Beirut Tunis Algiers Accra Lagos Dakar Kampala Harare Pretoria Durban Perth
Brisbane Auckland Ottawa Vancouver Calgary Houston Phoenix Portland Memphis Detroit Atlanta Orlando
"""),
    person_keys=("name", "city"),
    person_forms=(
        *("{} lives in {}.", "{} moved to {}.", "{} works in {}.", "{} is from {}."),
        *("{} studies in {}.", "{} was born in {}."),
    ),
    places=split("""
school bridge library station hospital theatre factory church tower castle bank airport harbour
stadium market zoo cinema palace prison mill farm bakery pharmacy college university chapel temple
monastery lighthouse windmill observatory gallery laboratory warehouse brewery dam tunnel canal
fountain monument
"""),
    year_forms=(
        *("The {} opened in {}.", "The {} was built in {}.", "The {} burned down in {}."),
        *("In {1} the {0} was closed.", "They sold the {} in {}.", "In {1} we found the {0}."),
    ),
    units=(
        *(("km", "m", 3), ("kg", "g", 3), ("m", "cm", 2)),
        *(("cm", "mm", 1), ("l", "ml", 3), ("t", "kg", 3)),
    ),
    measured="{} {}",
    months=split("""
January February March April May June July August September October November December
"""),
    date_form="{day} {month} {year}",
    halves=("am", "pm"),
    time_form="{hour}:{minute:02} {half}",
    comma=", ",
    spell=spell,
)
