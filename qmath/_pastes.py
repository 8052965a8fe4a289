"""What is printed to be pasted: text that every shell reads alike, or none.

Names come from files, and no quoting serves sh, bash, zsh, ksh, csh, fish, PowerShell and cmd at
once. So nothing is escaped: a text is plain, or is not offered.
"""

from __future__ import annotations

import re

__all__ = ["OPTIONS", "as_glob", "is_plain", "quantizer_option"]

# These characters mean themselves in every shell, in quotes and out of them; but for a hyphen at
# the start, which makes an option. Longer texts do not fit the line that a terminal takes.
_PLAIN = r"(?!-)[A-Za-z0-9_./-]{1,200}"
# Double quotes are the only ones of cmd, too. Between them, all shells leave these alone as well.
_OPTION = r'--quantizer "(?!-)[A-Za-z0-9_./?-]{1,200}=[A-Za-z0-9_]+\([A-Za-z0-9_=,. -]*\)"'
# A pattern for several of `quantizer_option` in a row, in any text.
OPTIONS = f"{_OPTION}(?: {_OPTION})*"


def is_plain(text: str) -> bool:
    """Tell whether every shell takes a text from a file as it is.

    Examples
    --------
    >>> [is_plain(name) for name in ("block/conv1.kernel", "größe", "$(touch x)", "-rf", "")]
    [True, False, False, False, False]
    """
    return re.fullmatch(_PLAIN, text) is not None


def as_glob(name: str) -> str:
    """Return a pattern for a name, with ``?`` for each character that is not plain.

    It is no pattern for a shell, as an option holds it in quotes.

    Examples
    --------
    >>> as_glob("größe;1/kernel"), as_glob("-conv/kernel")
    ('gr??e?1/kernel', '?conv/kernel')
    """
    return re.sub(r"^-|[^A-Za-z0-9_./-]", "?", name)


def quantizer_option(key: str, quantizer: str) -> str:
    """Return ``--quantizer "KEY=QUANTIZER"``, or nothing if a shell could read it otherwise.

    Parameters
    ----------
    key : str
        A tensor's name or `as_glob` of it, or a class and role.
    quantizer : str
        A call, such as ``LastValueQuantizer(num_bits=4)``.

    Examples
    --------
    >>> quantizer_option("MyConfig.weights", "NoQuantizer()")
    '--quantizer "MyConfig.weights=NoQuantizer()"'
    >>> quantizer_option("$(touch x).weights", "NoQuantizer()")
    ''
    """
    option = f'--quantizer "{key}={quantizer}"'
    return option if re.fullmatch(_OPTION, option) else ""
