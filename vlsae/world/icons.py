"""The drawable concepts: names, groups, and their silhouettes in two independent icon fonts.

Each line of a group reads `name`, or `name:FA,MDI` where the glyph has another name in Font Awesome 6 (solid) or
Material Design Icons 7; an empty side means that this font has no such picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = ("fontawesome", "materialdesign")
UNITS = 64  # scene coordinates are given in 1/64 of the image side, whatever the resolution

GROUPS: dict[str, str] = {
    "animal": """cat dog horse fish cow frog:frog, spider bird:dove,bird owl:,owl duck:,duck elephant:,elephant
        penguin:,penguin rabbit:,rabbit snail:,snail turtle:,turtle pig:,pig bee:,bee bat:,bat dolphin:,dolphin
        hippo:hippo, dragon:dragon, panda:,panda jellyfish:,jellyfish kangaroo:,kangaroo shark:,shark snake:,snake
        unicorn:,unicorn butterfly:,butterfly""",
    "food": """apple:apple_whole,food_apple carrot lemon:lemon,fruit_citrus pizza:pizza_slice,pizza
        burger:burger,hamburger cookie ice_cream cheese egg corn:,corn mushroom:,mushroom croissant:,food_croissant
        cherries:,fruit_cherries grapes:,fruit_grapes pineapple:,fruit_pineapple watermelon:,fruit_watermelon
        hotdog:hotdog,food_hot_dog cake:cake_candles,cake_variant bread:bread_slice,bread_slice candy:,candy
        cup:mug_hot,coffee beer:beer_mug_empty,glass_mug wine:wine_glass,glass_wine""",
    "vehicle": """car bus truck bicycle motorcycle:motorcycle,motorbike train ship:ship,ferry
        sailboat:sailboat,sail_boat airplane:plane,airplane helicopter rocket tractor taxi
        ambulance:truck_medical,ambulance tram:train_tram,tram skateboard:,skateboard""",
    "nature": """tree:tree,pine_tree flower:,flower leaf cactus:,cactus clover sun:sun,white_balance_sunny
        moon:moon,moon_waning_crescent star cloud snowflake lightning:bolt,lightning_bolt fire
        mountain:mountain,image_filter_hdr snowman""",
    "clothing": """shirt:shirt,tshirt_crew hat:hat_cowboy,hat_fedora crown shoe:,shoe_sneaker glasses sock:socks,
        ring umbrella glove:mitten, tie:user_tie,tie""",
    "building": """house:house,home church castle:,castle factory:industry,factory hospital:hospital,
        lighthouse:,lighthouse tent store:shop,store""",
    "tool": """hammer wrench screwdriver scissors:scissors,content_cut key axe:,axe broom brush:paintbrush,brush
        gear:gear,cog lock anchor magnet""",
    "thing": """guitar:guitar,guitar_acoustic drum:drum, trumpet:,trumpet violin:,violin camera phone laptop clock
        bell book candle:,candle chair:chair,seat bed door:door_closed,door lamp:,lamp bomb balloon:,balloon gift
        kite:,kite trophy ball:football,soccer robot skull heart ghost""",
}


@dataclass(frozen=True)
class Icon:
    """One drawable concept: its word, its group, and its glyph character per font."""

    name: str
    group: str
    glyphs: dict[str, str]

    @property
    def fonts(self) -> tuple[str, ...]:
        return tuple(f for f in FONTS if f in self.glyphs)


def _glyph_tables() -> dict[str, tuple[type, str]]:
    from fonticon_fa6 import FA6S
    from fonticon_mdi7 import MDI7

    return {"fontawesome": (FA6S, FA6S.__font_file__), "materialdesign": (MDI7, MDI7.__font_file__)}


@lru_cache(maxsize=1)
def icons() -> dict[str, Icon]:
    """Every drawable concept by name, in alphabetical order."""
    tables = _glyph_tables()
    found = {}
    for group, listing in GROUPS.items():
        for entry in listing.split():
            name, _, glyphs = entry.partition(":")
            sources = glyphs.split(",") if glyphs else [name, name]
            chars = {
                font: getattr(tables[font][0], source).split(".")[1]
                for font, source in zip(FONTS, sources, strict=True)
                if source
            }
            word = name.replace("_", " ")
            found[word] = Icon(word, group, chars)
    return dict(sorted(found.items()))


@lru_cache(maxsize=1)
def style_held_out() -> frozenset[str]:
    """Concepts drawn in both fonts that the tiny CLIP only ever saw in Font Awesome: every ninth of them."""
    both = [icon.name for icon in icons().values() if len(icon.glyphs) == 2]
    return frozenset(both[4::9])


@cache
def _font(name: str, px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_glyph_tables()[name][1], px)


def _square_silhouette(char: str, font: str, side: int) -> Image.Image:
    """The glyph as an 8-bit coverage image, cropped to its ink and centred in a square of `side` pixels."""
    font_px = 96 * math.ceil(side / 96)
    canvas = Image.new("L", (2 * font_px, 2 * font_px))
    ImageDraw.Draw(canvas).text((font_px, font_px), char, font=_font(font, font_px), fill=255, anchor="mm")
    ink = canvas.crop(canvas.getbbox())
    square = Image.new("L", (max(ink.size), max(ink.size)))
    square.paste(ink, ((square.width - ink.width) // 2, (square.height - ink.height) // 2))
    return square.resize((side, side), Image.Resampling.LANCZOS)


@lru_cache(maxsize=32768)
def sticker(name: str, font: str, side: int, halo: int, flipped: bool) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of a silhouette and of the white halo around it.

    Args:
        name: a concept word of `icons()`.
        font: one of `FONTS`.
        side: outer side in pixels, halo included.
        halo: halo width in pixels.
        flipped: mirror left to right.

    Returns:
        `(ink, halo)`, two float32 arrays `[side, side, 1]` in [0, 1] with `ink + halo <= 1`.
    """
    from scipy.ndimage import grey_dilation

    glyph = icons()[name].glyphs[font]
    inner = max(1, side - 2 * halo)
    coverage = np.zeros((side, side), np.float32)
    coverage[halo : halo + inner, halo : halo + inner] = (
        np.asarray(_square_silhouette(glyph, font, inner), np.float32) / 255
    )
    if flipped:
        coverage = coverage[:, ::-1]
    reach = np.arange(-halo, halo + 1)
    disk = reach[:, None] ** 2 + reach[None, :] ** 2 <= (halo + 0.25) ** 2
    spread = grey_dilation(coverage, footprint=disk)
    return np.ascontiguousarray(coverage[..., None]), np.ascontiguousarray((spread * (1 - coverage))[..., None])
