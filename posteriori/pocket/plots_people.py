"""Plots between people: gifts, tests, money, quarrels, illness, work, music.

A line reads ``needs : sentence : gives``; `plot.Line` explains the notation.
"""

from __future__ import annotations

from typing import Final

from posteriori.pocket import world as w
from posteriori.pocket.plot import Plot

GIFT: Final = Plot(
    "gift",
    {"n": w.NAMES, "m": w.NAMES, "g": w.GIFTS, "h": w.GIFTS, "c": w.COLORS, "r": w.RELATIVES},
    (
        ["{n} needed a gift for {his} {r}.", "{n} wanted to give {his} {r} a gift."],
        ["{He} saw a {c} {g} in a shop.", "{He} liked a {c} {g} at the market."],
        ["{He} did not have much money. : poor", "{He} bought the {c} {g} and went home. : bought",
         "{m} wanted the {c} {g} too. : rival"],
        ["poor : {n} worked for {m} to get money. : earned",
         "poor : {n} made a {h} at home. : made",
         "bought : {n} dropped the {c} {g} on the way. : broke",
         "bought : {n} put the {c} {g} in a box. : box",
         "rival : {m} was faster and bought the {c} {g}. : gone",
         "rival : {m} let {him} have the {c} {g}. : kind",
         "poor|rival : {n} bought a cheap {h}. : made"],
        ["earned : {n} bought the {c} {g} for {his} {r}.", "made : {His} {r} loved the {h}.",
         "broke : {n} was {_sad} and had no gift.", "box : {His} {r} opened the box and smiled.",
         "gone : {n} looked for a {h} in the next shop.",
         "kind : {n} thanked {m} and paid for the {c} {g}.",
         "earned|kind|box : {His} {r} put the {c} {g} on the table."],
    ),
)  # fmt: skip

TEST: Final = Plot(
    "the test",
    {"n": w.NAMES, "m": w.NAMES, "s": w.SUBJECTS, "r": w.RELATIVES, "t": w.SUBJECTS},
    (
        ["{n} had a {s} test on {_day}.", "{n} was bad at {s}."],
        ["{He} did not like to study.", "{He} was {_sad} about the {s} test."],
        ["{He} studied {s} with {m}. : studied helper", "{He} studied all {_time}. : studied",
         "{He} played games and did not study. : lazy", "{He} forgot about the test. : lazy"],
        ["studied : The {s} test was easy. : passed",
         "studied : {n} was sick on the day of the test. : sick",
         "lazy : The {s} test was too hard. : failed",
         "lazy : {n} looked at the paper of {m}. : cheated",
         "studied : The test was about {t} and not {s}. : wrong failed",
         "lazy : Luckily the test was about {t}. : lucky"],
        ["passed : {n} passed the {s} test.",
         "helper passed : {n} thanked {m} for the help with {s}.",
         "sick : {n} had to take the test later.", "failed : {n} failed the test.",
         "cheated : The teacher saw it and was angry.", "wrong : {n} had studied {s} for nothing.",
         "lucky : {n} was good at {t} and passed.", "passed|lucky : {His} {r} was proud."],
    ),
)  # fmt: skip

MONEY: Final = Plot(
    "found money",
    {"n": w.NAMES, "m": w.NAMES, "p": w.PLACES, "b": ("bag", "wallet", "purse", "box"), "o": w.GIFTS, "c": w.COLORS},
    (
        ["{n} found a {c} {b} at the {p}.", "{n} saw a {c} {b} on the road to the {p}."],
        ["The {b} was full of money.", "There was a lot of money in the {b}."],
        ["The name of {m} was in it. : name", "There was no name in it. : none"],
        ["name : {n} called {m} on the phone. : called",
         "name : {n} took the {c} {b} to the house of {m}. : returned",
         "none : {n} gave the {c} {b} to the police. : police", "{n} kept the money. : kept",
         "{n} bought a {o} with the money. : kept spent"],
        ["called : {m} came to the {p} for the {c} {b}.",
         "returned : {m} was {_happy} and gave {n} some money.",
         "police : The police found the man who lost the {c} {b}.",
         "kept : {n} felt bad about it at night.", "spent : {n} looked at the {o} and felt bad.",
         "called|returned : {m} thanked {n} for the {c} {b}."],
    ),
)  # fmt: skip

SICK: Final = Plot(
    "sick",
    {"n": w.NAMES, "m": w.NAMES, "d": w.DISHES, "p": w.PLACES, "x": ("head", "stomach", "tooth", "back")},
    (
        ["{n} woke up with pain in {his} {x}.", "The {x} of {n} hurt all {_time}."],
        ["{He} had eaten too much {d}. : ate", "{He} had worked too much at the {p}."],
        ["{He} wanted to go to the {p} with {m}. : plan", "{He} was afraid of the doctor. : fear"],
        ["{n} stayed in bed. : rest", "fear : {n} went to the doctor {_how}. : doctor",
         "plan : {n} went to the {p} with the bad {x}. : worse", "{m} made tea for {n}. : tea",
         "fear : {n} did not go to the doctor. : worse",
         "plan : {m} came to {n} with a game. : visit"],
        ["rest : The next day the {x} was better.",
         "doctor : The doctor was nice and helped the {x}.", "worse : The {x} hurt more and more.",
         "tea : The tea of {m} was good and {n} slept.", "visit : {n} and {m} played in bed.",
         "rest ate : {n} never ate so much {d} again."],
    ),
)  # fmt: skip

QUARREL: Final = Plot(
    "quarrel",
    {"n": w.NAMES, "m": w.NAMES, "o": w.THINGS, "t": w.TOYS, "d": w.DISHES, "c": w.COLORS},
    (
        ["{n} and {m} were friends.", "{n} and {m} lived in the same house."],
        ["{m} took the {c} {o} of {n}. : took", "{m} broke the {c} {t} of {n}. : broke"],
        ["{n} was angry and shouted.", "{n} did not talk to {m} for a week."],
        ["took : {m} gave the {c} {o} back. : back", "broke : {m} fixed the {c} {t}. : fixed",
         "{m} cooked {d} for {n}. : food", "{m} wrote a letter to {n}. : letter",
         "{n} left and did not come back. : end", "took : {m} sold the {c} {o}. : sold end"],
        ["back : {n} put the {c} {o} in a safe place.", "fixed : {n} played with the {c} {t} again.",
         "food : They ate the {d} and were friends again.",
         "letter : {n} read the letter and cried.", "end : They were not friends any more.",
         "sold : {n} never got the {c} {o} back.",
         "back|fixed|letter : {n} and {m} were friends again."],
    ),
)  # fmt: skip

MUSIC: Final = Plot(
    "music",
    {"n": w.NAMES, "m": w.NAMES, "i": w.INSTRUMENTS, "r": w.RELATIVES, "p": w.PLACES},
    (
        ["{n} wanted to learn the {i}.", "{n} got a {i} from {his} {r}."],
        ["{He} practiced every {_time}. : practiced", "{He} did not practice much. : lazy"],
        ["There was a show at the {p}.", "{m} asked {him} to play at the {p}. : asked"],
        ["practiced : {n} played the {i} very well. : well",
         "lazy : {n} played the {i} very badly. : badly", "{n} was afraid and ran away. : ran",
         "The {i} broke before the show. : broke",
         "asked : {n} and {m} played together. : together",
         "{n} forgot the {i} at home. : broke forgot"],
        ["well : People at the {p} liked the {i}.", "badly : People laughed at {n}.",
         "ran : {n} was {_sad} to miss the show.", "broke : {n} sang and did not play the {i}.",
         "together : {m} was {_happy} to play with {n}.",
         "forgot : {His} {r} brought the {i} to the {p}.",
         "badly|ran : {n} wanted to practice the {i} more."],
    ),
)  # fmt: skip

JOB: Final = Plot(
    "new job",
    {"n": w.NAMES, "m": w.NAMES, "j": w.JOBS, "k": w.CLOTHES, "c": w.COLORS, "v": w.VEHICLES},
    (
        ["{n} wanted to be a {j}.", "{n} looked for a job as a {j}."],
        ["{He} put on a {c} {k} and went to talk to {m}.", "{m} asked {him} to come on {_day}."],
        ["{He} came too late. : late", "{He} talked very well. : well",
         "{He} had coffee on the {k}. : stain"],
        ["late : {m} was angry. : no", "late : {m} gave {him} a second chance. : chance",
         "well : {m} liked {him}. : yes", "well : There was no work for a {j}. : no none",
         "stain : {m} laughed and was nice. : yes", "stain : {n} hid it with {his} hand. : hid"],
        ["no : {n} did not get the job.", "chance : The next day {n} came early.",
         "yes : {n} got the job and was a good {j}.", "none : {m} told {him} to be a driver.",
         "hid : {m} did not see the {k}.", "yes|chance : {n} bought a {v} with the first money."],
    ),
)  # fmt: skip

PAINTING: Final = Plot(
    "painting",
    {"n": w.NAMES, "m": w.NAMES, "c": w.COLORS, "e": w.COLORS, "r": w.ROOMS, "d": w.PETS},
    (
        ["{n} painted the {r} {c}.", "{n} wanted to paint the {r} {c}."],
        ["{m} came to help. : helper", "It was a lot of work."],
        ["The {d} walked into the paint. : pet", "There was not enough {c} paint. : short"],
        ["pet : There were {c} feet all over the {r}. : feet",
         "pet : {n} washed the {d}. : washed", "short : {n} bought more {c} paint. : done",
         "short : {n} used {e} paint too. : mixed", "helper : {m} cleaned the floor. : clean",
         "helper : {m} fell into the paint. : fell"],
        ["feet : {n} had to clean the floor of the {r}.", "washed : The {d} was wet and angry.",
         "done : The {r} was {c} and nice.", "mixed : The {r} was {c} and {e}.",
         "clean : {n} thanked {m} and gave {m} tea.", "fell : {m} was {c} from head to foot.",
         "done|mixed|washed : {n} was {_happy} with the {r}."],
    ),
)  # fmt: skip

PEOPLE_PLOTS: Final = (GIFT, TEST, MONEY, SICK, QUARREL, MUSIC, JOB, PAINTING)
