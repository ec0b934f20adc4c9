"""One colour per animal everywhere: in figures, in the report and in the explorer. Pure; draws nothing."""

from lib import config

# Okabe & Ito's hues, told apart by colour-blind readers; thirty animals need them in several shades.
# In this order neighbours differ most, over sixteen animals and the three common kinds of sight.
HUES = ("#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#009E73")
SHADES = (("#ffffff", 0.0), ("#000000", 0.45), ("#ffffff", 0.55), ("#000000", 0.7), ("#ffffff", 0.3))
CONTROLS = {config.UNTUNED: "#d0d0d0", config.NEUTRAL: "#6e6e6e", "neutral student": "#6e6e6e"}
LEFTOVERS = {"other": "#e8e8e8", "none": "#ffffff"}


def mix(colour: str, other: str, share: float) -> str:
    """A colour with a share of another in it.

    >>> mix("#000000", "#ffffff", 0.5)
    '#808080'
    """
    pairs = ((int(each[at : at + 2], 16) for each in (colour, other)) for at in (1, 3, 5))
    return "#" + "".join(f"{round((1 - share) * a + share * b):02x}" for a, b in pairs)


def shade(at: int) -> str:
    """The colour at a place of the list of animals."""
    return mix(HUES[at % len(HUES)], *SHADES[at // len(HUES) % len(SHADES)])


COLOURS: dict[str, str] = {name: shade(at) for at, name in enumerate(config.LEXICON)} | CONTROLS | LEFTOVERS
