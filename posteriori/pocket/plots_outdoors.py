"""Plots that happen outdoors and on the way: weather, travel, sport, water, races.

A line reads ``needs : sentence : gives``; `plot.Line` explains the notation.
"""

from __future__ import annotations

from typing import Final

from posteriori.pocket import world as w
from posteriori.pocket.plot import Plot

RAIN: Final = Plot(
    "rain",
    {"n": w.NAMES, "m": w.NAMES, "p": w.PLACES, "c": w.COLORS, "k": w.CLOTHES},
    (
        ["{n} walked to the {p}.", "{n} went to the {p} with {m}. : friend",
         "{n} wore a {c} {k} to the {p}. : dressed"],
        ["The sky was dark.", "It started to rain on the way."],
        ["{He} had no umbrella. : bare", "{He} had left the umbrella at home. : bare",
         "{He} had an old umbrella. : umbrella"],
        ["bare : Soon {n} was wet and cold. : wet",
         "umbrella : {n} opened the {_size} umbrella. : dry",
         "{n} waited under a tree. : dry tree",
         "friend bare : {m} shared an umbrella with {him}. : dry shared",
         "umbrella : The wind broke the umbrella. : wet broke",
         "dressed : The {c} {k} was wet. : wet", "{n} ran home {_how}. : ran"],
        ["wet : The next day {n} was sick in bed.", "dry : {n} stayed dry.",
         "tree : The rain stopped and {n} left the tree.",
         "shared : {n} thanked {m} for the umbrella.", "broke : {n} bought a new umbrella.",
         "ran : At home {n} drank hot tea.", "wet : {n} put on dry clothes at the {p}."],
    ),
)  # fmt: skip

LATE: Final = Plot(
    "late",
    {"n": w.NAMES, "m": w.NAMES, "v": w.VEHICLES, "p": w.PLACES, "r": w.RELATIVES},
    (
        ["{n} had to be at the {p} at nine.", "{n} had to meet {m} at the {p}. : meet"],
        ["{He} woke up late.", "{He} forgot the time at breakfast."],
        ["{His} {v} did not start. : stuck", "{He} missed the bus. : missed",
         "{His} {v} was at home. : ready"],
        ["ready : {n} drove the {v} very fast. : fast",
         "stuck : {n} fixed the {v} {_how}. : fast fixed", "{n} ran all the way to the {p}. : ran",
         "{n} called {his} {r} for a ride. : ride", "missed : {n} waited for the next bus. : late",
         "stuck : {n} pushed the {v} down the road. : late pushed",
         "meet : {n} called {m} and told {his} story. : told"],
        ["fast|ride : {n} was at the {p} on time.",
         "ran : {n} came to the {p} tired and out of breath.",
         "ride : {n} thanked {his} {r} in the car.", "late : {n} was late and the {p} was closed.",
         "told : {m} was not angry and waited.", "fixed : {n} was proud of {his} work on the {v}.",
         "pushed : {n} sold the {v} on {_day}."],
    ),
)  # fmt: skip

FISHING: Final = Plot(
    "fishing",
    {"n": w.NAMES, "m": w.NAMES, "r": w.RELATIVES, "d": w.DISHES, "o": w.THINGS},
    (
        ["{n} went to the lake with {his} {r}.", "{n} went to the lake with {m}. : friend"],
        ["They sat in a {_size} boat. : boat", "They sat on the shore and fished."],
        ["For hours they caught nothing.", "The boat started to leak. : boat leak",
         "{_then} {he} felt a pull on the line. : pull"],
        ["pull : {n} pulled out a big fish. : fish", "pull : {n} pulled out an old {o}. : junk",
         "leak : They swam to the shore. : swim", "leak : {n} fixed the hole with tape. : fixed",
         "!leak : They gave up and ate {d}. : ate", "friend : {m} fell into the water. : fell",
         "!leak : {_then} {n} caught two small fish. : fish"],
        ["fish : They cooked the fish for dinner.", "junk : {n} laughed and kept the {o}.",
         "swim : The boat was lost in the lake.", "fixed : The boat was safe again.",
         "ate : The {d} was better than fish.", "fell : {n} pulled {m} out of the water.",
         "swim|fell : They went home wet and cold."],
    ),
)  # fmt: skip

GAME: Final = Plot(
    "the game",
    {"n": w.NAMES, "m": w.NAMES, "s": w.SPORTS, "r": w.RELATIVES},
    (
        ["{n} loved to play {s}.", "{n} was new in the {s} team."],
        ["{He} practiced {s} every {_time}. : trained", "On {_day} there was a big {s} game."],
        ["{He} had to play against {m}.", "{n} hurt {his} foot before the game. : hurt",
         "{His} {r} came to watch. : kin"],
        ["trained : {n} played very well. : won", "{n} won the game. : won",
         "{n} lost the game. : lost", "hurt : {n} had to stay on the bench. : bench",
         "hurt : {n} played with the bad foot. : lost pain", "{m} cheated in the game. : cheat",
         "kin : {n} saw {his} {r} and played better. : won seen"],
        ["won : {n} got a prize for {s}.", "lost : {n} was {_sad} but wanted to play again.",
         "bench : The team won and {n} was glad.", "pain : The foot hurt for a week.",
         "cheat : {n} was angry at {m}.", "seen : {His} {r} was very proud.",
         "lost|cheat : {n} did not play {s} any more."],
    ),
)  # fmt: skip

TRIP: Final = Plot(
    "the trip",
    {"n": w.NAMES, "m": w.NAMES, "p": w.PLACES, "q": w.PLACES, "v": w.VEHICLES, "c": w.COLORS},
    (
        ["{n} took a trip to the {p}.", "{n} and {m} took a trip to the {p}. : two"],
        ["They went in a {c} {v}.", "The {c} {v} was full of bags."],
        ["On the way the {c} {v} broke down. : broke", "On the way they lost the map. : lost",
         "It was a long and hot way."],
        ["broke : A farmer fixed the {c} {v}. : fixed", "broke : They walked to the {p}. : walked",
         "lost : They asked a man for the way. : way", "lost : They came to the {q}. : wrong",
         "!broke !lost : They stopped at the {q} and swam. : swam",
         "two : {m} was sick in the {c} {v}. : sick",
         "!broke !lost : They sang songs in the {c} {v}. : sang"],
        ["fixed : The {c} {v} drove well again.", "walked : They were tired at the {p}.",
         "way : They were at the {p} in the {_time}.",
         "wrong : They stayed at the {q} and liked it.",
         "swam : They did not want to leave the {q}.", "sick : {n} gave {m} some water.",
         "sang|fixed : They came to the {p} and were {_happy}."],
    ),
)  # fmt: skip

CLIMB: Final = Plot(
    "up the tree",
    {"n": w.NAMES, "m": w.NAMES, "t": ("kite", "ball", "balloon", "plane"), "c": w.COLORS, "p": w.PLACES,
     "r": w.RELATIVES},
    (
        ["{n} played with a {c} {t} at the {p}.", "{n} took a {c} {t} to the {p}."],
        ["The wind was strong.", "{m} played with {him}. : friend"],
        ["The {c} {t} flew into a tall tree. : tree", "The {c} {t} flew over a wall. : wall"],
        ["tree : {n} climbed the tree. : climbed", "tree : {n} fell out of the tree. : fell",
         "tree : {His} {r} came with a ladder. : ladder",
         "wall : {n} jumped over the wall. : climbed", "wall : A man threw the {c} {t} back. : man",
         "friend : {m} went to get the {c} {t}. : friendly", "{n} could not reach the {c} {t}. : lost"],
        ["climbed : {n} came back with the {c} {t}.", "fell : {n} broke {his} arm.",
         "ladder : {n} held the ladder for {his} {r}.", "man : {n} thanked the man.",
         "friendly : {n} thanked {m} for the {c} {t}.", "lost : {n} went home with no {t}.",
         "ladder|man|friendly|climbed : {n} was {_happy} to play again."],
    ),
)  # fmt: skip

CAMP: Final = Plot(
    "camping",
    {"n": w.NAMES, "m": w.NAMES, "p": ("lake", "forest", "farm", "beach"), "d": w.DISHES, "a": ("bear", "fox", "wolf", "deer")},
    (
        ["{n} and {m} camped at the {p}.", "{n} and {m} slept in a tent at the {p}."],
        ["They made a fire and cooked {d}. : fire", "It was dark and cold."],
        ["At night they heard a noise. : noise", "At night it started to rain. : rain"],
        ["noise : A {a} came near the tent. : animal",
         "noise fire : A {a} ate the {d}. : animal eaten",
         "noise : {m} was only eating the {d}. : joke",
         "rain : The tent was full of water. : flood",
         "rain : They sat in the car all night. : car",
         "rain fire : The rain put out the fire. : cold"],
        ["animal : They ran away from the {a}.", "eaten : They had no food in the morning.",
         "joke : {n} laughed and ate the {d} too.", "flood : They went home wet and tired.",
         "car : In the morning they drove home.", "cold : They were cold with no fire.",
         "joke|animal : {n} told the story at school."],
    ),
)  # fmt: skip

SNOW: Final = Plot(
    "snow",
    {"n": w.NAMES, "m": w.NAMES, "k": w.CLOTHES, "c": w.COLORS, "p": w.PLACES, "f": ("carrot", "stone", "hat", "stick")},
    (
        ["It snowed all {_time}.", "There was snow at the {p}."],
        ["{n} went out with {m}.", "{n} put on a {c} {k} and went out. : dressed"],
        ["They made a snowman. : man", "They threw snow at the house. : threw",
         "The ice on the lake was thin. : ice"],
        ["man : {n} gave the snowman a {f}. : nose",
         "man dressed : {n} put the {c} {k} on the snowman. : coat",
         "threw : {n} broke a window. : window", "threw : {m} hit {n} in the face. : hit",
         "ice : {m} fell into the cold water. : fell", "ice : {n} told {m} to stay away. : safe",
         "man : The sun came out. : sun"],
        ["nose : The snowman looked good with the {f}.", "coat : {n} was cold with no {k}.",
         "window : {n} had to pay for the window.", "hit : {n} was angry at {m}.",
         "fell : {n} pulled {m} out of the water.", "safe : They went home safe and warm.",
         "sun : The snowman was gone."],
    ),
)  # fmt: skip

OUTDOOR_PLOTS: Final = (RAIN, LATE, FISHING, GAME, TRIP, CLIMB, CAMP, SNOW)
