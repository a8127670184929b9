"""The vocabulary of the embedded corpus: common English words, safe to say aloud, no two of which sound alike.

Homophones ("sea", "see") and words with two readings ("lead", "wind") are left out: a recogniser without a
language model could not tell them apart, and its errors would say nothing about the model under test. No word is
longer than eight letters: CTC needs an output frame (40 ms) for every letter.
"""

from __future__ import annotations

import random

from dmao.errors import UserError

_TEXT = """
able above across act action actor adult advice after again agree airport album almost alone along already always
amber anchor angle animal ankle answer apple april apron arch arrive arrow artist ask atlas attic august autumn avenue
awake baby bacon badge bakery balance ballet bamboo banana banjo barrel basket bath beach because become bench beside
between beyond bicycle bird bishop black blanket blossom boat body bonfire book bottle bowl branch brave bread breath
breeze brick bridge bright bring broken brother brown bubble bucket budget build bundle bush business butter button
cabbage cabin cactus cage cake calendar camel camera candle canyon captain carbon careful carpet carrot castle catch
cave celery chair chalk chance change chapter charm cheese cherry chess chicken child chimney choice church cinema
circle city clap clay clever climb clock cloud clover coat cobweb coconut coffee collar colour comet common compass
concert copper coral corner cottage cotton cough country courage cousin cover coyote cradle crayon cream cricket cross
crowd crown crystal cucumber cupboard curious curtain cushion cycle daily dance danger daughter dawn december decide
deep delta dentist diamond dinner dirt distance doctor dolphin donkey door double doubt dragon drawer dream dress
drift drink drive drop drum duck dusty early earth easy echo edge elbow elephant eleven emerald empty engine enjoy
enough envelope equal evening every exact example eyebrow fabric face factory family famous farmer father favour
feather february fence fever fiction field fifty figure finger finish fire flag flame flavour float flood forest
forget fork fortune forward fountain fourteen fox freedom friend frog frozen fruit funny future galaxy garage garden
garlic gather gentle ghost giant ginger giraffe girl glacier glass globe glove goat golden goose grape grass gravity
green grocery group guard guess guitar gulf half hammer happy harbour harvest hat heavy hedge helmet helpful hidden
history hockey holiday honest honey hope horizon hospital hotel house hundred hungry husband iceberg idea igloo image
inch indigo insect inside invite iron island ivory jacket jaguar january jar jelly jewel join journey joy judge juice
july jump june jungle kangaroo keep kettle keyboard kick kind king kitchen kiwi ladder lady lake lamp language laptop
large laugh laundry lazy leather lecture lemon letter library light lilac lion liquid listen little lizard lobby
lobster local lonely lucky luggage lunch machine magic magnet mango maple marble march market mayor meadow measure
melody melon memory mercury message metal middle midnight milk million mirror mixture modern moment monday money
monkey month moon mosquito mother motion mountain mouse mouth movie muscle museum music mystery napkin narrow nature
necklace needle nephew never nickel nobody noise north notebook nothing november number nurse oak oatmeal ocean
october office often olive onion open opera orange orbit orchard order oven owl oyster package paddle painter palace
panda panther papaya paper parade parcel parent parrot pasta patient peaceful peanut pebble pencil penguin people
pepper perfume person piano picnic picture pigeon pillow pilot pink pirate pizza planet plastic plenty plum pocket
poem polite pony popcorn potato powder prince problem proud pudding pulse pumpkin puppy purple puzzle pyramid quarter
queen question quick quiet quilt rabbit radio rainbow random rather recipe ribbon ripe river robin rocket roof rough
rubber ruby rugby runner saddle sailing salad salmon sandwich saturday saucer scarf school science scissors season
secret seven shadow shallow sharp sheep shelter sherbet ship shirt shoulder shovel silver simple sister sixteen skate
sketch sleep slipper smile smooth snail snow soccer sofa soldier soup south spark spider spoon spring square squirrel
stable station stomach stone storm story strange street strong student sugar summer sunday surprise swallow swan
sweater swim symbol table teacher temple ten theatre thirsty thousand thumb thunder thursday tiger timber tiny toast
today together tomato tongue tooth tower traffic treasure triangle trumpet tuesday tulip tunnel turkey turtle twelve
twenty twist umbrella uncle under unicorn uniform universe useful usual valley vanilla velvet very victory village
violin visit voice volcano voyage wagon walnut walrus warm water weekend welcome window winter wisdom wizard wolf
woman wonder wooden wool world yard yawn yellow yogurt young zebra zero zigzag zipper
"""

SUBSET_SEED = 150
WORDS: tuple[str, ...] = tuple(_TEXT.split())


def vocabulary(count: int) -> tuple[str, ...]:
    """Return `count` words in alphabetical order; a smaller vocabulary is a subset of every larger one.

    Raises:
        UserError: if `count` lies outside 20 .. len(WORDS).
    """
    if not 20 <= count <= len(WORDS):
        raise UserError(f"words must lie between 20 and {len(WORDS)}, got {count}")
    shuffled = list(WORDS)
    random.Random(SUBSET_SEED).shuffle(shuffled)
    return tuple(sorted(shuffled[:count]))
