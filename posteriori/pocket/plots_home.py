"""Plots that happen at home: lost things, broken things, meals, pets, repairs.

A line reads ``needs : sentence : gives``; `plot.Line` explains the notation.
"""

from __future__ import annotations

from typing import Final

from posteriori.pocket import world as w
from posteriori.pocket.plot import Plot

LOST: Final = Plot(
    "lost thing",
    {"n": w.NAMES, "m": w.NAMES, "o": w.THINGS, "p": w.ROOMS, "q": w.ROOMS, "s": w.SPOTS, "c": w.COLORS},
    (
        ["{n} had a {c} {o}.", "{n} kept a {c} {o} in the {p}.", "{n} loved {his} {c} {o}."],
        ["One {_time} the {c} {o} was gone.", "One {_time} {he} could not find the {c} {o}.",
         "On {_day} {n} lost the {c} {o} at home."],
        ["{He} looked in the {p} but it was not there.", "{He} asked {m} for help. : asked",
         "{He} was very {_sad} and looked in the {p}.",
         "{n} looked all over the house with {m}. : asked"],
        ["{_then} {he} found the {c} {o} under the {s}. : under",
         "asked : {_then} {m} found the {c} {o} in the {q}. : helped",
         "{n} gave up and bought a new {o}. : bought",
         "{_then} {he} went to the {q} and saw the {c} {o}. : saw",
         "The {c} {o} was under the {s} in the {q}. : under saw", "A dog came in with the {c} {o}. : dog",
         "{n} looked in the {q} but the {c} {o} was not there. : failed"],
        ["under : {n} never put the {c} {o} near the {s} again.",
         "helped : {n} thanked {m} and put the {c} {o} away.",
         "bought : The new {o} was better than the old one.",
         "saw : {n} was {_happy} to see the {c} {o} in the {q}.",
         "dog : {n} laughed and thanked the dog.",
         "under|helped|saw|dog : {n} was {_happy} to have the {c} {o} back.",
         "failed : {n} never saw the {c} {o} again."],
    ),
)  # fmt: skip

LOCKED: Final = Plot(
    "locked door",
    {"n": w.NAMES, "m": w.NAMES, "p": w.PLACES, "q": w.PLACES, "c": w.COLORS},
    (
        ["{n} came home from the {p}.", "{n} walked home from the {p} in the {_time}."],
        ["The {c} door was locked.", "{He} could not open the {c} door."],
        ["{He} had lost {his} key.", "{His} key was not in the bag.",
         "{He} had left the key at the {p}. : left", "{m} had the only key. : other"],
        ["{n} climbed in by the window. : window",
         "left : {n} went back to the {p} and got the key. : key",
         "other : {n} called {m} on the phone. : called",
         "other : {n} waited at the door for {m}. : called",
         "!other : {_then} {n} found the key under a stone. : key",
         "{n} broke the {c} door. : broke", "{n} went to sleep at the house of {m}. : slept"],
        ["window : {n} cut {his} hand on the glass.",
         "key : {n} put the key in the {c} door and went in.",
         "called : {m} came with the key and opened the door.",
         "broke : {n} had to buy a new door.", "slept : {n} had breakfast with {m} the next day.",
         "window|key : {n} was {_happy} to be home."],
    ),
)  # fmt: skip

HUNGRY: Final = Plot(
    "hungry",
    {"n": w.NAMES, "m": w.NAMES, "d": w.DISHES, "e": w.DISHES, "p": w.PLACES},
    (
        ["{n} was very hungry.", "{n} wanted to eat {d} for dinner.",
         "{n} came home hungry from the {p}."],
        ["{He} started to cook some {d}.", "{He} put the {d} on the stove."],
        ["Then the phone rang and {m} talked for an hour. : burn",
         "{He} fell asleep on the sofa. : burn", "There was no salt in the kitchen. : salt",
         "{m} came to visit. : guest"],
        ["burn : The {d} burned and the kitchen was full of smoke. : burned",
         "burn : {_then} {n} ran to the kitchen and saved the {d}. : good",
         "salt : {n} went to the market and bought salt. : good",
         "salt : {n} cooked the {d} with no salt. : bad",
         "guest : {n} shared the {d} with {m}. : shared", "guest : {m} ate all of the {d}. : gone",
         "{n} gave up and ordered {e}. : ordered"],
        ["burned : {n} had to throw the {d} away.", "burned|gone : {n} went to bed hungry.",
         "good : The {d} tasted very good.", "bad : The {d} tasted very bad.",
         "shared : {n} and {m} ate the {d} and talked.",
         "ordered : The {e} came and {n} ate it {_how}.",
         "good|shared|ordered : {n} was full and {_happy}."],
    ),
)  # fmt: skip

BROKEN: Final = Plot(
    "broken toy",
    {"n": w.NAMES, "m": w.NAMES, "t": w.TOYS, "u": w.TOOLS, "r": w.RELATIVES, "c": w.COLORS, "v": w.TOYS},
    (
        ["{n} had a {c} {t}.", "{n} got a {c} {t} from {his} {r}.",
         "{n} played with a {c} {t} every day."],
        ["One {_time} {he} dropped the {c} {t}.", "One {_time} {m} stepped on the {c} {t}. : guilt"],
        ["The {c} {t} broke in two.", "A part of the {c} {t} broke off."],
        ["{n} fixed the {c} {t} with {u}. : fixed", "{_then} {his} {r} fixed the {c} {t} with {u}. : kin",
         "guilt : {m} bought {n} a {v}. : sorry", "{n} threw the {c} {t} away. : lost",
         "guilt : {m} fixed the {c} {t} with some {u}. : friend",
         "{n} tried {u} but it did not work. : lost"],
        ["fixed|kin|friend : The {c} {t} worked again.", "kin : {n} thanked {his} {r} for the {u}.",
         "sorry : {n} liked the {v} more than the {c} {t}.",
         "lost : {n} was {_sad} and missed the {c} {t}.",
         "fixed : {n} was proud of the {c} {t} and the {u}.",
         "sorry|friend : {n} was not angry at {m} any more."],
    ),
)  # fmt: skip

BAKING: Final = Plot(
    "birthday cake",
    {"n": w.NAMES, "m": w.NAMES, "f": w.FRUITS, "g": w.FRUITS, "d": w.PETS},
    (
        ["It was the birthday of {m}.", "{m} had a birthday on {_day}."],
        ["{n} wanted to bake a cake with {f}.", "{n} baked a cake with {f}."],
        ["{He} left the cake on the table. : table", "{He} had no {f} at home. : none",
         "The {d} sat near the table. : pet table"],
        ["none : {n} used {g} and no {f}. : other", "none : {n} picked {f} in the garden. : made",
         "pet : The {d} jumped up and ate the cake. : eaten",
         "table : The cake fell on the floor. : fell",
         "table : {n} put {g} on top of the cake. : made both",
         "{n} lit the candles and called {m}. : made candles"],
        ["other : {m} liked the cake with {g}.", "made : {m} loved the cake.",
         "eaten : {n} was angry at the {d}.", "eaten|fell : {n} had to buy a cake.",
         "candles : {m} blew out the candles.", "both : The {f} and the {g} tasted good.",
         "other|made : {m} thanked {n} for the cake."],
    ),
)  # fmt: skip

PET: Final = Plot(
    "runaway pet",
    {"n": w.NAMES, "m": w.NAMES, "d": w.PETS, "c": w.COLORS, "p": w.PLACES, "q": w.PLACES, "r": w.ROOMS},
    (
        ["{n} had a {_size} {d}.", "{n} loved {his} {d}.", "{n} lived with a {d} near the {p}."],
        ["One {_time} {he} left the {c} gate open.", "The {c} gate was open on {_day}."],
        ["The {d} ran away.", "The {d} ran to the {p}. : there",
         "{He} called but the {d} did not come."],
        ["{_then} {n} found the {d} at the {q}. : found",
         "there : {n} ran to the {p} and saw the {d}. : seen",
         "{m} saw the {d} and brought it home. : friend",
         "{n} put food at the gate and waited. : food",
         "The {d} was in the {r} all the time. : home",
         "{n} looked at the {q} but the {d} was not there. : lost"],
        ["found : {n} carried the {d} home from the {q}.",
         "seen : {n} and the {d} walked home from the {p}.",
         "friend : {n} thanked {m} for the {d}.", "food : The {d} came back to eat.",
         "home : {n} laughed and took the {d} out of the {r}.",
         "lost : {n} cried because the {d} was lost.",
         "found|seen|friend|home : After that {he} always closed the {c} gate."],
    ),
)  # fmt: skip

GARDEN: Final = Plot(
    "garden",
    {"n": w.NAMES, "m": w.NAMES, "f": w.FLOWERS, "g": w.FLOWERS, "d": w.PETS},
    (
        ["{n} planted {f} in the garden.", "{n} wanted to grow {f}."],
        ["{He} watered the {f} every {_time}.", "{He} dug a hole and put in the seeds."],
        ["Then it did not rain for weeks. : dry", "{He} went away for a week. : away",
         "A {d} came into the garden. : pet"],
        ["dry|away : The {f} turned brown and died. : dead",
         "away : {m} watered the {f} for {him}. : saved helper",
         "dry : {n} carried water from the lake. : saved",
         "pet : The {d} ate all the {f}. : dead eaten",
         "pet : {n} chased the {d} away. : saved chased",
         "{n} built a fence and planted {g} too. : both"],
        ["dead : {n} planted {g} in the garden.", "helper : {n} gave {m} some of the {f}.",
         "saved : The {f} grew tall.", "eaten : {n} was angry at the {d}.",
         "chased : The {d} did not come back.", "both : The {f} and the {g} grew tall."],
    ),
)  # fmt: skip

DARK: Final = Plot(
    "power out",
    {"n": w.NAMES, "m": w.NAMES, "r": w.ROOMS, "q": w.ROOMS, "o": w.THINGS},
    (
        ["{n} was reading in the {r}.", "{n} sat in the {r} in the {_time}."],
        ["{_then} the lights went out.", "{_then} there was a storm and the house was dark."],
        ["{He} was {_sad} and could not see.", "{He} heard a noise in the {q}. : noise"],
        ["{n} lit a candle. : light", "noise : {He} went to the {q} and saw {m}. : friend",
         "noise : {He} went to the {q} and saw a cat. : cat", "{n} went to bed. : bed",
         "{He} walked into the {q} and fell. : fell", "{n} found a lamp in the {q}. : light lamp"],
        ["light : {n} could see again.", "friend : {m} was only looking for a {o}.",
         "cat : {n} gave the cat some milk.", "bed : In the morning the lights were on again.",
         "fell : {n} hurt {his} leg in the dark.", "lamp : {n} carried the lamp back to the {r}.",
         "friend|cat : {n} was not afraid any more."],
    ),
)  # fmt: skip

HOME_PLOTS: Final = (LOST, LOCKED, HUNGRY, BROKEN, BAKING, PET, GARDEN, DARK)
