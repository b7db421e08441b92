"""Text that came from a file or a folder, on its way to a terminal or a log."""


def plain(text: str, keep: str = "") -> str:
    """`text` as a terminal shows it: what of it is no Unicode, or steers a terminal, is escaped, but for `keep`."""
    whole = text.encode(errors="backslashreplace").decode()
    return "".join(letter if letter.isprintable() or letter in keep else f"\\x{ord(letter):02x}" for letter in whole)
