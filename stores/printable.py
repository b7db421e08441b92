"""Text that came from a file, a folder or a store of somebody else, on its way to a terminal, a log or a record."""

import shlex


def word(text: object) -> str:
    """`text` as one word of a command line that a message advises: quoted where a shell would take it apart."""
    return shlex.quote(str(text))


def plain(text: object, keep: str = "") -> str:
    """`text` in one line that nothing obeys: what is not printable, but for `keep`, as Python escapes it (``\\x1b``,
    ``\\u202e``, half a surrogate pair).
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in whole
    )


def shown(text: object) -> str:
    """`plain`, for a terminal: ends of lines and tabs stay."""
    return plain(text, keep="\n\t")
