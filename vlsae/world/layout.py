"""What is in a scene, before any pixel is drawn: sampled layouts with every attribute explicit."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from vlsae.world.icons import FONTS, UNITS, icons, style_held_out

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (212, 38, 40),
    "orange": (246, 138, 30),
    "yellow": (250, 218, 64),
    "green": (48, 158, 70),
    "blue": (42, 92, 216),
    "purple": (132, 60, 178),
    "pink": (250, 152, 196),
    "brown": (124, 76, 42),
    "gray": (140, 140, 140),
    "black": (26, 26, 30),
    "white": (250, 250, 250),
}
OBJECT_COLORS = tuple(c for c in COLORS if c != "white")  # a white object would vanish in its white halo
BACKGROUND_COLORS = tuple(COLORS)
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES: dict[str, tuple[int, int]] = {"small": (18, 20), "medium": (25, 29), "large": (36, 42)}  # in UNITS
PAIR_SIZES = (
    ("small", "small"), ("small", "medium"), ("medium", "small"), ("medium", "medium"),
    ("large", "small"), ("small", "large"),
)  # fmt: skip
COLOR_JITTER = 6.0


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene. `x, y` is the top left corner and `extent` the side, in 1/64 of the image side."""

    name: str
    group: str
    color: str
    size: str
    font: str
    x: int
    y: int
    extent: int
    flipped: bool = False
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def center(self) -> tuple[float, float]:
        return self.x + self.extent / 2, self.y + self.extent / 2


@dataclass(frozen=True)
class Layout:
    """Everything needed to draw a scene at any resolution, bit for bit."""

    objects: tuple[SceneObject, ...]
    background: str
    texture: str
    period: int = 8
    direction: int = 0
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    overlay: str | None = None
    overlay_y: int = 0


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are drawn at random; every field is a probability, a weight or a choice.

    Args:
        n_objects: weights of 1, 2, 3 and 4 objects.
        sizes: weights of small, medium and large (large only fits into scenes of one or two objects).
        textures: weights of plain, striped, dotted and checkered.
        names: the concept words that may appear; all where None.
        combinations: "all", "seen" or "held_out" object-colour combinations (see `is_held_out`).
        styles: "all"; "seen": held-out concepts in Font Awesome only; "held_out": only those, in the other font.
        fonts: the icon fonts that may be used.
        align: positions are multiples of this many 1/64 of the side; 1 is free.
        black_on_white: probability of a scene of black objects on a plain white ground.
        spurious: probability that the background colour is the one tied to the first object's class.
        overlay: probability that a concept word that is not in the scene is written across it.
    """

    n_objects: tuple[float, float, float, float] = (0.25, 0.25, 0.25, 0.25)
    sizes: tuple[float, float, float] = (1.0, 1.0, 1.0)
    textures: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    names: tuple[str, ...] | None = None
    combinations: str = "all"
    styles: str = "all"
    fonts: tuple[str, ...] = FONTS
    align: int = 1
    black_on_white: float = 0.0
    spurious: float = 0.0
    overlay: float = 0.0

    def __post_init__(self) -> None:
        for field, known in (("combinations", ("all", "seen", "held_out")), ("styles", ("all", "seen", "held_out"))):
            if getattr(self, field) not in known:
                raise ValueError(f"{field}={getattr(self, field)!r} is unknown; use one of {', '.join(known)}.")
        for field in ("black_on_white", "spurious", "overlay"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)} is not a probability; give a number from 0 to 1.")
        for field, count in (("n_objects", 4), ("sizes", 3), ("textures", 4)):
            weights = getattr(self, field)
            if len(weights) != count or min(weights) < 0 or sum(weights) <= 0:
                raise ValueError(f"{field}={weights} must hold {count} weights >= 0, at least one of them positive.")
        if not 1 <= self.align <= UNITS // 2:
            raise ValueError(f"align={self.align} is out of range; give 1 (free) to {UNITS // 2}.")
        drawable_names(self)


@lru_cache(maxsize=256)
def drawable_names(options: SceneOptions) -> tuple[str, ...]:
    """The concept words that `options` allow, alphabetically."""
    unknown = sorted(set(options.names or ()) - set(icons()))
    if unknown:
        raise ValueError(f"Unknown concept {unknown[0]!r}; vlsae.world.concepts()['object'] lists what can be drawn.")
    names = sorted(options.names) if options.names is not None else list(icons())
    names = [n for n in names if allowed_fonts(n, options)]
    if not names:
        raise ValueError(f"No concept can be drawn with names={options.names}, fonts={options.fonts}, "
                         f"styles={options.styles!r}; allow more names or fonts.")  # fmt: skip
    return tuple(names)


def allowed_fonts(name: str, options: SceneOptions) -> tuple[str, ...]:
    """The fonts in which `options` allow `name` to be drawn."""
    fonts = tuple(f for f in icons()[name].fonts if f in options.fonts)
    if options.styles == "seen" and name in style_held_out():
        return tuple(f for f in fonts if f == FONTS[0])
    if options.styles == "held_out":
        return tuple(f for f in fonts if f == FONTS[1]) if name in style_held_out() else ()
    return fonts


@lru_cache(maxsize=1)
def _object_index() -> dict[str, int]:
    return {name: i for i, name in enumerate(icons())}


def is_held_out(name: str, color: str) -> bool:
    """Whether the combination was kept out of the tiny CLIP's training: one fixed colour of ten for each object."""
    return (7 * _object_index()[name] + OBJECT_COLORS.index(color)) % len(OBJECT_COLORS) == 0


def spurious_background(name: str) -> str:
    """The background colour that `spurious` scenes tie to an object class."""
    return BACKGROUND_COLORS[(3 * _object_index()[name]) % len(BACKGROUND_COLORS)]


@cache
def _colors(name: str, background: str, combinations: str) -> tuple[str, ...]:
    return tuple(
        c
        for c in OBJECT_COLORS
        if c != background and (combinations == "all" or is_held_out(name, c) == (combinations == "held_out"))
    )


def _jitter(rng: random.Random) -> tuple[float, float, float]:
    return tuple(round(rng.gauss(0.0, COLOR_JITTER), 2) for _ in range(3))


def _sample_sizes(n: int, options: SceneOptions, rng: random.Random) -> list[str]:
    weight = dict(zip(SIZES, options.sizes, strict=True))
    if n == 1:
        choices = [(s,) for s in SIZES]
    elif n == 2:
        choices = list(PAIR_SIZES)
    else:
        return [rng.choices(("small", "medium"), (weight["small"] + 1e-9, weight["medium"] + 1e-9))[0]
                for _ in range(n)]  # fmt: skip
    products = [1e-9 + _product(weight[s] for s in combo) for combo in choices]
    return list(rng.choices(choices, products)[0])


def _product(values) -> float:
    result = 1.0
    for value in values:
        result *= value
    return result


def _positions(extents: list[int], align: int, rng: random.Random) -> list[tuple[int, int]]:
    """Top left corners: each object of a scene of three or four in a quadrant of its own, otherwise anywhere."""

    def draw(low: int, high: int) -> int:
        return align * rng.randint(-(-low // align), max(-(-low // align), high // align))

    if len(extents) > 2:
        half = UNITS // 2
        corners = rng.sample([(0, 0), (half, 0), (0, half), (half, half)], len(extents))
        return [
            (draw(cx, cx + half - e), draw(cy, cy + half - e)) for (cx, cy), e in zip(corners, extents, strict=True)
        ]
    placed: list[tuple[int, int]] = []
    for e in extents:
        best = None
        for _ in range(24):
            x, y = draw(0, UNITS - e), draw(0, UNITS - e)
            overlap = sum(
                max(0, min(x + e, px + pe) - max(x, px)) * max(0, min(y + e, py + pe) - max(y, py))
                for (px, py), pe in zip(placed, extents, strict=False)
            )
            if best is None or overlap < best[0]:
                best = (overlap, x, y)
            if overlap == 0:
                break
        placed.append(best[1:])
    return placed


def sample_layout(options: SceneOptions, rng: random.Random) -> Layout:
    """Draw one layout: a background, then distinct objects with a colour, a size, a font and a place."""
    n = rng.choices((1, 2, 3, 4), options.n_objects)[0]
    black_on_white = rng.random() < options.black_on_white
    names_allowed = drawable_names(options)
    names = rng.sample(names_allowed, min(n, len(names_allowed)))
    background = "white" if black_on_white else rng.choice(BACKGROUND_COLORS)
    if options.spurious and rng.random() < options.spurious:
        background = spurious_background(names[0])
    if options.combinations == "held_out":
        while any(not _colors(name, background, "held_out") for name in names):
            background = rng.choice(BACKGROUND_COLORS)
    texture = "plain" if black_on_white else rng.choices(TEXTURES, options.textures)[0]
    sizes = _sample_sizes(len(names), options, rng)
    extents = [rng.randint(*SIZES[size]) for size in sizes]
    corners = _positions(extents, options.align, rng)
    objects = []
    for name, size, extent, (x, y) in zip(names, sizes, extents, corners, strict=True):
        color = "black" if black_on_white else rng.choice(_colors(name, background, options.combinations))
        font = rng.choice(allowed_fonts(name, options))
        flipped = rng.random() < 0.5
        objects.append(SceneObject(name, icons()[name].group, color, size, font, x, y, extent, flipped, _jitter(rng)))
    layout = Layout(tuple(objects), background, texture, rng.randint(6, 11), rng.randrange(3), _jitter(rng))
    if options.overlay and rng.random() < options.overlay:
        word = rng.choice([name for name in icons() if name not in names])
        layout = replace(layout, overlay=word, overlay_y=rng.randint(2, UNITS - 16))
    return layout
