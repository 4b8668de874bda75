"""Which version of a registered model is the champion: a pure function of the versions' probe numbers.

The champion moves to a version that was probed on the same data and is better by more than one standard error, the
larger of the two. Versions are judged in the order of their numbers, so whoever computes this, whenever, gets the same
answer: that is what lets a registration repair a race with another one. A promotion by hand starts the count anew: only
versions registered after it are judged against the promoted one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the gate knows of a version; without a probe all but the number is None."""

    version: int
    data: str | None  # digest of the data that it was probed on
    value: float | None
    error: float | None  # standard error of the value


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A champion made by hand, and the highest version that there was then."""

    version: int
    highest: int


def champion(entries: Sequence[Entry], promotion: Promotion | None = None) -> Entry | None:
    """The champion among these versions; None while no version was probed."""
    chosen = [entry for entry in entries if promotion is not None and entry.version == promotion.version]
    best = chosen[0] if chosen else None
    judged_from = promotion.highest + 1 if promotion is not None and chosen else 0
    for entry in sorted(entries, key=lambda entry: entry.version):
        if entry.version < judged_from or not _measured(entry):
            continue
        if best is None or (_comparable(entry, best) and gain_in_errors(entry, best) > 1):
            best = entry
    return best


def gain_in_errors(entry: Entry, best: Entry) -> float:
    """How many standard errors (the larger of the two) `entry` lies above `best`."""
    assert entry.value is not None
    assert best.value is not None
    error = max(entry.error or 0.0, best.error or 0.0)
    gain = entry.value - best.value
    return gain / error if error > 0 else math.copysign(math.inf, gain) if gain else 0.0


def verdict(entry: Entry, others: Sequence[Entry], metric: str, promotion: Promotion | None = None) -> str:
    """Why `entry` became the champion or did not, in words, and who took its place since.

    Args:
        entry: the version in question.
        others: all other versions.
        metric: what the values are.
        promotion: the last one by hand.
    """
    everyone = [entry, *others]
    if promotion is not None and all(one.version != promotion.version for one in everyone):
        promotion = None  # the promoted one was deleted
    if promotion is not None and entry.version == promotion.version:
        won, reason = True, "it was promoted by hand"
    elif promotion is not None and entry.version <= promotion.highest:
        return f"version {promotion.version} was promoted by hand after it was registered"
    else:
        earlier = [one for one in others if one.version < entry.version]
        won, reason = _judged(entry, champion(earlier, promotion), metric)
    now = champion(everyone, promotion)
    return f"{reason}; version {now.version} took its place since" if won and now and now is not entry else reason


def _judged(entry: Entry, before: Entry | None, metric: str) -> tuple[bool, str]:
    """Whether `entry` took the place of `before`, the champion when it was registered, and why."""
    if not _measured(entry):
        return False, "it has no probe numbers, so it was not judged"
    if before is None:
        return True, f"it is the first version with a probe ({metric} {shown(entry)})"
    by_hand = "promote by hand if this one is better"
    if not _measured(before):
        return False, f"the champion, version {before.version}, has no {metric} number: {by_hand}"
    if before.data != entry.data:
        return False, f"the champion, version {before.version}, was probed on other data: {by_hand}"
    gain = gain_in_errors(entry, before)
    if gain > 1:
        than = "more than one standard error above"
    elif gain >= 0:
        than = "not one standard error above"
    else:
        than = "below"
    return gain > 1, f"{metric} {shown(entry)} is {than} version {before.version} with {shown(before)}"


def shown(entry: Entry) -> str:
    """A share with its standard error, in percent."""
    assert entry.value is not None
    return f"{100 * entry.value:.2f} ± {100 * (entry.error or 0.0):.2f} %"


def _measured(entry: Entry) -> bool:
    return entry.value is not None and math.isfinite(entry.value)


def _comparable(entry: Entry, best: Entry) -> bool:
    return _measured(best) and entry.data == best.data
