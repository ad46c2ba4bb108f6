"""The language of the scenes: names in the singular and plural, with their articles, numbers and places in words."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
IRREGULAR_PLURALS = {
    "cactus": "cacti",
    "deer": "deer",
    "die": "dice",
    "fish": "fish",
    "pufferfish": "pufferfish",
    "snowman": "snowmen",
    "wolf": "wolves",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "mouse": "mice",
    "scarf": "scarves",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "squid": "squid",
    "tooth": "teeth",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "tornado": "tornadoes",
    "volcano": "volcanoes",
}
# A general name, and the special things that it names as well or that show it (a gift has a ribbon): where one of them
# is there, the general name is neither asked for as absent nor counted, found or placed.
KINDS = {
    "bear": ("koala", "panda", "teddy bear"),
    "bird": (
        *("turkey", "rooster", "chick", "penguin", "dove", "eagle", "duck", "swan", "owl", "flamingo", "peacock"),
        "parrot",
    ),
    "book": ("open book",),
    "bow": ("ribbon", "gift"),
    "cake": ("cake slice", "cupcake"),
    "candy": ("lollipop",),
    "cap": ("graduation cap",),
    "car": ("taxi", "police car", "race car"),
    "clock": ("watch",),
    "cloud": ("rain cloud",),
    "egg": ("fried egg",),
    "fish": ("pufferfish", "shark"),
    "flame": ("candle",),
    "football": ("soccer ball",),
    "gem": ("ring",),
    "horse": ("unicorn", "carousel"),
    "ice cream": ("sundae",),
    "keyboard": ("piano",),
    "melon": ("watermelon",),
    "monkey": ("gorilla",),
    "motorcycle": ("moped",),
    "mountain": ("volcano",),
    "mouse": ("computer mouse",),
    "planet": ("globe",),
    "ribbon": ("gift", "medal"),
    "scarf": ("snowman",),
    "ship": ("sailboat",),
    "shoe": ("boot", "high heel", "ice skate", "roller skate"),
    "temple": ("shrine",),
    "tent": ("circus tent",),
    "top hat": ("snowman",),
    "train": ("bullet train",),
    "tree": ("pine tree", "palm tree"),
    "truck": ("fire truck", "ambulance"),
}
BACKGROUND_WORDS = {"stripes": "striped", "noise": "noisy"}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


def with_article(label: str) -> str:
    """ "apple" -> "an apple", "word stop" -> "the word stop"."""
    if label.startswith(("digit ", "word ")):
        return f"the {label}"
    spoken_vowel = label.startswith("hourglass") or (label[0] in "aeiou" and not label.startswith(("ufo", "unicorn")))
    return f"{'an' if spoken_vowel else 'a'} {label}"


def without_article(phrase: str) -> str:
    """ "an apple" -> "apple", "the word stop" -> "word stop"; what has no article stays."""
    head, _, rest = phrase.partition(" ")
    return rest if rest and head in ("a", "an", "the") else phrase


def plural(label: str) -> str:
    """ "red circle" -> "red circles", "bus" -> "buses", "butterfly" -> "butterflies"."""
    head, _, last = label.rpartition(" ")
    if last in IRREGULAR_PLURALS:
        many = IRREGULAR_PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        many = f"{last}es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return f"{head} {many}".strip()


def where(box, height: int, width: int) -> str:
    """The cell of a 3 x 3 grid that holds the box's centre: "top left", "middle", "bottom", ..."""
    row = ROWS[min(2, int((box[1] + box[3]) / 2 / height * 3))]
    column = COLUMNS[min(2, int((box[0] + box[2]) / 2 / width * 3))]
    if row == "middle":
        return column
    return row if column == "middle" else f"{row} {column}"


def sentence(text: str) -> str:
    """ "a cat" -> "A cat."."""
    return text[0].upper() + text[1:] + "."


def at(cell: str) -> str:
    """ "top left" -> "at the top left", "middle" -> "in the middle"."""
    return f"{'in' if cell == 'middle' else 'at' if ' ' in cell or cell in ROWS else 'on'} the {cell}"
