"""One visual language: an optimizer has one colour and marker in every figure, table and page."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Style(NamedTuple):
    """How an optimizer is drawn. Colours are hexadecimal; markers as matplotlib and plotly name them."""

    colour: str
    dark: str  # the colour on a dark background
    marker: str
    symbol: str


Styles = Mapping[str, Style]  # by optimizer

# Okabe and Ito 2008 without the yellow, which is pale on white: they differ to all common kinds of
# colour vision. Beside each, its lighter twin for dark backgrounds.
PALETTE = (
    ("#0072B2", "#5AA9E6"),
    ("#D55E00", "#FF8C42"),
    ("#009E73", "#2FD0A0"),
    ("#CC79A7", "#E8A2C8"),
    ("#E69F00", "#F5C04A"),
    ("#56B4E9", "#9ADBFF"),
    ("#000000", "#E6E6E6"),
)
MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
)
# Those of this repository keep theirs from report to report.
KNOWN = (
    "adam",
    "shampoo",
    "sgd",
    "muon",
    "soap",
    "psgd",
    "distributed_shampoo",
    "nadamw",
    "schedule_free",
    "lion",
    "adafactor",
    "lamb",
    "prodigy",
    "sophia",
    "ademamix",
    "sam",
    "lbfgs",
    "sgd_line_search",
)
# Variants of one optimizer share its colour and marker.
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))


def styles(optimizers: Collection[str], names: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style for each optimizer, all different for up to 49; the rest begin again.

    Colour and marker change together, so that neighbours differ in both and grey prints can be read.
    Those of other names depend on the others: the colour that has been given least, and a marker
    that is not yet with it.

    Args:
      optimizers: what they are called.
      names: of which optimizer each is a version, where it is one: the first of several has the style of
        its name.
    """
    known = {name: _style(i) for i, name in enumerate(KNOWN)}
    assigned = {name: known.pop(name) for name in KNOWN if name in set(optimizers)}
    others = sorted(set(optimizers) - assigned.keys())
    for name in others:
        if (version_of := (names or {}).get(name)) in known:
            assigned[name] = known.pop(version_of)
    for name in others:
        if name not in assigned:
            assigned[name] = _least_used([*assigned.values()])
    return assigned


def _style(i: int) -> Style:
    turn, place = divmod(i, len(PALETTE))
    return Style(*PALETTE[place], *MARKERS[(place + turn) % len(MARKERS)])


def _least_used(given: Sequence[Style]) -> Style:
    """The least used colour, with the marker that is least used with it, then at all."""
    colours = Counter(style.colour for style in given)
    colour = min(PALETTE, key=lambda pair: colours[pair[0]])  # the first of several
    with_it = Counter(style.marker for style in given if style.colour == colour[0])
    markers = Counter(style.marker for style in given)
    marker = min(MARKERS, key=lambda pair: (with_it[pair[0]], markers[pair[0]]))
    return Style(*colour, *marker)
