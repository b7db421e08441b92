"""One LIBERO environment, inside a worker process. The only module that imports the simulator.

A camera is drawn only when somebody looks. The simulator samples its sensors at its own moment within a control step
(a physics substep or two before the end), so drawing after the step would give slightly other pixels than the files
have; here the camera *sensors* are wrapped instead: they draw at the simulator's own moment or not at all, and a test
checks that pictures and states are those of drawing every step. When nobody looks, what they would have drawn is noted
(see :class:`~statevla.sims.libero.protocol.Track`), so that a recorded episode can be drawn later, pixel for pixel.

Legend: n actions, S numbers of a simulator state, H height, W width.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statevla.sims.libero import custom_objects, paths, render_check, scatter
from statevla.sims.libero.culling import Culling
from statevla.sims.libero.errors import SimulatorMissing
from statevla.sims.libero.experts import DONE, Expert, make_expert
from statevla.sims.libero.perturb import Eyes
from statevla.sims.libero.protocol import (
    IMAGE_KEYS,
    PROPRIOCEPTION_KEYS,
    Demonstrate,
    Draw,
    Reply,
    Reset,
    Run,
    RunExpert,
    Scenery,
    SetState,
    Track,
    WorkerSpec,
)
from statevla.sims.libero.pushes import Pushes
from statevla.sims.libero.recorder import Camera, Recorder, Tape
from statevla.sims.libero.scene import MujocoScene
from statevla.sims.libero.suites import SETTLE_ACTION

CAMERAS = ("robot0_eye_in_hand", "agentview")
"""Order in which LIBERO's own recording names them; it changes nothing but a text in the files."""

NO_HORIZON = 1_000_000
"""The evaluator counts steps; robosuite must not end an episode on its own."""


class Environment:
    """A task's simulation with lazily drawn cameras."""

    def __init__(self, spec: WorkerSpec) -> None:
        paths.prepare()
        paths.use_assets(spec.assets)
        custom_objects.register(spec.assets)
        import robosuite.macros as macros
        from libero.libero.envs import bddl_utils
        from libero.libero.envs.env_wrapper import ControlEnv
        from robosuite import load_controller_config

        self._spec = spec
        self._looking = False
        try:
            self._env: Any = ControlEnv(
                str(spec.bddl),
                use_camera_obs=True,
                has_renderer=False,
                has_offscreen_renderer=True,
                camera_names=list(CAMERAS),
                camera_heights=spec.image_size,
                camera_widths=spec.image_size,
                hard_reset=False,
                horizon=NO_HORIZON,
                ignore_done=True,
            )
        except KeyError as error:  # LIBERO's table of things, asked for a class by name
            raise SimulatorMissing(
                f"{spec.suite}, task {spec.task!r}: the simulator has no class, and the assets no model, for {error}"
            ) from error
        except Exception as error:  # bindings of OpenGL raise ImportError, AttributeError, RuntimeError, their own, ...
            drawn = (
                render_check.check(os.environ["MUJOCO_GL"])
                if os.environ["MUJOCO_GL"] in render_check.BACKENDS
                else None
            )
            if drawn is None or drawn.mean is not None:
                raise
            raise SimulatorMissing(
                f"OpenGL cannot draw with MUJOCO_GL={drawn.backend} ({drawn.error}). Run: {drawn.advice()}"
            ) from error
        self._eyes = Eyes(self._env.sim.model)
        self._recorder = Recorder(self._env.sim)
        self._culling = Culling(self._env.sim)
        self._drawers: dict[str, Camera] = {}
        self._wrap_cameras()
        self._gripper_at_start = self._gripper.current_action.copy()
        self._glow_at_start = np.array(self._env.sim.model.site_rgba)
        self._obs: dict[str, NDArray[Any]] = {}
        self._expert: Expert | None = None
        self._steps = 0
        inner = self._env.env
        self.scenery = Scenery(
            env_name=type(inner).__name__,
            problem_info=dict(bddl_utils.get_problem_info(str(spec.bddl))),
            env_kwargs={
                "robots": ["Panda"],
                "controller_configs": load_controller_config(default_controller="OSC_POSE"),
                "bddl_file_name": str(spec.bddl),
                "has_renderer": False,
                "has_offscreen_renderer": True,
                "ignore_done": True,
                "use_camera_obs": True,
                "camera_depths": False,
                "camera_names": list(CAMERAS),
                "reward_shaping": True,
                "control_freq": 20,
                "camera_heights": spec.image_size,
                "camera_widths": spec.image_size,
                "camera_segmentations": None,
            },
            bddl_content=spec.bddl.read_text(),
            image_convention=str(macros.IMAGE_CONVENTION),
        )

    @property
    def _gripper(self) -> Any:
        return self._env.robots[0].gripper

    @contextlib.contextmanager
    def _open(self, opened: bool) -> Any:
        self._looking, before = opened, self._looking
        try:
            yield
        finally:
            self._looking = before

    def _wrap_cameras(self) -> None:
        for number, key in enumerate(IMAGE_KEYS):
            self._drawers[key] = self._culled(key.removesuffix("_image"), self._env.env._observables[key]._sensor)
            self._env.env.modify_observable(key, "sensor", self._lazy(number, self._drawers[key]))

    def _culled(self, name: str, draw: Camera) -> Camera:
        def camera(cache: dict[str, Any]) -> NDArray[np.uint8]:
            with self._culling.only_seen_by(name):
                return draw(cache)

        return camera

    def _lazy(self, number: int, draw: Camera) -> Any:
        blank = np.zeros((self._spec.image_size, self._spec.image_size, 3), np.uint8)

        def camera(cache: dict[str, Any]) -> NDArray[np.uint8]:
            self._recorder.look()
            return self._eyes.spoil(draw(cache), number, float(self._env.sim.data.time)) if self._looking else blank

        camera.__modality__ = "image"  # type: ignore[attr-defined]  # how robosuite marks a sensor
        return camera

    # --- requests ---------------------------------------------------------------------------------------------------

    def reset(self, request: Reset) -> Reply:
        """Starts an episode as :class:`Reset` says; looks at the end."""
        started = time.perf_counter()
        self._env.seed(request.fixtures)  # where a reset puts what a state does not hold
        self._eyes.take(request.perturbation)
        # A stove that was lit would leave its burner another opacity: robosuite hides it by -x, LIBERO shows it by
        # 1 - x.
        self._env.sim.model.site_rgba[:] = self._glow_at_start
        self._env.reset()
        # robosuite keeps the gripper's position command over a soft reset, and it too would make an episode depend on
        # the one before it.
        self._gripper.current_action = self._gripper_at_start.copy()
        with self._open(request.settle == 0 and not request.restore_again):
            self._obs = self._env.set_init_state(request.state)
        if request.scatter is not None:
            self._scatter(request.scatter)
        for step in range(request.settle):
            with self._open(step == request.settle - 1 and not request.restore_again):
                self._obs = self._env.step(list(SETTLE_ACTION))[0]
        if request.restore_again:
            with self._open(True):
                self._obs = self._env.set_init_state(request.state)
        self._expert, self._steps = None, 0
        if request.expert_seed is not None:
            self._expert = self._new_expert(request.expert_seed)
        model = paths.portable(self._env.sim.model.get_xml(), self._spec.assets)
        return self._reply(True, np.zeros((0, 7)), None, started, model=model)

    def _scatter(self, seed: tuple[int, ...]) -> None:
        inner = self._env.env
        for name, shift in scatter.shifts(MujocoScene.of(inner), np.random.default_rng(list(seed))).items():
            joint = inner.objects_dict[name].joints[-1]
            place = np.array(inner.sim.data.get_joint_qpos(joint))
            place[:2] += shift
            inner.sim.data.set_joint_qpos(joint, place)
        inner.sim.forward()

    def run(self, request: Run) -> Reply:
        """Executes actions; see :class:`Run`."""
        actions = iter(np.asarray(request.actions, np.float64))
        return self._run(lambda: next(actions), len(request.actions), request)

    def run_expert(self, request: RunExpert) -> Reply:
        """Executes the expert's actions; see :class:`RunExpert`."""
        expert = self._need_expert(request)
        return self._run(lambda: expert.act(self._pose()), request.steps, request)

    def _run(self, next_action: Callable[[], NDArray[np.float64]], steps: int, request: Run | RunExpert) -> Reply:
        started = time.perf_counter()
        done: list[NDArray[np.float64]] = []
        film: list[dict[str, NDArray[Any]]] = []
        success_step = None
        drawn = False
        for step in range(steps):
            action = next_action()
            self._steps += 1
            filmed = request.film > 0 and self._steps % request.film == 0
            drawn = filmed or (request.look and step == steps - 1)
            with self._open(drawn):
                self._obs, _, success, _ = self._env.step(action)
            done.append(action)
            if filmed:
                film.append(self._seen(images=True))
            if success and success_step is None:
                success_step = step
                if not request.through:
                    break
        if done and request.look and not drawn:  # success came before the step that was to be looked at
            self._look()
            drawn = True
        return self._reply(drawn, np.array(done).reshape(-1, 7), success_step, started, film=film)

    def demonstrate(self, request: Demonstrate) -> Reply:
        """Records the expert's episode; see :class:`Demonstrate`."""
        started = time.perf_counter()
        if request.take_over is not None:
            self._expert = self._new_expert(request.take_over)
        expert = self._need_expert(request)
        pushes = Pushes(request.noise, np.random.default_rng(list(request.noise_seed)))
        tape = self._tape()
        steps = first = held = 0
        while True:
            label = expert.act(self._pose())
            executed = label.copy()
            executed[:6] = np.clip(label[:6] + pushes.next(), -1.0, 1.0)
            succeeded = self._step_on(tape, executed, label, expert.stage)
            held = held + 1 if succeeded else 0
            steps += 1
            first = first or (steps if succeeded else 0)
            achieved = held >= request.hold and expert.stage == DONE
            if achieved or steps >= request.steps + (request.hold if first else 0):
                return self._reply(False, np.array(tape.executed), None, started, track=tape.track())

    def draw(self, request: Draw) -> Reply:
        """Draws recorded moments; see :class:`Draw`."""
        started = time.perf_counter()
        film = []
        for positions, glow in zip(request.drawn, request.glow, strict=True):
            self._recorder.restore(positions, glow)
            film.append({key: np.array(draw({})) for key, draw in self._drawers.items()})
        return self._reply(False, np.zeros((0, 7)), None, started, film=film)

    def _new_expert(self, seed: tuple[int, ...]) -> Expert:
        rng = np.random.default_rng(list(seed))
        return make_expert(self._spec.suite, self._spec.index, MujocoScene.of(self._env.env), self._pose(), rng)

    def _need_expert(self, request: object) -> Expert:
        if self._expert is None:
            raise RuntimeError(f"{type(request).__name__} before a Reset with an expert_seed")
        return self._expert

    def _tape(self) -> Tape:
        tape = Tape()
        tape.observe(self._env.get_sim_state(), self._recorder, self._seen(images=False))
        return tape

    def _step_on(self, tape: Tape, executed: NDArray[np.float64], label: NDArray[np.float64], stage: str) -> bool:
        """One step, onto the tape; whether the task is achieved after it."""
        self._obs, _, success, _ = self._env.step(executed)
        tape.act(executed, label, bool(success), stage)
        tape.observe(self._env.get_sim_state(), self._recorder, self._seen(images=False))
        return bool(success)

    def set_state(self, request: SetState) -> Reply:
        """Restores a state and looks."""
        started = time.perf_counter()
        with self._open(True):
            self._obs = self._env.set_init_state(request.state)
        return self._reply(True, np.zeros((0, 7)), None, started)

    def observe(self) -> Reply:
        """Draws the present state."""
        started = time.perf_counter()
        self._look()
        return self._reply(True, np.zeros((0, 7)), None, started)

    def close(self) -> None:
        """Frees the rendering context."""
        self._env.close()

    def _look(self) -> None:
        with self._open(True):
            self._obs = self._env.env._get_observations(force_update=True)

    def _pose(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self._obs["robot0_eef_pos"]), np.array(self._obs["robot0_eef_quat"])

    def _seen(self, images: bool) -> dict[str, NDArray[Any]]:
        keys = (*PROPRIOCEPTION_KEYS, *(IMAGE_KEYS if images else ()))
        return {key: np.array(self._obs[key]) for key in keys}

    def _reply(
        self,
        images: bool,
        actions: NDArray[np.float64],
        success_step: int | None,
        started: float,
        model: str = "",
        film: list[dict[str, NDArray[Any]]] | None = None,
        track: Track | None = None,
    ) -> Reply:
        return Reply(
            observation=self._seen(images) if self._obs else {},  # a simulator that only draws never saw anything
            state=np.array(self._env.get_sim_state(), np.float64),
            actions=actions,
            success_step=success_step,
            succeeded=bool(self._env.check_success()),
            film=film or [],
            track=track,
            model=model,
            stage=self._expert.stage if self._expert is not None else "",
            seconds=time.perf_counter() - started,
        )
