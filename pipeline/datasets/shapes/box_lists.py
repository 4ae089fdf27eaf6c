"""What the archives of tracking data sets do not say themselves: official test lists, and which
part of a video a sequence is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Span = tuple[str, int, int]
"""The video of a sequence, and its first and last frame there, counted from 1."""

_LASOT_TEST = """
airplane 1 9 13 15; basketball 1 6 7 11; bear 2 4 6 17; bicycle 2 7 9 18; bird 2 3 15 17; boat
3 4 12 17; book 3 10 11 19; bottle 1 12 14 18; bus 2 5 17 19; car 2 6 9 17; cat 1 3 18 20;
cattle 2 7 12 13; spider 14 16 18 20; coin 3 6 7 18; crab 3 6 12 18; surfboard 4 5 8 12; cup 1
4 7 17; deer 4 8 10 14; dog 1 7 15 19; guitar 3 8 10 16; person 1 5 10 12; pig 2 10 13 18;
rubicCube 1 6 14 19; swing 10 14 17 20; drone 2 7 13 15; pool 3 7 12 15; rabbit 10 13 17 19;
racing 10 15 16 20; robot 1 5 8 19; sepia 6 8 13 16; sheep 3 5 7 9; skateboard 3 8 16 19; tank
6 9 14 16; tiger 4 6 12 18; train 1 7 11 20; truck 3 6 7 16; turtle 5 8 9 16; umbrella 2 9 17
19; yoyo 7 15 17 19; zebra 10 14 16 17; elephant 1 12 16 18; goldfish 3 7 8 10; hat 1 2 5 18;
kite 4 6 10 15; motorcycle 1 3 9 18; mouse 1 8 9 17; flag 2 3 5 9; frog 3 4 9 20; gametarget 1
2 7 13; hand 2 3 9 16; helmet 5 11 13 19; licenseplate 6 12 13 15; electricfan 1 10 18 20;
chameleon 3 6 11 20; crocodile 3 4 10 14; gecko 1 5 16 19; fox 2 3 5 20; giraffe 2 10 13 15;
gorilla 4 6 9 13; hippo 1 7 9 20; horse 1 4 12 15; kangaroo 2 5 11 14; leopard 1 7 16 20; lion
1 5 12 20; lizard 1 3 6 13; microphone 2 6 14 16; monkey 3 4 9 17; shark 2 3 5 6; squirrel 8
11 13 19; volleyball 1 13 18 19
"""
"""Class and numbers; the 280 test sequences of protocol II, as visionml/pytracking's
lasotdataset.py lists them. All others are for training."""

_UAV123_PARTS = """
bird1 1-253 775-1477 1573-2437; car1 1-751 751-1627 1627-2629; car16 1-415 415-1993; car6
1-487 487-1807 1807-2953 2953-3925 3925-4861; car8 1-1357 1357-2575; group1 1-1333 1333-2515
2515-3925 3925-4873; group2 1-907 907-1771 1771-2683; group3 1-1567 1567-2827 2827-4369
4369-5527; person12 1-601 601-1621; person14 1-847 847-1813 1813-2923; person17 1-1501
1501-2347; person19 1-1243 1243-2791 2791-4357; person2 1-1189 1189-2623; person4 1-1501
1501-2743; person5 1-877 877-2101; person7 1-1249 1249-2065; person8 1-1075 1075-1525; truck4
1-577 577-1261; uav1 1-1555 1555-2377 2473-3469
"""
"""Video and the first and last frames of its parts, video_1, video_2 and so on; as
visionml/pytracking's uavdataset.py and UAV123's configSeqs.m have them."""


def _lasot_test() -> frozenset[str]:
    entries = (entry.split() for entry in _LASOT_TEST.split(";"))
    return frozenset(f"{name}-{number}" for name, *numbers in entries for number in numbers)


def _uav123_parts() -> dict[str, Span]:
    spans: dict[str, Span] = {}
    for video, *parts in (entry.split() for entry in _UAV123_PARTS.split(";")):
        for number, part in enumerate(parts, start=1):
            first, _, last = part.partition("-")
            spans[f"{video}_{number}"] = video, int(first), int(last)
    return spans


OFFICIAL_TEST: Mapping[str, frozenset[str]] = {"lasot": _lasot_test()}
"""Preset -> the sequences that are its test set; all others are `train`."""

GROUPS: Mapping[str, re.Pattern[str]] = {
    "mot": re.compile(r"(MOT17-\d\d)-(?:DPM|FRCNN|SDP)"),
    "trackingnet": re.compile(r"(.{11})_\d+"),
}
"""Preset -> the whole name of a sequence, with the part that several have in common: MOT17 has
every video three times, for three detectors, and TrackingNet cut several sequences from one YouTube
video."""

SPANS: Mapping[str, Mapping[str, Span]] = {
    # got-10k/toolkit otb.py: the sequences of which only a part is annotated.
    "otb": {
        "David": ("David", 300, 770),
        "Diving": ("Diving", 1, 215),
        "Football1": ("Football1", 1, 74),
        "Freeman3": ("Freeman3", 1, 460),
        "Freeman4": ("Freeman4", 1, 283),
    },
    "uav123": _uav123_parts(),
}
"""Preset -> sequence -> its span; capitals do not count."""
