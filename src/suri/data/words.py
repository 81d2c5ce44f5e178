"""The words that the bundled rows are made of; every fifth of a table is for held-out rows."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ANIMALS = _split("""
dog cat horse cow lion pig goat bear rabbit tiger duck monkey zebra camel elephant donkey eagle
parrot penguin frog snake lizard turtle whale owl shark crab bee spider dolphin ant beetle squirrel
panda butterfly kangaroo crocodile hamster lobster hen
""")

FOODS = _split("""
carrot onion lemon banana apple cherry peach grape plum pear pepper cabbage pumpkin walnut almond
coconut olive bean pea strawberry pineapple cucumber orange melon cookie pancake sandwich burger
cake pie egg cheese sausage noodle berry muffin biscuit bagel pretzel turnip
""")

TOOLS = _split("""
hammer saw drill wrench ladder axe rake shovel needle ruler pump lever clamp broom brush bucket fork
spoon pencil pen hook key lamp pan kettle razor comb microscope telescope compass calculator plow
tractor screwdriver chisel spade mop scraper stapler thermometer
""")

KINDS = {"animal": ANIMALS, "food": FOODS, "tool": TOOLS}
THINGS = ANIMALS + FOODS + TOOLS

OPPOSITES = tuple(
    tuple(pair.split("/"))
    for pair in _split("""
hot/cold big/small fast/slow tall/short happy/sad old/young rich/poor strong/weak light/dark
full/empty clean/dirty wet/dry early/late near/far loud/quiet hard/soft thick/thin wide/narrow
deep/shallow high/low good/bad true/false left/right up/down day/night win/lose buy/sell give/take
push/pull open/closed love/hate start/finish question/answer friend/enemy north/south summer/winter
above/below inside/outside before/after east/west always/never first/last more/less safe/dangerous
cheap/expensive smooth/rough simple/complex public/private ancient/modern sharp/blunt
polite/rude victory/defeat success/failure accept/reject remember/forget increase/decrease laugh/cry
brave/cowardly guilty/innocent arrive/depart
""")
)

NAMES = _split("""
Anna Ben Clara David Emma Felix Grace Henry Ivy Jack Kate Leo Mia Noah Olivia Paul Ruth Sam Tina
Victor Walter Alice Bruno Carla Daniel Eva Frank Helen Irene James Laura Martin Nina Oscar Peter
Rosa Simon Sofia Thomas Vera
""")

CITIES = _split("""
Oslo Paris London Rome Berlin Madrid Vienna Lisbon Dublin Athens Prague Warsaw Cairo Tokyo Boston
Chicago Sydney Toronto Lima Delhi Seoul Denver Dallas Moscow Milan Naples Geneva Zurich Munich
Hamburg Helsinki Budapest Nairobi Istanbul Stockholm Miami Seattle Glasgow Havana Montreal
""")

POSITIVE = _split("""
wonderful great excellent lovely fantastic delightful perfect amazing brilliant superb charming
beautiful splendid pleasant outstanding marvelous enjoyable impressive terrific memorable
""")

NEGATIVE = _split("""
awful terrible horrible bad disappointing dreadful boring ugly nasty disgusting poor unpleasant
useless broken miserable annoying filthy dull pathetic lousy
""")

REVIEWED = _split("""
soup hotel film book room coffee service food concert tour lunch show song meal trip garden party
museum beach phone
""")

MONTHS = _split("""
January February March April May June July August September October November December
""")

UNITS = _split("""
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen
""")

TENS = _split("twenty thirty forty fifty sixty seventy eighty ninety")
