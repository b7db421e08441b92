"""Record a command in a terminal of 80 columns as a GIF: ``python docs/images/record.py OUT.gif COMMAND…``.

Needs pyte (``pip install pyte``). Long waits are cut: the recording shows at most half a second of each screen.
"""

import fcntl
import itertools
import os
import pty
import struct
import sys
import termios
import time
from pathlib import Path
from typing import Final

import pyte
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

COLUMNS, ROWS = 80, 28
SIZE: Final = 13
LONGEST_MS: Final = 500
GROUND, INK = (24, 28, 34), (228, 232, 238)
COLOURS: Final = {
    "default": INK, "red": (240, 120, 110), "green": (110, 210, 130), "brown": (230, 200, 100), "blue": (110, 170, 250),
    "magenta": (220, 140, 220), "cyan": (100, 210, 220), "white": INK, "black": (120, 128, 138),
}  # fmt: skip


def run(command: list[str], every: float = 1.0) -> list[tuple[float, Image.Image]]:
    """Screens of a command with their times: one whenever the screen has changed, at most one every `every` seconds."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    if command[0] != "bash":  # a script says its commands itself
        stream.feed(b"$ " + " ".join(command).encode() + b"\r\n")
    child, terminal = pty.fork()
    if child == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execvp(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    shots, seen, last = [draw(screen)], time.monotonic(), screen.display[:]
    times = [seen]
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the command has ended
            break
        if not data:
            break
        stream.feed(data)
        now = time.monotonic()
        if now - seen >= every and screen.display != last:
            shots.append(draw(screen))
            times.append(now)
            seen, last = now, screen.display[:]
    shots.append(draw(screen))
    times.append(time.monotonic())
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{command[0]} ended with status {os.waitstatus_to_exitcode(status)}")
    return list(zip(times, shots, strict=True))


def draw(screen: pyte.Screen) -> Image.Image:
    font = ImageFont.truetype(findfont("DejaVu Sans Mono"), SIZE)
    wide, high = round(font.getlength("m")), SIZE + 4
    canvas = Image.new("RGB", (COLUMNS * wide + 20, ROWS * high + 20), GROUND)
    pen = ImageDraw.Draw(canvas)
    for row in range(ROWS):
        for column in range(COLUMNS):
            cell = screen.buffer[row][column]
            if cell.data.strip():
                where = (10 + column * wide, 10 + row * high)
                pen.text(where, cell.data, COLOURS.get(cell.fg.removeprefix("bright"), INK), font)
    return canvas


def main() -> None:
    out, command = Path(sys.argv[1]), sys.argv[2:]
    recorded = run(command)
    pauses = [1000 * (b[0] - a[0]) for a, b in itertools.pairwise(recorded)]
    durations = [min(LONGEST_MS, max(60, round(pause))) for pause in pauses] + [4000]
    palette = recorded[-1][1].quantize(32)
    pictures = [shot.quantize(palette=palette, dither=Image.Dither.NONE) for _, shot in recorded]
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)
    print(f"{out}: {len(pictures)} screens, {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
