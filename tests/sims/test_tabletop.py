"""The tabletop world and its expert."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statevla.sims.tabletop import arm
from statevla.sims.tabletop.environment import (
    BLOCKS,
    BOWLS,
    FINGER_HOLD,
    HIGH,
    LOW,
    STATE_SIZE,
    TASKS,
    TabletopEnv,
    task_name,
)
from statevla.sims.tabletop.expert import TabletopExpert
from statevla.sims.tabletop.render import AGENT_WIDTH, BLOCK_HALF, HAND_ANGLE, HAND_CAMERA
from stores.errors import UsageError


def rollout(env: TabletopEnv, task: int, seed: int, follow: int | None = None) -> bool:
    obs = env.reset(task, seed)
    expert = TabletopExpert(env, np.random.default_rng(seed), task=follow)
    for _ in range(env.max_steps):
        obs, _, done, _ = env.step(expert.act(obs))
        if done:
            return True
    return False


@given(st.tuples(*(st.floats(float(low), float(high)) for low, high in zip(LOW, HIGH, strict=True))))
@settings(max_examples=200)
def test_forward_kinematics_undoes_inverse_in_the_whole_workspace(pose: tuple[float, ...]) -> None:
    joints = arm.inverse(np.array(pose))
    assert np.isfinite(joints).all()
    np.testing.assert_allclose(arm.forward(joints), pose, atol=1e-9)


def test_forward_kinematics_of_a_straight_arm() -> None:
    # All horizontal links along x, lift folded straight up: reach 0.8 m, height 0.5 m above its floor.
    joints = np.array([0.0, 0.0, np.pi / 2, 0.0, 0.0, 0.1, 0.2])
    np.testing.assert_allclose(arm.forward(joints), [0.8, -0.45, 0.4, 0.3], atol=1e-12)


def test_joints_are_continuous_along_random_walks() -> None:
    env = TabletopEnv()
    rng = np.random.default_rng(0)
    before = env.reset(0, 0)["robot0_joint_pos"]
    for _ in range(300):
        after = env.step(rng.uniform(-1, 1, 7))[0]["robot0_joint_pos"]
        assert np.abs(after - before).max() < 1.0
        before = after


def test_expert_solves_every_task() -> None:
    env = TabletopEnv()
    assert all(rollout(env, seed % len(TASKS), seed) for seed in range(40))


@pytest.mark.slow
def test_expert_success_over_500_seeds() -> None:
    env = TabletopEnv()
    assert sum(rollout(env, seed % len(TASKS), seed) for seed in range(500)) >= 495


def test_expert_of_another_instruction_fails() -> None:
    env = TabletopEnv()
    for task in range(len(TASKS)):
        for follow in set(range(len(TASKS))) - {task}:
            assert not rollout(env, task, seed=7, follow=follow)


def test_expert_moves_without_turning() -> None:
    env = TabletopEnv()
    for task in range(len(TASKS)):
        env.reset(task, task)
        expert = TabletopExpert(env, np.random.default_rng(task), noise=0.3)
        assert env.pose[3] == 0
        for _ in range(15):
            action = expert.act({})
            np.testing.assert_array_equal(action[3:6], 0)
            env.step(action)
        assert env.pose[3] == 0


def test_the_suite_is_every_block_in_every_bowl() -> None:
    assert TASKS == (
        "put the red block in the blue bowl",
        "put the red block in the yellow bowl",
        "put the green block in the blue bowl",
        "put the green block in the yellow bowl",
    )


def test_what_tells_the_blocks_apart_does_not_see_the_bowls() -> None:
    colours = np.array([*BLOCKS.values(), *BOWLS.values()], float)
    hues = colours - colours.mean(1, keepdims=True)  # without grey
    hues /= np.linalg.norm(hues, axis=1, keepdims=True)
    wanted = [[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, -1], [0, 0, -1, 1]]
    np.testing.assert_allclose(hues @ hues.T, wanted, atol=0.25)


def test_instruction_names_the_targets() -> None:
    for task, text in enumerate(TASKS):
        block, bowl = TabletopEnv.targets(task)
        assert list(BLOCKS)[block] in text
        assert list(BOWLS)[bowl - len(BLOCKS)] in text
        assert task_name(task) == "_".join(text.split())


def test_layout_depends_on_the_seed_alone() -> None:
    one, two = TabletopEnv(seed=1), TabletopEnv(seed=2)
    one.reset(0, 5)
    two.reset(3, 5)
    np.testing.assert_array_equal(one.get_state(), two.get_state())
    two.reset(3, 6)
    assert np.abs(one.get_state() - two.get_state()).max() > 0.01


def test_same_seed_and_actions_give_the_same_episode() -> None:
    def trace() -> list[np.ndarray]:
        env = TabletopEnv(seed=3)
        rng = np.random.default_rng(4)
        seen = [env.reset()]
        seen += [env.step(rng.uniform(-1, 1, 7))[0] for _ in range(20)]
        return [value for obs in seen for value in obs.values()]

    for first, second in zip(trace(), trace(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_actions_move_and_clip_in_controller_units() -> None:
    env = TabletopEnv()
    env.reset(0, 0)
    env.pose = np.array([0.0, 0.0, 0.1, 0.0])
    env.step(np.array([0.5, -1.0, 0.2, 0.9, 0.9, 0.1, -1.0]))
    np.testing.assert_allclose(env.pose, [0.025, -0.05, 0.11, 0.05], atol=1e-12)
    env.step(np.array([0.0, 9.0, 0.0, 0.0, 0.0, 0.0, -9.0]))
    np.testing.assert_allclose(env.pose, [0.025, 0.0, 0.11, 0.05], atol=1e-12)
    for _ in range(20):
        env.step(np.array([1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]))
    np.testing.assert_allclose(env.pose[:3], [0.25, 0.25, 0.015])


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan), np.zeros((1, 7))])
def test_bad_actions_are_refused(action: np.ndarray) -> None:
    env = TabletopEnv()
    env.reset(0, 0)
    with pytest.raises(UsageError, match="action"):
        env.step(action)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="image_size"):
        TabletopEnv(image_size=15)
    env = TabletopEnv()
    with pytest.raises(UsageError, match="task"):
        env.reset(len(TASKS), 0)
    with pytest.raises(UsageError, match="state"):
        env.set_state(np.zeros(3))


def test_gripper_takes_carries_and_drops_a_block() -> None:
    env = TabletopEnv()
    env.reset(0, 0)
    env.pose = np.array([*(env.objects[0, :2] + [0.055, 0.0]), 0.045, 0.0])
    close, lift, drop = (np.array([0, 0, up, 0, 0, 0, grip], float) for up, grip in ((0, 1), (1, 1), (0, -1)))
    env.step(close)
    assert env.held is None
    env.step(close)
    assert env.held == 0
    env.step(lift)
    np.testing.assert_allclose(env.objects[0, :3], env.pose[:3])
    obs, _, _, _ = env.step(drop)
    assert env.held is None
    assert env.objects[0, 2] == BLOCK_HALF
    np.testing.assert_allclose(obs["robot0_gripper_qpos"], [0.04, -0.04], atol=1e-12)


def test_gripper_too_far_or_too_high_takes_nothing() -> None:
    for offset, height in ((0.065, 0.02), (0.0, 0.055)):
        env = TabletopEnv()
        env.reset(0, 0)
        env.pose = np.array([*(env.objects[0, :2] + [offset, 0.0]), height, 0.0])
        for _ in range(6):
            obs, _, _, _ = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
        assert env.held is None
        np.testing.assert_array_equal(obs["robot0_gripper_qpos"], [0.0, 0.0])


def test_success_waits_for_the_release() -> None:
    env = TabletopEnv()
    env.reset(0, 0)
    block, bowl = env.targets(0)
    env.held, env.finger = block, FINGER_HOLD
    env.pose = np.array([*env.objects[bowl, :2], 0.08, 0.0])
    _, reward, done, info = env.step(np.array([0, 0, 0, 0, 0, 0, 1.0]))
    assert (reward, done, info["success"]) == (0.0, False, False)
    _, reward, done, info = env.step(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    assert (reward, done, info["success"]) == (1.0, True, True)


def test_state_layout_and_restore_in_the_middle_of_a_carry() -> None:
    env, other = TabletopEnv(), TabletopEnv()
    obs = env.reset(3, 11)
    expert = TabletopExpert(env, np.random.default_rng(0))
    while env.held is None:
        obs = env.step(expert.act(obs))[0]
    state = env.get_state()
    assert state.shape == (STATE_SIZE,)
    assert state.dtype == np.float64
    assert state[0] == env.steps / 20
    np.testing.assert_array_equal(state[1:8], obs["robot0_joint_pos"])
    np.testing.assert_array_equal(state[8:10], obs["robot0_gripper_qpos"])
    other.reset(3, 99)
    other.set_state(state)
    assert other.held == env.held
    for _ in range(15):
        action = expert.act(obs)
        obs = env.step(action)[0]
        other.step(action)
        np.testing.assert_allclose(other.get_state(), env.get_state(), atol=1e-9)


def test_observation_keys_types_and_image_convention() -> None:
    env = TabletopEnv(image_size=32)
    obs = env.reset(0, 0)
    assert {key: (value.dtype, value.shape) for key, value in obs.items()} == {
        "agentview_image": (np.uint8, (32, 32, 3)),
        "robot0_eye_in_hand_image": (np.uint8, (32, 32, 3)),
        "robot0_joint_pos": (np.float64, (7,)),
        "robot0_gripper_qpos": (np.float64, (2,)),
    }
    agent, hand = env.render_upright()
    np.testing.assert_array_equal(obs["agentview_image"], agent[::-1])
    np.testing.assert_array_equal(obs["robot0_eye_in_hand_image"], hand[::-1])


def _red_centre(image: np.ndarray) -> np.ndarray:
    """Row and column of the mean red pixel."""
    pixels = image.astype(int)
    red = (pixels[..., 0] > 130) & (pixels[..., 1] < 90) & (pixels[..., 2] < 90)
    assert red.any()
    return np.argwhere(red).mean(0) + 0.5


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("spot", [(0.15, 0.15), (-0.15, 0.12), (-0.1, -0.15)])
def test_upright_pictures_show_things_where_they_are(spot: tuple[float, float], size: int) -> None:
    env = TabletopEnv(image_size=size)
    env.reset(0, 0)
    env.objects[:, :2] = [spot, (0.2, -0.2), (-0.2, 0.2), (0.2, 0.0)]
    env.pose = np.array([0.0, 0.02, 0.2, 0.0])
    agent, hand = env.render_upright()
    x, y = spot
    scale = size / AGENT_WIDTH
    np.testing.assert_allclose(_red_centre(agent), [size / 2 - y * scale, size / 2 + x * scale], atol=1.0)
    scale = size / (HAND_ANGLE * (HAND_CAMERA + 0.2))
    np.testing.assert_allclose(_red_centre(hand), [size / 2 - (y - 0.02) * scale, size / 2 + x * scale], atol=1.2)


def test_pictures_follow_every_change_of_the_scene() -> None:
    env = TabletopEnv()
    env.reset(0, 0)
    expert = TabletopExpert(env, np.random.default_rng(0))
    for _ in range(40):
        obs = env.step(expert.act({}))[0]
        # A renderer that has drawn nothing before must agree with one that keeps what rests.
        fresh = TabletopEnv()
        fresh.pose, fresh.finger, fresh.objects, fresh.held = env.pose, env.finger, env.objects, env.held
        np.testing.assert_array_equal(fresh.observe()["agentview_image"], obs["agentview_image"])
        np.testing.assert_array_equal(fresh.observe()["robot0_eye_in_hand_image"], obs["robot0_eye_in_hand_image"])
