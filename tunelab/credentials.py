"""Credentials are hidden in everything that is told or written down, whoever worded it: a library's error, say.

What cannot be told from a credential is hidden too: a message that says less does no harm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

HIDDEN = "***"
_SHORTEST = 6
"""Characters of a secret in the environment at least: a shorter one would hide half of every sentence (our choice)."""
_LONG = (
    r"[\w.-]*(?:secret|passw(?:or)?d|passphrase|token(?!i[sz])|signature|credential|access[_-]?key|account[_-]?key"
    r"|api[_-]?key|private[_-]?key|connection[_-]?string|authorization)[\w.-]*"
)
_SECRET = rf"(?:{_LONG}|(?<![A-Za-z])(?:sig|sas|pwd|key))"
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^\s&;,'"<>)\]}]+)"""
_NUMBER = r"\d{1,12}(?:\.\d+)?"
_COUNT = r"[\w.-]*tokens(?:[_.-][\w.-]*)?"
_PLACE = r"_(?:path|file|dir|url|uri|mode|expiration)"
_IS = r"""['"]?\s?(?:=|%3D|:)"""
# How many tokens, and not which; where a secret lies, and not what it is.
_UNLESS = rf"""(?!{_COUNT}{_IS}\s?['"]?{_NUMBER}(?![\w.+/=-])|[\w.-]*{_PLACE}{_IS})"""
_OF_A_SENTENCE = "".join(rf"(?<!\b{word} )" for word in ("the", "its", "a", "no", "this", "that", "your"))
_PATTERNS = (
    # Keys in a file of keys, whole.
    (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", HIDDEN),
    # scheme://user:password@host, also where the password holds slashes that should have been written as %2F.
    (r"""(?i)\b([a-z][a-z0-9+.-]*://)[^\s'"<>@/]*:[^\s'"<>@]*@""", rf"\1{HIDDEN}@"),
    # scheme://token@host, where no user's or container's name stands before the @.
    (r"""(?i)\b((?:https?|s3[an]?|gs|gcs|git)://)[^\s'"<>@/]+@""", rf"\1{HIDDEN}@"),
    # Authorization: Bearer ..., and a bearer's token anywhere.
    (r"""(?i)\b(authorization['"]?\s*[:=]\s*)(?:b?['"])?(?:\w[\w-]*\s+)?[^\n'"]+""", rf"\1{HIDDEN}"),
    (r"(?i)\b(bearer\s+)[\w.~+/=-]{8,}", rf"\1{HIDDEN}"),
    # <SignatureProvided>...</SignatureProvided>, as S3 answers.
    (rf"(?i)<({_SECRET}|StringToSign|AWSAccessKeyId)>[^<]*<", rf"<\1>{HIDDEN}<"),
    # ?password=..., key='...', X-Amz-Signature=..., AccountKey=...;
    (rf"(?i){_UNLESS}({_SECRET}\s?(?:=|%3D)\s?){_VALUE}", rf"\1{HIDDEN}"),
    # {'secret': '...'}, "password": "..."
    (rf"""(?i)(['"]{_UNLESS}{_SECRET}['"]\s*:\s*)b?{_VALUE}""", rf"\1{HIDDEN}"),
    # token: ..., X-Auth-Token: ..., but no file of that name of which something is said, and no "its token: give it".
    (rf"(?i)(?<![\w./\\~-]){_OF_A_SENTENCE}{_UNLESS}({_LONG}\s?:\s*)(?!//){_VALUE}", rf"\1{HIDDEN}"),
    (rf"(?i)(?<![\w./\\~-]){_UNLESS}({_LONG}\s?:\s*)(?!//)(?=[a-z+/=_-]*\d|\S{{16}}){_VALUE}", rf"\1{HIDDEN}"),
    # Keys of AWS by their form, and JSON web tokens.
    (r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b", HIDDEN),
    (r"\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*", HIDDEN),
)
_COMPILED = tuple((re.compile(pattern, re.DOTALL), instead) for pattern, instead in _PATTERNS)
_VARIABLE = re.compile(
    r"SECRET|PASSW(OR)?D|PASSPHRASE|TOKEN(?!I[SZ])|ACCESS_KEY|ACCOUNT_KEY|API_KEY|CREDENTIAL|CONNECTION_STR|SAS_"
)
_NO_SECRET = re.compile(rf"{_PLACE}$", re.IGNORECASE)
_COUNTED = re.compile(rf"{_COUNT}={_NUMBER}", re.IGNORECASE)


def hide(text: str) -> str:
    """The text with every credential in it as `***`: known by its form, its name, or a variable of this process."""
    for secret in _of_environment():
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _COMPILED:
        text = pattern.sub(instead, text)
    return text


def _of_environment() -> Iterator[str]:
    """What the variables of this process hold that are named as secrets are, the longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and _VARIABLE.search(name.upper())
        and not _NO_SECRET.search(name)
        and not _COUNTED.fullmatch(f"{name}={value}")
    }
    files = os.path.exists  # which raises nothing, however long a secret is
    yield from sorted((value for value in values if not files(value)), key=len, reverse=True)
