"""LIBERO's simulator behind a process boundary: installation, tasks, worker processes, scripted experts.

Nothing here imports the simulator in the calling process: its packages (``libero``, ``robosuite``, ``mujoco``) are
imported by ``environment.py`` inside a worker. One environment a process is a rule, not a preference: two rendering
contexts in one process give wrong pictures without an error.

    suites.py          suites, tasks, instructions, benchmark initial states (read from files; no simulator needed)
    pro.py             LIBERO-PRO's suites, read from its package's files
    assets.py          meshes and textures: which suite needs which, where they are, how they come here
    paths.py           where the simulator and its config are; version guard
    memory.py          how many workers fit into this machine
    protocol.py        what is sent to a worker and what comes back
    environment.py     the environment inside a worker
    scatter.py         other places for the things of a scene
    recorder.py        an episode without pictures, to be drawn later
    culling.py         what a camera cannot see is not drawn
    perturb.py         other cameras, other light, noise
    pushes.py          what pushes the hand off its way while an expert demonstrates
    custom_objects.py  things of LIBERO-PRO's scenes
    worker.py          the worker's loop and the handle that starts, feeds, times out and kills it
    render_check.py    draws a test picture; is OpenGL here what it is elsewhere?
    scene.py           privileged view of a scene for experts
    experts/           scripted experts: skills, and a program a task
"""
