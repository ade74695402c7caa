"""Clears lines of healthy operation that hold alarming words.

The problem: `ECC errors: 0 uncorrectable` holds the same words as a broken GPU. The design: general
readings come before any rule: counts of zero, negations, settings that are echoed, words of
success, what was retried or skipped. Limits: these are English words; what no reading clears and
should be ignored is a rule of the class `harmless`.
"""

from __future__ import annotations

import re

from monitors.log_lines import LogLevel, LogLine


def _any_of(*patterns: str) -> str:
    return "|".join(patterns)


_COUNTED = _any_of(
    r"errors?|failures?|faults?|violations?|uncorrect\w*|corrected|overflows?|retries|restarts",
    r"timeouts?|evict\w*|OOM\w*|nans?|dropped|lost|remapped|total|pending|iterations?",
    r"(?:error|exit)[ _]?(?:code|count)?|status|rc|returned|return code",
)
_COUNTABLE = _any_of(
    r"errors?|failures?|faults?|violations?|uncorrect\w*|CRC|overflows?|retries|timeouts?",
    r"evictions?|OOM\w*|oom[-_]kill\w*|NaNs?|problems?|issues?|corruption|warnings?|failed",
    r"ECC|Xids?|preemptions?",
)
_ZERO = re.compile(
    rf"\b(?:{_COUNTED})\s?(?:[:=]|is|are|count:?)?\s?0\b(?![.\d])"
    rf"|(?<![\w.])(?:0|no|zero|without|free of)\s+(?:[^\W\d]\w*[ -]){{0,3}}(?:{_COUNTABLE})\b"
    r"(?!\s+(?:code|message))",
    re.IGNORECASE,
)
_NO_ERRNO = re.compile(r"(\bfailed\b.*[\]:]) ?(?:no error|success)\s*$", re.IGNORECASE)
"""A failure that set no error number, which the C library calls "no error"."""
_NOT = r"not|never|isn't|wasn't|aren't|hasn't|haven't"
_NOT_SO = _any_of(
    r"corrupt\w*|preempted|evicted|an? error|fatal|detected|failed|needed|required|triggered",
    r"exceeded|affected|an? problem",
)
_WATCHING = _any_of(
    r"skip|avoid|prevent|check(?:ing|s)? for|guard against|detect(?:ion of|s)",
    r"monitor(?:ing|s)? for|watch(?:ing|es)? for|in case of|protect\w* against",
    r"if|unless|when|whether",
)
_WATCHED = (
    r"errors?|failures?|NaNs?|inf|OOM|preempt\w*|evict\w*|timeouts?|hangs?|corrupt\w*|faults?"
)
_NEGATED = re.compile(
    rf"\b(?:{_NOT})\s+(?:\w+\s+){{0,2}}(?:{_NOT_SO})\b"
    rf"|\b(?:{_WATCHING})\b.{{0,40}}\b(?:{_WATCHED})\b",
    re.IGNORECASE,
)
_SURVIVED = re.compile(
    _any_of(
        r"\bre-?try(?:ing)?\b(?! (?:count|counter|exceeded|limit))|\bretried\b|\bretries left\b",
        r"\b(?:will|to) re-?(?:try|connect)\b|\bre-?connect(?:ing|ed)\b|\bre-?established\b",
        r"\battempt (?:#?\d+ ?(?:/|of) ?#?\d+|#\d+)|\bback(?:ing)?[ -]?off\b|\brecovered\b",
        r"\bsucceeded\b|\bignor(?:ed|ing|e)\b|\bskipp(?:ed|ing)\b|\bfall(?:ing|s)? ?back\b",
        r"\bcontinu(?:e|es|ing)\b|\bnon-?fatal\b|\bharmless\b|\bas expected\b|\bis expected\b",
        r"\bdeprecat\w+|\bresolved\b|\bresum(?:ed|ing)\b|\bsuppress\w+|\btolerat\w+|\brestored\b",
        r"\bdisabl(?:ed|ing)\b|\bworkaround\b|\bcorrected\b|\bcleared\b|\bclamp\w*|\bclipp\w*",
        r"\bdropped\b|\bdiscard(?:ed|ing)\b|\bexcluded\b|\bquarantined\b|\bmasked\b",
        r"\breplac(?:ed|ing) (?:with|by)\b|\busing (?:\S+ ){1,4}instead\b",
    ),
    re.IGNORECASE,
)
_GRAVE = r"error|exception|fatal|failure|killed|abort"
_SETTING = re.compile(
    _any_of(
        r"\b[Tt]imeouts?(?: \w+){0,3} ?(?:is|are|of|=|:|set to) ?\d"
        r"(?!.*(?:exceed|expire|reach|timed out))",
        r"^\s*[\w.\-/]+\s?=\s?\S.*$",
        rf"^\s*(?!\w*(?:{_GRAVE}))[a-z][\w.-]*\s*: ?[\w./'\"\[{{-]\S*\s*$",
        r"^\s*['\"][\w.-]+['\"]\s?:|\bset by environment\b|^\s*--\w|\bNamespace\(",
        r"^\s*\w+\(.*=.*\)\s*$",
    )
)
_WELL = re.compile(
    r"\b(?:OK|ok|okay|passed|pass|success(?:ful(?:ly)?)?|healthy|completed?|done|active|enabled"
    r"|ready|UP|finished|fine|normal)[.!)\]]*\s*$"
)
_ERROR_WORD = re.compile(r"\b\w*(?:error|exception|fatal|fail\w*|abort\w*|panic)\b", re.IGNORECASE)


def is_harmless(line: LogLine) -> bool:
    """True if a line counts nothing, denies something, echoes a setting or reports success.

    Lines of machines are cleared by zero counts and words of success only. Not for the lines of the
    traceback that a program died of: what was raised was not survived.
    """
    text = _NO_ERRNO.sub(r"\1", line.text)
    if _ZERO.search(text):
        return True
    if _WELL.search(text) and not has_error_word(text):
        return True
    return not line.is_machine and bool(_NEGATED.search(text) or _SETTING.search(text))


def was_survived(line: LogLine) -> bool:
    """True if a line says that the program went on: retried, skipped, ignored, recovered.

    Never true for lines of machines: a driver that retries has a fault.
    """
    return not line.is_machine and _SURVIVED.search(line.text) is not None


def has_error_word(text: str) -> bool:
    """True if a text has a word such as error, failed or exception."""
    return _ERROR_WORD.search(text) is not None


def looks_like_error(line: LogLine) -> bool:
    """True if a line has such a word and does not say that it is less grave."""
    return line.level >= LogLevel.PLAIN and has_error_word(line.text)
