"""LIBERO's simulator behind a process boundary: installation, tasks, worker processes, scripted experts.

Nothing here imports the simulator in the calling process: its packages (``libero``, ``robosuite``, ``mujoco``) are
imported by ``environment.py`` inside a worker. One environment a process is a rule, not a preference: two rendering
contexts in one process give wrong pictures without an error.

    suites.py       suites, tasks, instructions, benchmark initial states (read from files; no simulator needed)
    paths.py        where the simulator, its assets and its config are; version guard
    protocol.py     what is sent to a worker and what comes back
    environment.py  the environment inside a worker
    worker.py       the worker's loop and the handle that starts, feeds, times out and kills it
    render_check.py draws a test picture; is OpenGL here what it is elsewhere?
    scene.py        privileged view of a scene for experts
    grasp.py        where to put the fingers (pure NumPy)
    pick_place.py   scripted pick-and-place
    experts.py      suite -> expert
"""
