"""Draws a small person re-identification data set on disk: pictures in the layout and with the file names of
Market-1501, or tracklets (the pictures of one walk past one camera) in those of MARS.

    python -m tools.synthetic                       # data/synthetic: 300 people to train on, 100 to test
    python -m tools.synthetic --video               # data/synthetic-video: tracklets of 100 people, of 50 to test
    python -m tools.synthetic --name tiny --train-ids 8 --test-ids 4 --distractors 6 --junk 3 --seed 1

Nobody in it exists. A person is an articulated 2.5-D figure (3-D joints, every body part a shaded tube on the image
plane, with the pattern of the cloth wrapped around it); six cameras differ in colour, exposure, sharpness, view,
background, boxes and occlusion. The set is made so that colour alone does not solve it: clothes come from one small
wardrobe, some people wear the same colours and differ in pattern, cut, hair, hat, bag and build.

In a tracklet the person walks: gait, place in the box, size, light and focus change smoothly from picture to picture,
the detector's box jumps, and now and then something passes in front. No picture shows all, so pooling several helps.

    python -m tools.synthetic --name town --camera-seed 1                        # the same people elsewhere
    python -m tools.synthetic --name many --train-ids 1500 --sites 100           # under 600 cameras

Every picture depends on (seed, pid, camera, shot) alone, that of a tracklet on (seed, pid, camera, tracklet, frame).
The same seed therefore gives the same files for any number of processes, and person k looks the same in a set of 10
and in a set of 500. Odd pids train, even pids test. --camera-seed draws other cameras than the six, which differ more
from one another; with --sites, camera 1 of one person is not that of another, as where several sets are put together.
"""

import argparse
import functools
import hashlib
import io
import json
import math
import multiprocessing
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import images

WIDTH, HEIGHT = 64, 128  # of the files, as in Market-1501
SCALE = 2  # supersampling of the drawing
VERSION_FOLDER = "Market-1501-v15.09.15"
SPLITS = ("bounding_box_train", "bounding_box_test", "query")
VIDEO_PARTS = ("bbox_train", "bbox_test", "info")
STAMP = "synthetic.json"  # what the set was drawn with
MAX_IDS = 4999  # of odd or of even pids that fit into four digits
MAX_SITES = 1000
MAX_TRACKLETS, MAX_PICTURES = 9999, 999_999  # of distractors or of junk: file names have four digits, and six
JUNK_SHOT = 1000  # first shot of junk, beyond those of real visits
NUMBERS = {  # name -> (what it counts, default for a set of pictures, and of tracklets)
    "num_train_ids": ("people to train on", 300, 100),
    "num_test_ids": ("people to test on", 100, 50),
    "num_distractors": ("in the gallery of nobody asked for (pid 0)", 150, 30),
    "num_junk": ("in the gallery and ignored by scoring (pid -1)", 50, 10),
}
README = """Synthetic person re-identification data set, drawn by synthetic.py: nobody in it exists.
Layout and file names are those of Market-1501: 0002_c1s1_000451_01.jpg is person 2, camera 1, sequence 1, frame 451.
bounding_box_train: odd pids. query and bounding_box_test: even pids; 0000 are distractors (strangers, background,
parts of people), -1 is junk (bad boxes around people of the test) that scoring ignores.
"""
VIDEO_README = """Synthetic video person re-identification data set, drawn by synthetic.py: nobody in it exists.
Layout and file names are those of MARS: 0002C1T0001F012.jpg is person 2, camera 1, tracklet 1, frame 12.
bbox_train: odd pids. bbox_test: even pids; 0000 are distractors (strangers, background, parts of people), 00-1 is junk
(bad boxes around people of the test) that scoring ignores. info: the file names, and the tracklets as rows of (first
line, last line, pid, camera) in them, all counted from 1; query_IDX holds the rows of tracks_test_info to ask for.
"""

# Difficulty. The first three are factors: 0 switches the effect off, 1 is harsh.
CAMERA_STRENGTH = 0.3  # how far a camera is from a neutral one: colour, gamma, contrast, sharpness, noise
SHOT_STRENGTH = 0.35  # how far a single shot is from its camera: exposure and colour
BOX_JITTER = 0.7  # detector boxes: shifted, loose, tight
OCCLUSION_RATE = 0.15  # share of shots with something in front of the person
LOOKALIKES = 3  # people whose numbers follow each other and who wear the same colours
TRAIN_SHOTS, TEST_SHOTS = (1, 3), (3, 5)  # least and most pictures of a person in one camera
TRAIN_TRACKS, TEST_TRACKS = (1, 2), (2, 3)  # the same of tracklets
DRIFT = 1.0  # how far light, view and focus wander within a tracklet: a factor as above
PASSING_RATE = 0.5  # share of walks that meet something in front, should the tracklet last so long
MISS_RATE = 0.12  # share of a tracklet's pictures where the detector's box is far off

PASSER_BY, STRANGER = 10_000, 20_000  # first pids, beyond those of the files, of people in front and of distractors
# What a generator is for: the first number of its key
LOOK, GROUP, ROUTE, VISIT, SHOT, SCENE, LENGTH, WALK, FRAME, LENS, CAMERA = range(11)


def rgb(*codes):
    return np.array([[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in codes], np.float32)


TOPS = rgb("1b1b20", "4a4c52", "9a9ca0", "eceae4", "1e2c5a", "2f66b5", "8fb8de", "b3202c", "6a1a2c", "2c7a46",
           "59602f", "cdb78c", "e2c22f", "d987a8", "6c4326", "6b4596", "dd6f23", "2a9a9a")  # fmt: skip
BOTTOMS = rgb("1a1a1f", "45464b", "7d7f85", "1f2848", "3c5c8c", "7f9dbf", "b59f77", "e2ddd0", "5a3b25", "4d5330")
SKINS = rgb("f3cfb4", "e2b08c", "c68b62", "9a633f", "6b4229", "4a2d1e")
HAIRS = rgb("17120f", "3a2417", "6b4423", "a8763a", "d9b979", "8f3b1c", "9a9a9a", "dcdcdc")
SHOES = rgb("151515", "ececec", "6b4226", "a02a2a", "38507a", "8b8b8b")
BAGS = rgb("17171a", "7c2b2b", "26406e", "8a6a3c", "d8d4c8", "3d6b45", "c9662a", "c2b02c")


class Camera(NamedTuple):
    gain: tuple  # of red, green, blue
    gamma: float
    contrast: float
    saturation: float
    blur: float  # standard deviation, pixels of the file
    noise: float  # standard deviation, of 255
    quality: int  # JPEG
    detail: float  # share of the pixels that the sensor resolves
    light: tuple  # towards the light: right, down, to the viewer
    yaw: float  # usual view: 0 people walk towards the camera, pi/2 to the right
    pitch: float  # looks down by this angle
    zoom: float  # height of the figure in the box
    scenes: str  # names in SCENES, one per sequence


CAMERAS = (
    Camera((1.12, 1.00, 0.84), 0.95, 1.05, 1.10, 0.4, 4, 90, 1.0, (-0.6, -0.5, 0.6), 0.2, 0.05, 0.90, "street shops"),
    Camera((0.82, 0.95, 1.16), 1.20, 0.90, 0.75, 0.7, 5, 80, 0.8, (0.5, -0.6, 0.6), 3.0, 0.12, 0.86, "plaza lawn"),
    Camera((0.90, 1.10, 0.88), 1.00, 0.75, 0.85, 0.5, 7, 85, 0.9, (0.0, -0.9, 0.4), 1.5, 0.20, 0.92, "bricks shops"),
    Camera((1.06, 1.02, 1.05), 0.70, 0.85, 0.80, 0.3, 3, 92, 1.0, (0.7, -0.3, 0.6), -0.4, 0.08, 0.84, "lawn road"),
    Camera((0.70, 0.72, 0.84), 1.00, 1.05, 0.90, 0.6, 9, 70, 0.8, (-0.7, -0.2, 0.5), -1.5, 0.05, 0.90, "road bricks"),
    Camera((1.08, 0.90, 0.97), 1.05, 0.95, 1.05, 0.5, 6, 60, 0.5, (-0.3, -0.7, 0.6), 2.4, 0.28, 0.88, "plaza street"),
)


def generator(*key):
    return np.random.default_rng(key)


@functools.cache
def camera_of(number):
    """The camera of that number: the first are CAMERAS, all others are drawn, and differ more from one another."""
    if number < len(CAMERAS):
        return CAMERAS[number]
    rng = generator(CAMERA, number)
    light = rng.normal((0, -0.5, 0.6), (0.5, 0.25, 0.1))
    return Camera(
        gain=tuple(np.exp(rng.normal(0, 0.5) + rng.normal(0, 0.3, 3))),
        gamma=np.exp(rng.normal(0, 0.4)),
        contrast=np.exp(rng.normal(-0.1, 0.3)),
        saturation=np.exp(rng.normal(-0.2, 0.5)),
        blur=rng.uniform(0.2, 2.5),
        noise=rng.uniform(2, 14),
        quality=int(rng.integers(55, 95)),
        detail=rng.uniform(0.2, 1),
        light=tuple(light / np.linalg.norm(light)),
        yaw=rng.uniform(-np.pi, np.pi),
        pitch=rng.uniform(0, 0.4),
        zoom=rng.uniform(0.78, 0.94),
        scenes=" ".join(rng.choice(list(SCENES), 2)),
    )


# ---------------------------------------------------------------------------------------------------------------------
# People


def random_look(seed, pid):
    """What a person wears and how they are built; lengths in units of the body's height."""
    group = generator(GROUP, seed, pid % 2, (pid - 1) // 2 // LOOKALIKES)
    top, bottom = TOPS[group.integers(len(TOPS))], BOTTOMS[group.integers(len(BOTTOMS))]
    rng = generator(LOOK, seed, pid)
    choose = rng.choice
    look = SimpleNamespace(
        top=top,
        bottom=bottom,
        second=TOPS[rng.integers(len(TOPS))],
        skin=SKINS[rng.integers(len(SKINS))],
        hair_colour=HAIRS[choose(len(HAIRS), p=(0.28, 0.24, 0.16, 0.08, 0.08, 0.06, 0.06, 0.04))],
        shoe=SHOES[rng.integers(len(SHOES))],
        bag_colour=BAGS[rng.integers(len(BAGS))],
        hat_colour=BAGS[rng.integers(len(BAGS))],
        legs=rng.uniform(0.46, 0.53),
        shoulders=rng.uniform(0.085, 0.115),
        build=rng.uniform(0.82, 1.3),
        head=rng.uniform(0.95, 1.12),
        pattern=choose(list(PATTERNS), p=PATTERN_ODDS),
        period=rng.uniform(0.055, 0.1),
        upper=choose(("tee", "shirt", "jacket", "coat", "vest"), p=(0.32, 0.24, 0.24, 0.12, 0.08)),
        lower=choose(("trousers", "shorts", "skirt", "long skirt", "leggings"), p=(0.42, 0.2, 0.16, 0.08, 0.14)),
        hair=choose(("bald", "short", "bob", "long", "tail", "afro"), p=(0.08, 0.36, 0.16, 0.2, 0.12, 0.08)),
        hat=choose(("none", "cap", "beanie", "brim", "hood"), p=(0.66, 0.14, 0.08, 0.06, 0.06)),
        bag=choose(("none", "backpack", "shoulder", "hand"), p=(0.3, 0.28, 0.22, 0.2)),
        bag_size=rng.uniform(0.8, 1.25),
        side=choose((-1, 1)),
        glasses=rng.random() < 0.15,
        beard=rng.random() < 0.15,
        scarf=rng.random() < 0.1,
        boots=rng.random() < 0.2,
    )
    if np.abs(look.second - look.top).sum() < 0.6:  # a pattern has to show
        look.second = TOPS[3] if look.top.mean() < 0.5 else TOPS[0]
    return look


def wrap(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def edge(x):
    """A step at 0 that is soft over a few pixels, so that patterns do not alias."""
    return np.clip(0.5 + 2.5 * x, 0, 1)


def mix(first, second, share):
    """Colours first and second (..., 3) with this share (H, W) of the second."""
    return first + share[..., None] * (second - first)


# name: share of the second colour at azimuth phi (0 = front), height v (body heights down from the top)
PATTERNS = {
    "plain": lambda phi, v, period: 0 * phi,
    "stripes": lambda phi, v, period: edge(np.sin(2 * np.pi * v / period)),
    "uprights": lambda phi, v, period: edge(np.sin(phi * 0.7 / period)),
    "checks": lambda phi, v, period: (edge(np.sin(phi * 0.6 / period)) + edge(np.sin(2 * np.pi * v / period))) / 2,
    "yoke": lambda phi, v, period: edge(8 * (0.16 - v) * 4),
    "band": lambda phi, v, period: edge(30 * (0.04 - np.abs(v - 0.16))),
    "print": lambda phi, v, period: edge(
        4 * (1 - (np.minimum(np.abs(wrap(phi)), np.abs(wrap(phi - np.pi))) / 0.6) ** 2 - ((v - 0.13) / 0.055) ** 2)
    ),
    "dots": lambda phi, v, period: edge(
        3 * np.sin(phi * 0.7 / period) * np.sin(2 * np.pi * v / (1.3 * period)) - 0.5
    ),
    "sides": lambda phi, v, period: edge(4 * (np.abs(np.sin(phi)) - 0.75)),
    "halves": lambda phi, v, period: edge(6 * np.sin(phi)),
}
PATTERN_ODDS = (0.2, 0.14, 0.08, 0.12, 0.1, 0.08, 0.1, 0.06, 0.06, 0.06)


def cloth(look, yaw, length, trunk=False):
    """Texture of a sleeve or of the trunk's clothes: colour at (u across in -1..1, t along in 0..1)."""

    def texture(u, t):
        phi = np.arcsin(u) - yaw
        share = PATTERNS[look.pattern](phi, t * length, look.period)
        colour = mix(look.top, look.second, share)
        if trunk and look.upper == "jacket":  # open in front
            colour = mix(colour, look.second * 0.9 + 0.05, edge(5 * (0.3 + 0.25 * t - np.abs(wrap(phi)))))
        if trunk and look.bag == "backpack":
            strap = edge(9 * (0.16 - np.abs(np.abs(wrap(phi)) - 0.6))) * edge(30 * (0.24 - t * length))
            colour = mix(colour, look.bag_colour, strap)
        if trunk and look.bag == "shoulder":  # one strap from the shoulder across chest and back
            strap = edge(7 * (0.14 - np.abs(np.sin(phi) * look.side + 0.8 - 5 * t * length)))
            colour = mix(colour, look.bag_colour, strap)
        return colour

    return texture


def face(look, yaw):
    """Texture of the head: skin in front below the hairline, else hair; eyes, glasses, beard."""
    hairline, width = (0.3, 1.05) if look.hair != "bald" else (-1, 9)

    def texture(u, t):
        phi = wrap(np.arcsin(u) - yaw)
        skin = edge(5 * (width - np.abs(phi) + 0.5 * (t > 0.75))) * edge(12 * (t - hairline))
        skin = np.maximum(skin, edge(10 * (t - 0.86)))  # the chin's underside
        eyes = edge(8 * (0.16 - np.abs(np.abs(phi) - 0.38))) * edge(20 * (0.05 - np.abs(t - 0.5)))
        if look.glasses:
            eyes = np.maximum(eyes, edge(6 * (0.75 - np.abs(phi))) * edge(20 * (0.07 - np.abs(t - 0.5))))
        if look.beard:
            eyes = np.maximum(eyes, 0.7 * edge(4 * (0.9 - np.abs(phi))) * edge(14 * (t - 0.74)))
        return mix(look.hair_colour, look.skin, skin) * (1 - 0.8 * eyes[..., None])

    return texture


def limb_points(look, pose):
    """3-D joints (x to the person's left, y up, z forward; soles at y = 0) of a walking figure."""
    joint = {}
    legs, stride = look.legs, pose.stride
    for sign in (-1, 1):
        swing = stride * np.sin(pose.phase) * sign
        bend = 0.15 + 1.2 * stride * max(0.0, -np.cos(pose.phase) * sign)
        thigh, shin = swing + 0.3 * bend, swing - 0.7 * bend
        hip = np.array([sign * 0.042 * look.build, legs, 0.0])
        knee = hip + 0.5 * legs * np.array([0, -np.cos(thigh), np.sin(thigh)])
        ankle = knee + 0.43 * legs * np.array([0, -np.cos(shin), np.sin(shin)])
        toe = ankle + np.array([sign * 0.015, -0.018, 0.075])
        shoulder = np.array([sign * (look.shoulders * (0.7 + 0.3 * look.build) - 0.016), legs + 0.28, 0.0])
        lift = pose.lift if sign == pose.lifted else 0.0
        arm, splay = -0.8 * swing + 0.35 * lift, 0.12 + 0.1 * look.build * pose.splay
        elbow = shoulder + 0.15 * np.array([sign * splay, -np.cos(arm), np.sin(arm)])
        fore = arm + 0.25 + 1.6 * lift
        wrist = elbow + 0.14 * np.array([sign * 0.3 * (splay - 0.3 * lift), -np.cos(fore), np.sin(fore)])
        hand = wrist + 0.25 * (wrist - elbow)
        joint[sign] = SimpleNamespace(
            hip=hip, knee=knee, ankle=ankle, toe=toe, shoulder=shoulder, elbow=elbow, wrist=wrist, hand=hand
        )
    floor = min(joint[sign].toe[1] for sign in (-1, 1)) - 0.015
    for part in (vars(joint[-1]), vars(joint[1])):
        for point in part.values():
            point[1] -= floor
    return joint, -floor


def oval(yaw, x, z):
    """Half-width on the picture of an upright cylinder with half-axes x (sideways) and z (depth)."""
    return np.sqrt((np.asarray(x) * np.cos(yaw)) ** 2 + (np.asarray(z) * np.sin(yaw)) ** 2)


ROUND = np.sqrt(1 - np.linspace(-1, 1, 15) ** 2)  # profile of an ellipsoid
BOX = np.array([0.75, 0.95, 1, 1, 1, 0.95, 0.8])  # of a bag


# Each *_parts yields tubes: (order, start, end, half-widths, texture, cap). Order is added to the depth of the middle:
# what is larger is painted later. cap: see paint_tube.


def leg_parts(look, joint):
    b = look.build
    bare = look.lower in ("shorts", "skirt", "long skirt")
    tight = 0.85 if look.lower == "leggings" else 1.08
    for sign in (-1, 1):
        j = joint[sign]
        colour, w = (look.skin, b) if bare else (look.bottom, b * tight)
        yield -1.0, j.knee, j.ankle, w * np.array([0.042, 0.044, 0.036, 0.030]), colour, 1
        yield -0.99, j.hip, j.knee, w * np.array([0.062, 0.058, 0.050, 0.044]), colour, 1
        if look.lower == "shorts":
            yield -0.98, j.hip, j.hip + 0.85 * (j.knee - j.hip), b * np.array([0.066, 0.064, 0.064]), look.bottom, 9
        if look.boots:
            yield -0.97, j.knee + 0.35 * (j.ankle - j.knee), j.ankle, b * np.array([0.046, 0.042, 0.036]), look.shoe, 9
        yield -0.96, j.ankle - [0, 0.012, 0.015], j.toe, np.array([0.03, 0.03, 0.022]), look.shoe, 1


def arm_parts(look, joint, yaw):
    b = 0.6 + 0.4 * look.build
    for sign in (-1, 1):
        j = joint[sign]
        sleeve = {"tee": 0.75, "vest": 0.0}.get(look.upper, 1.0)
        loose = 1.3 if look.upper in ("jacket", "coat") else 1.12
        thick = b * np.array([0.03, 0.032, 0.027])
        yield 0.02, j.shoulder, j.elbow, thick, look.skin, 1
        yield 0.021, j.elbow, j.hand, b * np.array([0.027, 0.023, 0.018, 0.022]), look.skin, 1
        if sleeve == 1.0:
            yield 0.045, j.elbow, j.wrist, loose * b * np.array([0.03, 0.027]), cloth(look, yaw, 0.14), 1
        if sleeve:
            end = j.shoulder + sleeve * (j.elbow - j.shoulder)
            yield 0.06, j.shoulder, end, loose * b * np.array([0.031, 0.036, 0.031]), cloth(look, yaw, 0.155), 1


def trunk_parts(look, lift, yaw):
    """Hips, skirt, torso, neck."""
    top, hips = lift + look.legs + 0.325, lift + look.legs
    b, s = look.build, look.shoulders * (0.7 + 0.3 * look.build)
    hem = {"coat": -0.2, "jacket": -0.05, "vest": 0.0}.get(look.upper, -0.02)
    wide = 1.12 if look.upper in ("jacket", "coat") else 1.0
    x = np.array([0.045, s * 0.9, s, 0.088 * b, 0.08 * b, 0.084 * b, 0.09 * b]) * wide
    z = np.array([0.045, 0.06 * b, 0.07 * b, 0.072 * b, 0.068 * b, 0.07 * b, 0.074 * b]) * wide
    if look.upper == "coat":
        x, z = np.append(x, 0.098 * b), np.append(z, 0.085 * b)
    if look.upper == "vest":
        x[1] *= 0.8
    seat = oval(yaw, b * np.array([0.08, 0.088, 0.08]), 0.07 * b)
    yield -0.5, [0, hips + 0.05, 0], [0, hips - 0.035, 0], seat, look.bottom, 9
    if "skirt" in look.lower:
        end = 0.42 if look.lower == "long skirt" else 0.2
        flare = np.linspace(0.085, 0.11 if end < 0.3 else 0.12, 4) * b
        yield -0.4, [0, hips + 0.04, 0], [0, hips - end, 0], oval(yaw, flare, flare * 0.85), look.bottom, 9
    yield -0.1, [0, top + 0.05, 0.005], [0, top - 0.03, 0], np.array([0.034, 0.036]), look.skin, 1
    yield 0.0, [0, top, 0], [0, hips + hem, 0], oval(yaw, x, z), cloth(look, yaw, 0.325 - hem, trunk=True), 9
    if look.scarf:
        yield 0.03, [0, top + 0.025, 0.01], [0, top - 0.025, 0.01], np.array([0.05, 0.062, 0.055]), look.hat_colour, 1


def head_parts(look, lift, yaw):
    crown, h = lift + look.legs + 0.325 + 0.155 * look.head, 0.135 * look.head
    size = h / 0.135
    hair = look.hair_colour
    x, z = 0.05 * size, 0.058 * size
    if look.hair == "afro" and look.hat == "none":
        yield 0.035, [0, crown + 0.03, -0.015], [0, crown - h * 0.72, -0.015], 0.078 * ROUND * size, hair, 9
    yield 0.04, [0, crown, 0.008], [0, crown - h, 0.008], oval(yaw, x, z) * ROUND ** 0.8, face(look, yaw), 9
    if look.hair in ("bob", "long"):
        end = 0.115 if look.hair == "bob" else 0.22
        widths = oval(yaw, 0.062 * size, 0.042 * size) * np.array([0.7, 1, 1, 1, 0.85])
        yield 0.0, [0, crown - 0.015, -0.035], [0, crown - end * size, -0.045], widths, hair, 1.5
    if look.hair == "tail":
        yield 0.0, [0, crown - 0.04, -0.065], [0, crown - 0.2, -0.085], np.array([0.02, 0.026, 0.012]), hair, 1
    hat = look.hat_colour
    dome = oval(yaw, x * 1.1, z * 1.1)
    if look.hat in ("cap", "beanie", "brim"):
        low = 0.062 if look.hat == "beanie" else 0.05
        profile = dome * np.array([0.45, 0.8, 0.95, 1, 1])
        yield 0.06, [0, crown + 0.012, 0], [0, crown - low, 0], profile, hat, 9
    if look.hat == "cap":
        yield 0.05, [0, crown - 0.045, 0.03], [0, crown - 0.055, 0.105], np.array([0.03, 0.03, 0.02]), hat * 0.8, 1
    if look.hat == "brim":
        yield 0.065, [0, crown - 0.04, 0], [0, crown - 0.058, 0], np.array([0.1, 0.1]) * size, hat * 0.85, 9
    if look.hat == "hood":
        profile = oval(yaw, x * 1.35, z) * ROUND**0.6
        yield 0.0, [0, crown + 0.015, -0.02], [0, crown - 0.14, -0.03], profile, look.top * 0.9, 9


def bag_parts(look, joint, lift, yaw):
    top, size, colour = lift + look.legs + 0.29, look.bag_size, look.bag_colour
    if look.bag == "backpack":
        widths = oval(yaw, 0.082 * size, 0.05 * size) * BOX
        yield 0.0, [0, top + 0.01, -0.115], [0, top - 0.22 * size, -0.115], widths, colour, 9
    if look.bag == "shoulder":
        x = look.side * 0.115 * look.build
        widths = oval(yaw, 0.035 * size, 0.075 * size) * BOX
        yield 0.05, [x, top - 0.26, -0.01], [x, top - 0.26 - 0.13 * size, -0.01], widths, colour, 9
    if look.bag == "hand":
        hand = joint[look.side].hand
        widths = oval(yaw, 0.03 * size, 0.085 * size) * BOX
        yield 0.03, hand + [0, 0.01, 0], hand - [0, 0.06, 0], np.array([0.008, 0.012]), colour * 0.7, 1
        yield 0.05, hand - [0, 0.05, 0], hand - [0, 0.05 + 0.14 * size, 0], widths, colour, 9


# ---------------------------------------------------------------------------------------------------------------------
# Drawing


def paint_tube(canvas, start, end, widths, texture, cap, light):
    """Paint a tube from start to end (x, y in pixels) with these half-widths along it.

    cap: 1 for round ends, large for flat ones. texture: a colour or a function of (u across in -1..1, t along in 0..1).
    """
    length = max(float(np.hypot(*(end - start))), 1e-3)
    axis = (end - start) / length
    across = np.array([axis[1], -axis[0]])  # to the viewer's right for a tube that hangs down
    reach = float(widths.max()) + 2
    low = np.maximum(np.floor(np.minimum(start, end) - reach), 0).astype(int)
    high = np.minimum(np.ceil(np.maximum(start, end) + reach), canvas.shape[1::-1]).astype(int)
    if (low >= high).any():
        return
    x = np.arange(low[0], high[0], dtype=np.float32)[None, :] - np.float32(start[0])
    y = np.arange(low[1], high[1], dtype=np.float32)[:, None] - np.float32(start[1])
    along = x * np.float32(axis[0]) + y * np.float32(axis[1])
    beside = x * np.float32(across[0]) + y * np.float32(across[1])
    t = np.clip(along / np.float32(length), 0, 1)
    overshoot = (along - t * np.float32(length)) * np.float32(cap)
    half = np.interp(t, np.linspace(0, 1, len(widths)), widths).astype(np.float32)
    cover = np.clip(half - np.sqrt(beside**2 + overshoot**2) + 0.5, 0, 1)
    u = np.clip(beside / np.maximum(half, 1e-3), -0.999, 0.999)
    normal = across[0] * light[0] + across[1] * light[1]
    shade = 0.52 + 0.5 * np.clip(u * np.float32(normal) + np.sqrt(1 - u * u) * np.float32(light[2]), 0, 1)
    shade = shade - 0.06 * np.float32(light[1]) * (0.5 - t)
    colour = texture(u, t) if callable(texture) else texture
    patch = canvas[low[1] : high[1], low[0] : high[0]]
    patch += cover[..., None] * (colour * shade[..., None] - patch)


def paint_person(canvas, look, pose, camera, *, feet, size):
    """Draw a person: feet (x, y) and body height in pixels of the canvas."""
    joint, lift = limb_points(look, pose)
    yaw = pose.yaw
    parts = [
        *leg_parts(look, joint),
        *trunk_parts(look, lift, yaw),
        *arm_parts(look, joint, yaw),
        *head_parts(look, lift, yaw),
        *bag_parts(look, joint, lift, yaw),
    ]
    turn = np.array([[np.cos(yaw), 0, -np.sin(yaw)], [0, 1, 0], [np.sin(yaw), 0, np.cos(yaw)]])
    sink = np.sin(camera.pitch)  # seen from above, what is nearer is lower

    placed = []
    for key, start, end, widths, texture, cap in parts:
        start, end = np.asarray(start) @ turn, np.asarray(end) @ turn  # x to the right, y up, z to the viewer
        placed.append((key + (start[2] + end[2]) / 2, start, end, widths, texture, cap))
    y, x = np.ogrid[: canvas.shape[0], : canvas.shape[1]]
    shadow = ((x - feet[0]) / (size * 0.16)) ** 2 + ((y - feet[1]) / (size * 0.035)) ** 2
    canvas *= (1 - 0.45 * np.exp(-shadow))[..., None].astype(np.float32)
    for _, start, end, widths, texture, cap in sorted(placed, key=lambda part: part[0]):
        start, end = (
            np.array([feet[0] + size * point[0], feet[1] - size * (point[1] * np.cos(camera.pitch) - point[2] * sink)])
            for point in (start, end)
        )
        paint_tube(canvas, start, end, widths * size, texture, cap, camera.light)


def tint(rng, *colour, spread=7):
    """A colour near this one: brightness varies more than hue."""
    lighter = rng.normal(0, 2 * spread)
    return tuple(int(np.clip(c + lighter + rng.normal(0, spread), 0, 255)) for c in colour)


def draw_street(draw, rng, w, h, ground):
    draw.rectangle((0, 0, w, ground), tint(rng, 150, 140, 128))
    for x in range(int(rng.integers(20)), w, 74):
        draw.rectangle((x, 12, x + 40, 92), tint(rng, 60, 72, 88))
        draw.rectangle((x - 3, 92, x + 43, 98), tint(rng, 190, 185, 175))
    draw.rectangle((0, ground, w, h), tint(rng, 128, 126, 124))
    draw_tiles(draw, rng, w, h, ground)


def draw_tiles(draw, rng, w, h, ground):
    line = tint(rng, 95, 95, 98)
    for k in range(1, 9):
        y = ground + (h - ground) * k * k / 64
        draw.line((0, y, w, y), line)
    for x in range(-w, 2 * w, 46):
        draw.line((w / 2 + (x - w / 2) * 0.6, ground, x, h), line)


def draw_lawn(draw, rng, w, h, ground):
    draw.rectangle((0, 0, w, ground), tint(rng, 120, 150, 130))
    for _ in range(26):
        x, y, r = rng.uniform(0, w), rng.uniform(-10, ground), rng.uniform(18, 50)
        draw.ellipse((x - r, y - r, x + r, y + r * 0.8), tint(rng, 58, 98, 52))
    for x in rng.uniform(0, w, 6):
        draw.rectangle((x, 0, x + rng.uniform(6, 16), ground + 12), tint(rng, 84, 64, 46))
    draw.rectangle((0, ground, w, h), tint(rng, 92, 132, 62))
    draw.rectangle((0, h - 70, w, h - 8), tint(rng, 172, 160, 140))


def draw_bricks(draw, rng, w, h, ground):
    ground += 60
    draw.rectangle((0, 0, w, ground), tint(rng, 140, 120, 108))
    base = tint(rng, 146, 84, 66)
    for row in range(0, ground, 12):
        for x in range(-24 + 12 * (row // 12 % 2), w, 25):
            draw.rectangle((x, row, x + 22, row + 10), tint(rng, *base, spread=4))
    draw.rectangle((0, ground, w, h), tint(rng, 112, 108, 106))


def draw_shops(draw, rng, w, h, ground):
    x = 0
    while x < w:
        width = int(rng.integers(60, 150))
        draw.rectangle((x, 0, x + width, 46), tint(rng, 130, 90, 90, spread=25))
        draw.rectangle((x + 6, 52, x + width - 6, ground - 4), tint(rng, 96, 110, 120))
        for y in range(70, ground - 20, 34):
            for k in range(x + 12, x + width - 18, 20):
                draw.rectangle((k, y, k + 12, y + 22), tint(rng, 150, 130, 110, spread=25))
        x += width
    draw.rectangle((0, ground, w, h), tint(rng, 158, 152, 146))
    draw_tiles(draw, rng, w, h, ground)


def draw_road(draw, rng, w, h, ground):
    draw.rectangle((0, 0, w, ground), tint(rng, 158, 166, 172))
    draw.rectangle((0, ground, w, h), tint(rng, 92, 92, 96))
    for x in range(int(rng.integers(60)), w, 170):
        colour = tint(rng, 130, 110, 110, spread=25)
        draw.rounded_rectangle((x, ground - 46, x + 140, ground + 12), 14, colour)
        draw.rounded_rectangle((x + 26, ground - 76, x + 112, ground - 36), 14, tint(rng, 60, 70, 80))
        for wheel in (x + 18, x + 96):
            draw.ellipse((wheel, ground - 6, wheel + 28, ground + 22), (28, 28, 30))
    for x in range(0, w, 80):
        draw.rectangle((x, ground + 70, x + 46, ground + 77), tint(rng, 205, 205, 198))


def draw_plaza(draw, rng, w, h, ground):
    draw.rectangle((0, 0, w, ground), tint(rng, 178, 184, 188))
    draw.rectangle((0, 0, w, ground - 50), tint(rng, 140, 150, 160))
    draw.rectangle((0, ground, w, h), tint(rng, 176, 166, 150))
    draw_tiles(draw, rng, w, h, ground)
    for x in rng.uniform(0, w, 14):  # a crowd far off
        size, y = rng.uniform(0.7, 1.2), ground + rng.uniform(-4, 14)
        top, bottom = (tint(rng, 110, 100, 100, spread=28) for _ in range(2))
        draw.rectangle((x - 7 * size, y - 34 * size, x + 7 * size, y), bottom)
        draw.rounded_rectangle((x - 9 * size, y - 68 * size, x + 9 * size, y - 32 * size), 6, top)
        draw.ellipse((x - 6 * size, y - 84 * size, x + 6 * size, y - 68 * size), tint(rng, 170, 130, 105))


SCENES = {"street": draw_street, "lawn": draw_lawn, "bricks": draw_bricks, "shops": draw_shops, "road": draw_road,
          "plaza": draw_plaza}  # fmt: skip


@functools.cache
def scene(number, index):
    """What a camera sees without people, (320, 900, 3) float32 in 0..1; the same for every seed, as a place is."""
    rng = generator(SCENE, number, index)
    w, h = 900, 320
    image = Image.new("RGB", (w, h))
    SCENES[camera_of(number).scenes.split()[index]](ImageDraw.Draw(image), rng, w, h, int(rng.integers(120, 160)))
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), np.float32) / 255
    grain = np.asarray(Image.fromarray(rng.integers(0, 255, (h // 4, w // 4), np.uint8)).resize((w, h)), np.float32)
    fine = rng.normal(0, 0.02, (h, w)).astype(np.float32)
    return np.clip(pixels + (grain / 255 - 0.5)[..., None] * 0.09 + fine[..., None], 0, 1)


def dull_colour(rng):
    return (rng.uniform(0.2, 0.65) + rng.normal(0, 0.05, 3)).astype(np.float32)


def paint_obstacle(canvas, seed, camera, rng, feet, size, shift=0.0):
    """Something in front of the person, moved right by shift pixels: a pole, a bush, a wall, another person."""
    h, w = canvas.shape[:2]
    kind = rng.choice(("pole", "bush", "wall", "person"), p=(0.2, 0.2, 0.2, 0.4))
    if kind == "pole":
        x, half = rng.uniform(0.15, 0.85) * w + shift, rng.uniform(4, 10)
        ends = np.array([[x, -20.0], [x, h + 20.0]])
        paint_tube(canvas, *ends, np.full(2, half), dull_colour(rng), 1, camera.light)
    elif kind == "bush":
        centre, spread = rng.uniform(0, w) + shift, rng.uniform(0.2, 0.45) * w
        for _ in range(14):
            at = np.array([centre + rng.normal(0, spread * 0.5), h - abs(rng.normal(0, 0.1)) * h])
            colour = np.array([0.16, 0.34, 0.13], np.float32) * np.float32(rng.uniform(0.7, 1.3))
            paint_tube(canvas, at, at + 1, np.full(2, rng.uniform(8, 20)), colour, 1, camera.light)
    elif kind == "wall":
        x = w / 2 + shift
        ends = np.array([[x, h * rng.uniform(0.68, 0.85)], [x, h * 2.0]])
        paint_tube(canvas, *ends, np.full(2, w * 2.0), dull_colour(rng), 9, camera.light)
    else:
        look = random_look(seed, PASSER_BY + int(rng.integers(5000)))
        aside = rng.choice((-1, 1)) * rng.uniform(0.24, 0.4) * size + shift
        pose = random_pose(rng, rng.uniform(-np.pi, np.pi))
        pose.phase += 8 * shift / size
        paint_person(canvas, look, pose, camera, feet=feet + [aside, 0.05 * size], size=size * rng.uniform(1.0, 1.15))


def random_pose(rng, yaw):
    return SimpleNamespace(
        yaw=yaw,
        phase=rng.uniform(0, 2 * np.pi),
        stride=rng.uniform(0.05, 0.45),
        lift=rng.uniform(0.3, 0.9) if rng.random() < 0.25 else 0.0,
        lifted=rng.choice((-1, 1)),
        splay=rng.uniform(0.2, 1.2),
    )


def through_lens(canvas, camera, rng, exposure, grain):
    """What is drawn -> uint8 (HEIGHT, WIDTH, 3) as this camera records it; grain: the generator of the noise."""
    image = Image.fromarray((canvas.clip(0, 1) * 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BOX)
    power, spread = CAMERA_STRENGTH, SHOT_STRENGTH
    gain = np.array(camera.gain) ** power * np.exp(rng.normal(0, 0.05 * spread, 3) + exposure)
    pixels = np.asarray(image, np.float32) / 255 * gain.astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    saturation = camera.saturation**power * np.exp(rng.normal(0, 0.1 * spread))
    pixels = grey + (pixels - grey) * np.float32(saturation)
    contrast = camera.contrast**power * np.exp(rng.normal(0, 0.08 * spread))
    pixels = np.clip(0.45 + (pixels - 0.45) * np.float32(contrast), 0, 1) ** np.float32(camera.gamma**power)
    image = Image.fromarray((pixels * 255).astype(np.uint8))
    detail = 1 - power * (1 - camera.detail * rng.uniform(0.75, 1))
    if detail < 0.9:
        small = (round(image.width * detail), round(image.height * detail))
        image = image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(power * camera.blur * rng.uniform(0.6, 1.5)))
    noise = grain.normal(0, power * camera.noise, (*pixels.shape[:2], 3))
    return np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)


def visit(seed, pid, number):
    """What a person's pictures in one camera share: where they walk, which way, at what time."""
    camera, rng = camera_of(number), generator(VISIT, seed, pid, number)
    index = int(rng.integers(len(camera.scenes.split())))
    turned = np.pi if rng.random() < 0.25 else 0.0  # some walk the other way
    return SimpleNamespace(
        sequence=index + 1,
        scene=scene(number, index),
        corner=(int(rng.integers(900 - 2 * WIDTH - 60)), int(rng.integers(30))),
        yaw=camera.yaw + turned + rng.normal(0, 0.4),
        exposure=rng.normal(0, 0.12 * SHOT_STRENGTH),
        frame=int(rng.integers(1000, 90000)),
    )


def draw_shot(seed, pid, number, shot, kind="good"):
    """One picture by the camera of that number, uint8 (HEIGHT, WIDTH, 3), and its JPEG quality. kind: good, junk (a bad
    box), background."""
    camera, rng, where = camera_of(number), generator(SHOT, seed, pid, number, shot), visit(seed, pid, number)
    w, h = round(WIDTH * SCALE * rng.uniform(0.76, 0.94)), HEIGHT * SCALE  # boxes differ in shape, files do not
    left, top = where.corner[0] + int(rng.integers(60)), where.corner[1] + int(rng.integers(30))
    canvas = where.scene[top : top + h, left : left + w].copy()
    jitter = BOX_JITTER * (1 if kind == "good" else 5)
    size = h * camera.zoom * np.exp(rng.normal(0, 0.06 * jitter)) * 1.03
    feet = np.array([w * (0.5 + rng.normal(0, 0.04 * jitter)), h * (0.965 + rng.normal(0, 0.02 * jitter))])
    if kind == "junk":
        feet[0] += rng.choice((-1, 1)) * w * rng.uniform(0.3, 0.55)
    elif rng.random() < 0.1 * BOX_JITTER:  # the legs are cut off
        feet[1] += h * rng.uniform(0.1, 0.3)
    if rng.random() < 0.15:  # someone farther off
        away = feet + [rng.choice((-1, 1)) * rng.uniform(0.25, 0.5) * w, -0.06 * h]
        other = random_look(seed, PASSER_BY + int(rng.integers(5000)))
        paint_person(canvas, other, random_pose(rng, rng.uniform(-np.pi, np.pi)), camera, feet=away, size=size * 0.8)
    if kind != "background":
        pose = random_pose(rng, where.yaw + rng.normal(0, 0.25))
        paint_person(canvas, random_look(seed, pid), pose, camera, feet=feet, size=size)
    if rng.random() < OCCLUSION_RATE:
        paint_obstacle(canvas, seed, camera, rng, feet, size)
    return through_lens(canvas, camera, rng, where.exposure, rng), int(camera.quality + rng.integers(-6, 7))


def wander(rng, frame, period):
    """A number around 0, of deviation 1, that changes smoothly with the frame; period: frames there and back."""
    speed, phase = rng.uniform(0.6, 1.4, 3), rng.uniform(0, 2 * np.pi, 3)
    return float(np.sqrt(2 / 3) * np.sin(2 * np.pi * speed * frame / period + phase).sum())


def draw_frame(seed, pid, number, track, frame, kind="good"):
    """One picture of a tracklet, in the way of draw_shot. How the person walks depends on the tracklet alone."""
    walk, now = generator(WALK, seed, pid, number, track), generator(FRAME, seed, pid, number, track, frame)
    camera, where = camera_of(number), visit(seed, pid, number)
    camera = camera._replace(blur=camera.blur + 4 * DRIFT * max(0.0, wander(walk, frame, 30) - 0.4))
    exposure = where.exposure + DRIFT * (walk.normal(0, 0.08) + 0.12 * wander(walk, frame, 40))
    yaw = where.yaw + walk.normal(0, 0.25)
    pose = random_pose(walk, yaw + 0.3 * DRIFT * wander(walk, frame, 50))
    pose.stride = max(pose.stride, 0.15)
    pose.phase += frame * walk.uniform(0.25, 0.45)
    w, h = round(WIDTH * SCALE * walk.uniform(0.76, 0.94)), HEIGHT * SCALE
    pan = np.sin(yaw) * walk.uniform(1, 3)  # the box follows the walker, so the background moves
    left = int(np.clip(where.corner[0] + 30 + pan * frame, 0, where.scene.shape[1] - w))
    canvas = where.scene[where.corner[1] : where.corner[1] + h, left : left + w].copy()

    jitter = BOX_JITTER * (1 if kind == "good" else 4)
    miss = 3 if now.random() < MISS_RATE else 1
    grow, aside, down = (wander(walk, frame, 30) + 0.5 * miss * now.normal() for _ in range(3))
    size = h * camera.zoom * np.exp(0.05 * jitter * grow) * 1.03
    feet = np.array([w * (0.5 + 0.04 * jitter * aside), h * (0.965 + 0.02 * jitter * down)])
    if kind == "junk":
        feet[0] += walk.choice((-1, 1)) * w * walk.uniform(0.3, 0.55)
    if kind != "background":
        paint_person(canvas, random_look(seed, pid), pose, camera, feet=feet, size=size)
    passes, speed = walk.random() < PASSING_RATE, walk.choice((-1, 1)) * walk.uniform(0.15, 0.4)
    shift = w * speed * (frame - walk.uniform(0, 30))
    if passes and abs(shift) < 3 * w:
        paint_obstacle(canvas, seed, camera, walk, feet, size, shift)
    lens = generator(LENS, seed, pid, number, track)
    return through_lens(canvas, camera, lens, exposure, now), camera.quality


# ---------------------------------------------------------------------------------------------------------------------
# Layout


class Take(NamedTuple):
    """One picture, or one tracklet."""

    part: str  # train, query or gallery
    pid: int  # as the files name it: 0 is a distractor, -1 junk
    camid: int
    number: int  # from 0: no other of this pid and camera has it
    shown: int  # pid of the person that is drawn
    track: int  # which picture or walk of theirs
    kind: str  # see draw_shot


def plan_route(seed, pid, least, most):
    """List of (camid, number of pictures or tracklets) for the two to five cameras that a person walks through."""
    rng = generator(ROUTE, seed, pid)
    camids = rng.permutation(len(CAMERAS))[: rng.integers(2, len(CAMERAS))]
    return [(int(camid), int(rng.integers(least, most + 1))) for camid in sorted(camids)]


def plan_takes(num_train_ids, num_test_ids, num_distractors, num_junk, seed, *, video=False):
    """List of Take. The first of a test person in each camera is a query. In a video set one test person in 25, from
    the third on, is seen once only: a query without a match, as MARS has them, too."""
    takes = []
    for pid in range(1, 2 * num_train_ids, 2):
        for camid, count in plan_route(seed, pid, *(TRAIN_TRACKS if video else TRAIN_SHOTS)):
            takes += [Take("train", pid, camid, number, pid, number, "good") for number in range(count)]
    for pid in range(2, 2 * num_test_ids + 1, 2):
        route = plan_route(seed, pid, *(TEST_TRACKS if video else TEST_SHOTS))
        if video and pid % 50 == 6:
            route = [(route[0][0], 1)]
        for camid, count in route:
            parts = ["query"] + ["gallery"] * (count - 1)
            takes += [Take(part, pid, camid, number, pid, number, "good") for number, part in enumerate(parts)]
    for index in range(num_distractors):
        kind, camid = ("good", "background", "junk")[index % 3], index // 3 % len(CAMERAS)
        takes.append(Take("gallery", 0, camid, index, STRANGER + index, 0, kind))
    for index in range(num_junk):
        pid, camid = 2 * (index % num_test_ids) + 2, index % len(CAMERAS)
        takes.append(Take("gallery", -1, camid, index, pid, JUNK_SHOT + index, "junk"))
    return takes


def site_camera(pid, camid, camera_seed, sites):
    """The number of the camera that a person meets as camid. Those who look alike are of one site."""
    return camid + len(CAMERAS) * (camera_seed * MAX_SITES + (pid - 1) // 2 // LOOKALIKES % sites)


def plan_pictures(takes, seed, camera_seed=0, sites=1):
    """{file: (draw_shot, *its arguments)} of a set of pictures, and the content of its other files, {file: bytes}."""
    folders, plan = dict(zip(("train", "gallery", "query"), SPLITS, strict=True)), {}
    for part, pid, camid, number, shown, track, kind in takes:
        camera = site_camera(shown, camid, camera_seed, sites)
        where = visit(seed, shown, camera)
        frame = where.frame + 25 * number if pid > 0 else number
        label = f"{pid:04d}" if pid >= 0 else "-1"
        name = f"{label}_c{camid + 1}s{where.sequence}_{frame:06d}_01.jpg"
        plan[f"{folders[part]}/{name}"] = draw_shot, seed, shown, camera, track, kind
    return plan, {"readme.txt": README.encode()}


def mat_file(name, values):
    """The bytes of a .mat file with one variable."""
    from scipy.io import savemat  # not above: pictures do without

    written = io.BytesIO()
    savemat(written, {name: values})
    title = b"MATLAB 5.0 MAT-file, drawn by synthetic.py"  # scipy's holds the time of day, so no two files were alike
    return title.ljust(116) + written.getvalue()[116:]


def plan_tracklets(takes, seed, camera_seed=0, sites=1):
    """What plan_pictures gives, of a set of tracklets."""
    plan, others = {}, {"readme.txt": VIDEO_README.encode()}
    for split in ("train", "test"):
        lines, rows, queries = [], [], []
        for part, pid, camid, number, shown, track, kind in sorted(takes, key=lambda take: take[1:]):
            if (part == "train") != (split == "train"):
                continue
            label = f"{pid:04d}" if pid >= 0 else "00-1"
            camera = site_camera(shown, camid, camera_seed, sites)
            rng, first = generator(LENGTH, seed, shown, camera, track), len(lines) + 1
            frames = int(min(4 + rng.exponential(6), 40)) if rng.random() > 0.04 else int(rng.integers(2, 4))
            for frame in range(frames):
                lines.append(f"{label}C{camid + 1}T{number + 1:04d}F{frame + 1:03d}.jpg")
                plan[f"bbox_{split}/{label}/{lines[-1]}"] = draw_frame, seed, shown, camera, track, frame, kind
            rows.append((first, len(lines), pid, camid + 1))
            queries += [len(rows)] * (part == "query")
        others[f"info/{split}_name.txt"] = "".join(line + "\r\n" for line in lines).encode()
        others[f"info/tracks_{split}_info.mat"] = mat_file(f"track_{split}_info", np.array(rows, np.int32))
    others["info/query_IDX.mat"] = mat_file("query_IDX", np.array([queries], np.uint16))
    return plan, others


def draw_file(task):
    path, (draw, *arguments) = task
    pixels, quality = draw(*arguments)
    Image.fromarray(pixels).save(path, quality=quality)


def draw_files(tasks, processes):
    """Draw and save all (path, (draw_shot or draw_frame, *its arguments)); a generator that yields once per file."""
    if processes == 1 or len(tasks) < 100:  # starting processes would take longer
        yield from map(draw_file, tasks)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe where the caller runs threads, as torch does
    ignore = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops this process, which then stops the others
    chunk = 16  # files that a process is given at a time
    with ProcessPoolExecutor(min(processes, math.ceil(len(tasks) / chunk)), context, signal.signal, ignore) as pool:
        yield from pool.map(draw_file, tasks, chunksize=chunk)


def read_stamp(folder):
    """The stamp of a set that this file wrote, None where the folder is absent or empty; refuses any other."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if not (folder / STAMP).is_file():
        raise FileExistsError(
            f"{folder} exists and was not written by synthetic.py (no {STAMP} in it): give another --name or --root, "
            "or move that folder away"
        )
    return json.loads((folder / STAMP).read_text())


def count_files(home, parts):
    kinds = (".jpg", ".mat", ".txt")
    return {part: sum(path.suffix in kinds for path in (home / part).rglob("*")) for part in parts}


def write_dataset(folder, *, video=False, seed=0, camera_seed=0, sites=1, processes=None, **numbers):
    """Draw a set of pictures, or of tracklets, into folder and return the number of files in each part.

    camera_seed: 0 is the six cameras of this file, others are drawn; sites: people are of so many, with six cameras
    each. numbers: those of NUMBERS that are to be others. A finished set of the same kind is reused. A set appears
    under its name only when it is complete. One of other parameters that this file wrote is replaced; a folder of
    anyone else raises FileExistsError.
    """
    folder, numbers = Path(folder).resolve(), {name: row[1 + video] for name, row in NUMBERS.items()} | numbers
    sizes, places = {**numbers, "seed": seed}, {"camera_seed": camera_seed, "sites": sites}
    if min(*sizes.values(), camera_seed) < 0:
        raise ValueError(f"negative number in {sizes | places}: give 0 or more")
    if not 1 <= sites <= MAX_SITES:
        raise ValueError(f"sites is {sites}: give 1 to {MAX_SITES}")
    for name, value in numbers.items():
        least, most = (1, MAX_IDS) if name.endswith("_ids") else (0, MAX_TRACKLETS if video else MAX_PICTURES)
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}: give {least} to {most}, more do not fit into the file names")
    home, parts = ("", VIDEO_PARTS) if video else (VERSION_FOLDER, SPLITS)
    wanted = {**sizes, **places, "drawn_by": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}
    found = read_stamp(folder)
    if found and found["parameters"] == wanted and found["files"] == count_files(folder / home, parts):
        return found["files"]

    plan, others = (plan_tracklets if video else plan_pictures)(plan_takes(**sizes, video=video), seed, **places)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        drawing = Path(temporary, "new")
        for parent in sorted({(drawing / home / name).parent for name in [*plan, *others]}):
            parent.mkdir(parents=True, exist_ok=True)
        tasks = [(drawing / home / name, arguments) for name, arguments in plan.items()]
        with images.progress(f"drawing {folder.name}", len(tasks)) as bar:
            for _ in draw_files(tasks, processes or images.cpus()):
                bar.update()
        for name, content in others.items():
            (drawing / home / name).write_bytes(content)
        stamp = {"parameters": wanted, "files": count_files(drawing / home, parts)}
        (drawing / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        if found:
            folder.rename(Path(temporary, "old"))
        drawing.rename(folder)
    return stamp["files"]


write_video_dataset = functools.partial(write_dataset, video=True)


def main(argv=None):
    what = "Draw a synthetic person re-ID data set, as Market-1501 or MARS is."
    parser = images.Parser("python -m tools.synthetic", description=what)
    parser.add_argument("--video", action="store_true", help="tracklets as MARS has them, not pictures")
    parser.add_argument("--root", default="data", help="folder that holds the data sets")
    parser.add_argument("--name", help="folder of this set below --root; default: synthetic, synthetic-video")
    parser.add_argument("--seed", type=int, default=0, help="other seeds give other people under the same cameras")
    parser.add_argument("--camera-seed", type=int, default=0, metavar="N",
                        help="other seeds give other cameras (default: 0, the six that are written in this file)")
    parser.add_argument("--sites", type=int, default=1, metavar="N",
                        help="places with six cameras each, among which the people are spread (default: 1)")
    for name, (what, pictures, tracklets) in NUMBERS.items():
        flag, text = name.replace("num_", "--").replace("_", "-"), f"{what}; default: {pictures}, tracklets {tracklets}"
        parser.add_argument(flag, type=int, dest=name, metavar="N", default=argparse.SUPPRESS, help=text)
    parser.add_argument("--processes", type=int, help="processes that draw; default: one per core")
    flags = vars(parser.parse_args(argv))
    name = flags.pop("name") or ("synthetic-video" if flags["video"] else "synthetic")
    folder = Path(flags.pop("root"), name)
    try:
        files = write_dataset(folder, **flags)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    home = folder if flags["video"] else folder / VERSION_FOLDER
    print(f"{home}: " + ", ".join(f"{count} in {name}" for name, count in files.items()))


if __name__ == "__main__":
    main()
