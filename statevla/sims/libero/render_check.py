"""Does OpenGL draw here what it draws elsewhere? A test picture of a few bodies, and the mean it should have.

Run as ``MUJOCO_GL=egl python -m statevla.sims.libero.render_check`` in a process of its own, because a rendering
library is chosen once for a process and a broken one may end it. Needs MuJoCo only.
"""

import json
import os
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass

import numpy as np

BACKENDS = ("egl", "osmesa")
PACKAGES = {
    "egl": "libegl1 libgles2 libgl1 libegl-mesa0 libgl1-mesa-dri",
    "osmesa": "libosmesa6 libgl1 libgl1-mesa-dri",
}
"""Debian packages that a backend needs."""

SIDE = 96
KNOWN_MEAN = (141.133, 114.832, 82.627)
"""Mean red, green, blue of the picture, MuJoCo 3.3.2, EGL and OSMesa (Mesa 22.3.6), 2026-11-20."""
TOLERANCE = 2.0
"""MuJoCo 3.3.2 draws LIBERO within 2 of 2.3.7, which recorded its data. 3.3.7 gives (80, 54, 32) for this picture."""
TIMEOUT = 90.0

SCENE = """
<mujoco>
  <visual><headlight ambient=".3 .3 .3" diffuse=".5 .5 .5" specular=".2 .2 .2"/></visual>
  <asset>
    <texture name="stripes" type="2d" file="stripes.png"/>
    <material name="floor" texture="stripes" texrepeat="4 4"/>
  </asset>
  <worldbody>
    <light pos="1 -1 3" dir="-.3 .3 -1" diffuse=".8 .8 .8"/>
    <camera name="view" pos="0 -1.4 1.1" xyaxes="1 0 0 0 .62 .78"/>
    <geom type="plane" size="2 2 .1" material="floor"/>
    <geom type="box" pos="-.3 0 .15" size=".15 .15 .15" rgba=".8 .2 .2 1"/>
    <geom type="sphere" pos=".1 .1 .2" size=".2" rgba=".2 .6 .3 1"/>
    <geom type="cylinder" pos=".45 -.1 .15" size=".1 .15" rgba=".2 .3 .8 1"/>
  </worldbody>
</mujoco>
"""


@dataclass(frozen=True)
class Rendered:
    """What a backend drew: mean of red, green, blue in [0, 255]; or why it drew nothing."""

    backend: str
    mean: tuple[float, float, float] | None
    error: str = ""

    @property
    def right(self) -> bool:
        """Whether the picture is the known one."""
        return self.mean is not None and max(abs(a - b) for a, b in zip(self.mean, KNOWN_MEAN, strict=True)) < TOLERANCE

    def advice(self) -> str:
        """What to do about a backend that drew nothing, or something else."""
        if self.mean is None:
            return (
                f"apt-get install --no-install-recommends {PACKAGES[self.backend]}; "
                f"or choose another library with MUJOCO_GL={'|'.join(BACKENDS)}"
            )
        return "pip install mujoco==3.3.2; another version or driver draws other pictures than policies were trained on"


def check(backend: str) -> Rendered:
    """Draws the test picture with a backend, in a process of its own."""
    environment = os.environ | {"MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    command = [sys.executable, "-m", "statevla.sims.libero.render_check"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return Rendered(backend, None, f"no picture in {TIMEOUT:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return Rendered(backend, None, said[:200])
    red, green, blue = json.loads(lines[-1])
    return Rendered(backend, (red, green, blue))


def stripes() -> bytes:
    """A PNG marked as sRGB, as LIBERO's textures are: from 3.3.3 on MuJoCo reads the mark and draws them darker."""
    width = 32
    row = b"\0" + b"".join(bytes((90 + 3 * x, 80 + 2 * x, 60 + x)) for x in range(width))

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)  # 8 bits, RGB
    pixels = zlib.compress(row * width)
    parts = (chunk(b"IHDR", header), chunk(b"sRGB", b"\0"), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def draw() -> tuple[float, ...]:
    """Mean red, green and blue of the test picture, drawn in this process."""
    import mujoco

    model = mujoco.MjModel.from_xml_string(SCENE, {"stripes.png": stripes()})
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    renderer = mujoco.Renderer(model, SIDE, SIDE)
    renderer.update_scene(data, camera="view")
    picture = renderer.render()
    renderer.close()
    return tuple(round(float(value), 3) for value in np.asarray(picture, np.float64).mean(axis=(0, 1)))


if __name__ == "__main__":
    print(json.dumps(draw()))
    sys.stdout.flush()
    os._exit(0)  # some drivers crash in their exit handlers after the picture is done
