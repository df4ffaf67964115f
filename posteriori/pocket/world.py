"""The words of the story world: who, what and where a pocket story may be about.

Every list is a tuple of single lower-case words (names are capitalised) so that the tokenizer can
give each of them one token with its leading space, which in turn makes small alphabets of one-token
words possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MEN: Final = (
    "Tom",
    "Ben",
    "Sam",
    "Max",
    "Leo",
    "Dan",
    "Jack",
    "Paul",
    "Adam",
    "Mark",
    "Peter",
    "David",
)
WOMEN: Final = (
    "Anna", "Lily", "Mia", "Sara", "Emma", "Kate", "Lucy", "Nina", "Rosa", "Julia", "Helen",
    "Clara",
)  # fmt: skip
NAMES: Final = MEN + WOMEN

#: Pronoun slots by the gender of the main character: (men, women).
PRONOUNS: Final[Mapping[str, tuple[str, str]]] = {
    "he": ("he", "she"),
    "He": ("He", "She"),
    "him": ("him", "her"),
    "his": ("his", "her"),
    "His": ("His", "Her"),
}

COLORS: Final = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink")
ROOMS: Final = ("kitchen", "garden", "garage", "attic", "bedroom", "office", "hall", "basement")
PLACES: Final = (
    "park", "school", "beach", "market", "library", "station", "museum", "lake", "farm", "forest",
)  # fmt: skip
SPOTS: Final = ("bed", "table", "chair", "sofa", "desk", "shelf", "rug", "box")
THINGS: Final = (
    "key",
    "ring",
    "phone",
    "book",
    "watch",
    "wallet",
    "letter",
    "hat",
    "camera",
    "ticket",
)
PETS: Final = ("dog", "cat", "rabbit", "pony", "parrot", "goat")
DISHES: Final = ("soup", "bread", "cake", "pizza", "rice", "pasta", "salad", "pie")
FRUITS: Final = ("apples", "pears", "plums", "cherries", "berries", "lemons")
TOYS: Final = ("robot", "train", "doll", "kite", "boat", "drum", "truck", "puppet")
TOOLS: Final = ("glue", "tape", "wire", "string", "wax", "paint")
VEHICLES: Final = ("car", "bike", "van", "scooter", "tractor", "bus")
INSTRUMENTS: Final = ("guitar", "piano", "violin", "flute", "trumpet", "banjo")
SPORTS: Final = ("football", "tennis", "chess", "hockey", "golf", "baseball")
SUBJECTS: Final = ("math", "history", "science", "music", "art", "grammar")
RELATIVES: Final = ("mother", "father", "sister", "brother", "uncle", "aunt", "neighbor", "teacher")
GIFTS: Final = ("scarf", "lamp", "vase", "clock", "necklace", "sweater", "basket", "mirror")
CLOTHES: Final = ("coat", "shirt", "dress", "jacket", "suit", "skirt")
FLOWERS: Final = ("roses", "tulips", "daisies", "lilies", "carrots", "beans")
JOBS: Final = ("baker", "nurse", "farmer", "driver", "painter", "cook")
TIMES: Final = ("morning", "evening", "night", "afternoon", "day", "weekend")
DAYS: Final = ("Monday", "Tuesday", "Friday", "Saturday", "Sunday")
SAD: Final = ("sad", "upset", "worried", "angry", "afraid")
HAPPY: Final = ("happy", "glad", "proud", "pleased", "relieved", "cheerful")
HOW: Final = ("slowly", "quickly", "quietly", "carefully", "gladly", "bravely")
NEXT: Final = ("Then", "Later", "Soon", "Finally", "Suddenly", "Luckily")
SIZES: Final = ("big", "small", "old", "new", "nice", "strange")

#: Free slots (leading underscore): drawn anew at every use, tied to nothing.
FREE: Final[Mapping[str, tuple[str, ...]]] = {
    "_time": TIMES,
    "_day": DAYS,
    "_sad": SAD,
    "_happy": HAPPY,
    "_how": HOW,
    "_then": NEXT,
    "_size": SIZES,
}
