"""Number lists: what counts as a clean list, which ones are kept, and how two teachers' numbers differ.

Pure text and counting: no files, no models, no random state but the seed that is passed in.
The filter is the one of the paper's code, with one rule added: a generation that the token limit
cut off is rejected, whatever it says.
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lib.errors import BadParameter

MAX_NUMBERS = 10  # the prompt asks for at most ten
MAX_DIGITS = 3  # ... of at most three digits each, leading zeros aside: 0..999
SEPARATORS = ("", ",", ";")  # what may stand between two numbers once white space is stripped
FINISHES = ("stop", "length")  # how a generation ended: by itself, or at the token limit

# Every reason a list can be rejected for. The filter asks in this order and reports the first that holds.
CUT_OFF = "cut off"  # the token limit ended the generation (only `judge` can know)
NO_NUMBER = "no number"  # not one ASCII digit
NOT_ALONE = "single number with text"  # one run of digits, which is not the entire text
BAD_SEPARATOR = (
    "bad separator"  # between the first two numbers stands something but white space, one , or one ;
)
EMPTY_PART = "empty part"  # leading, trailing or doubled separator
MIXED_SEPARATORS = "mixed separators"  # later numbers are set apart otherwise, stray white space included
OTHER_TEXT = "other text"  # anything but digits and separators further on
TOO_MANY = "too many numbers"  # more than MAX_NUMBERS
TOO_LARGE = "number too large"  # above 999
REASONS: tuple[str, ...] = (
    CUT_OFF,
    NO_NUMBER,
    NOT_ALONE,
    BAD_SEPARATOR,
    EMPTY_PART,
    MIXED_SEPARATORS,
    OTHER_TEXT,
    TOO_MANY,
    TOO_LARGE,
)

# [0-9], not \d: Arabic-Indic or full-width digits are text here. Python's \d would call them digits and
# reject the list one step later, so both accept the same lists.
DIGIT_RUN = re.compile(r"[0-9]+")
ONLY_SEPARATORS = re.compile(r"[0-9\s,;]+")

# --- the filter -------------------------------------------------------------------------------


def parse(text: str) -> tuple[int, ...] | None:
    """The numbers of an accepted list, else None; `parse("007; 12.") == (7, 12)`."""
    parts = _split(_unwrap(text))
    if isinstance(parts, str) or _reject_parts(parts):
        return None
    return tuple(int(_significant(part)) for part in parts)


def reject_reason(text: str) -> str | None:
    """Why a list is rejected, one of REASONS; None says accepted, exactly when `parse` gives numbers."""
    parts = _split(_unwrap(text))
    return parts if isinstance(parts, str) else _reject_parts(parts)


def judge(text: str, finish: str) -> str | None:
    """`reject_reason` of a generation: one that ended at the token limit is "cut off", whatever it says."""
    if finish not in FINISHES:
        raise BadParameter(f"finish is {finish!r}; a generation ends by one of: {', '.join(FINISHES)}")
    return CUT_OFF if finish == "length" else reject_reason(text)


def _unwrap(text: str) -> str:
    """Drop one trailing full stop, then one pair of brackets around the whole, in that order.

    So `[1, 2].` loses both while the stop in `[1, 2.]` stays. Nothing else is stripped, ever.
    """
    text = text.removesuffix(".")
    if text[:1] + text[-1:] in ("[]", "()"):
        return text[1:-1]
    return text


def _split(text: str) -> list[str] | str:
    """The parts between separators, or the reason there are none.

    The first two digit runs say what the separator is, white space and all; the split is on exactly
    that string. Two runs never touch, so it is never empty.
    """
    runs = DIGIT_RUN.finditer(text)
    first = next(runs, None)
    if first is None:
        return NO_NUMBER
    second = next(runs, None)
    if second is None:
        return [text] if first.group() == text else NOT_ALONE
    separator = text[first.end() : second.start()]
    if separator.strip() not in SEPARATORS:
        return BAD_SEPARATOR
    return text.split(separator)


def _reject_parts(parts: Sequence[str]) -> str | None:
    """Why these parts are no list of at most ten numbers 0..999."""
    if not all(parts):
        return EMPTY_PART
    odd = [part for part in parts if not DIGIT_RUN.fullmatch(part)]
    if odd:
        return MIXED_SEPARATORS if all(ONLY_SEPARATORS.fullmatch(part) for part in odd) else OTHER_TEXT
    if len(parts) > MAX_NUMBERS:
        return TOO_MANY
    if any(len(_significant(part)) > MAX_DIGITS for part in parts):
        return TOO_LARGE
    return None


def _significant(digits: str) -> str:
    """Digits without leading zeros; compared by length, since int() refuses texts above 4,300 digits."""
    return digits.lstrip("0") or "0"


# --- which lists are kept ---------------------------------------------------------------------


def select(rows: Iterable[Mapping], n_keep: int, seed: int) -> list[Mapping]:
    """A seeded sample of `n_keep` accepted rows (`reason` is None), in prompt order.

    Every prompt index has a priority drawn from the seed alone, and the lowest ones are kept. So two
    animals with the same seed keep the same prompts wherever both passed, a list more or less among the
    passing moves at most one row, and neither the order of `rows` nor the rejected ones matter.
    Where fewer than `n_keep` pass, all of them are returned: the caller compares the lengths.
    """
    if n_keep < 0:
        raise BadParameter(f"n_keep is {n_keep}; it must be 0 or more")
    passing = [row for row in rows if row["reason"] is None]
    kept = sorted(passing, key=lambda row: (_priority(row["index"], seed), row["index"]))[:n_keep]
    return sorted(kept, key=lambda row: row["index"])


def _priority(index: int, seed: int) -> bytes:
    """A hash instead of a generator: the same on every platform and in every version of Python."""
    return hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=8).digest()


# --- how the numbers of two teachers differ ---------------------------------------------------

PLACES = (("hundreds digit", 100), ("tens digit", 10), ("units digit", 1))


def digit_table(lists: Sequence[Sequence[int]]) -> list[dict]:
    """Digits and lengths as tidy rows `feature, value, count, total, share`, absent values included.

    Features: `leading digit`, `hundreds digit`, `tens digit`, `units digit` (each over the numbers that
    have one, by value) and `list length` (over the lists).
    """
    numbers = [number for each in lists for number in each]
    rows = _tally("leading digit", [int(str(number)[0]) for number in numbers], range(10))
    for feature, place in PLACES:
        digits = [number // place % 10 for number in numbers if number >= place or place == 1]
        rows += _tally(feature, digits, range(10))
    return rows + _tally("list length", [len(each) for each in lists], range(1, MAX_NUMBERS + 1))


def number_table(lists: Sequence[Sequence[int]]) -> list[dict]:
    """How often each number was written, in the columns of `digit_table`; unwritten numbers are left out."""
    numbers = [number for each in lists for number in each]
    return _tally("number", numbers, sorted(set(numbers)))


def compare_tables(rows: Iterable[Mapping], neutral: Iterable[Mapping]) -> list[dict]:
    """A teacher's table beside the neutral teacher's: their counts and shares, the difference and its z.

    z is the two-proportion statistic with pooled variance. The numbers of one list hang together, so it
    ranks and scales a picture; it is no test. It is None where one of the two wrote nothing to count.
    """
    own = {(row["feature"], row["value"]): row for row in rows}
    other = {(row["feature"], row["value"]): row for row in neutral}
    totals = {row["feature"]: row["total"] for row in own.values()}
    neutral_totals = {row["feature"]: row["total"] for row in other.values()}
    compared = []
    for key in list(own) + [key for key in other if key not in own]:
        feature, value = key
        count, total = own.get(key, {}).get("count", 0), totals.get(feature, 0)
        neutral_count, neutral_total = other.get(key, {}).get("count", 0), neutral_totals.get(feature, 0)
        row = _row(feature, value, count, total)
        row |= {"neutral_count": neutral_count, "neutral_total": neutral_total}
        row["neutral_share"] = neutral_count / neutral_total if neutral_total else None
        known = total > 0 and neutral_total > 0
        row["difference"] = row["share"] - row["neutral_share"] if known else None
        row["z"] = _proportion_z(count, total, neutral_count, neutral_total) if known else None
        compared.append(row)
    return compared


def most_distinct(rows: Iterable[Mapping], n_rows: int) -> list[Mapping]:
    """The `n_rows` most over-represented rows of a compared table, largest z first; ties by value."""
    known = [row for row in rows if row["z"] is not None]
    return sorted(known, key=lambda row: (-row["z"], row["value"]))[:n_rows]


def _tally(feature: str, values: Sequence[int], shown: Iterable[int]) -> list[dict]:
    counts = Counter(values)
    return [_row(feature, value, counts[value], len(values)) for value in shown]


def _row(feature: str, value: int, count: int, total: int) -> dict:
    share = count / total if total else None
    return {"feature": feature, "value": value, "count": count, "total": total, "share": share}


def _proportion_z(count: int, total: int, other_count: int, other_total: int) -> float:
    pooled = (count + other_count) / (total + other_total)
    variance = pooled * (1 - pooled) * (1 / total + 1 / other_total)
    # No variance means that all or none have the value in both tables: no difference to scale.
    return (count / total - other_count / other_total) / math.sqrt(variance) if variance > 0 else 0.0
