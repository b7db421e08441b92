"""Evaluations side by side: which are comparable, what a pair says, what policies cost, the page."""

import dataclasses
import json
import re
import shlex
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from statevla.config.load import load_config
from statevla.evaluators.compare import compare
from statevla.evaluators.compare_results import page, policy_rows, save, to_markdown
from statevla.evaluators.costs import training_minutes
from statevla.evaluators.evaluate import evaluate
from statevla.evaluators.paired import MOST_TIMES, Paired, difference
from statevla.evaluators.trials import Record, RunDescription, record_line
from statevla.observation import libero_spec
from statevla.policies.controls import ExpertControl, ZeroPolicy
from statevla.policies.policy import Policy
from statevla.runs.migrations import FORMAT
from statevla.runs.state import CheckpointState
from statevla.systems.table import find_system, sections
from statevla.trainers.trainer import train
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.layout import remedy
from tests.trainers.micro import SETTINGS, micro_store

DESCRIPTION = RunDescription("tabletop", "p", 5, None, False, 0, 100, 0, 64, 0, {"numpy": "2"})


def written(
    folder: Path, outcomes: str, policy: str = "film", *, finished: bool = True, identity: str = "", steps: Any = None,
    **changes: Any,
) -> Path:  # fmt: skip
    """An evaluation as it lies on disk: a letter a trial, s success, f failure, e simulator's error."""
    folder.mkdir(parents=True)
    description = dataclasses.replace(DESCRIPTION, policy=identity or policy, **changes)
    (folder / "run.json").write_text(json.dumps(dataclasses.asdict(description)))
    words = {"s": "success", "f": "failure", "e": "error"}
    records = [
        Record(description.suite, "put_it", 0, start, description.seed, "put it", words[letter], 10 + start, 1.0,  # type: ignore[arg-type]
               policy, "", video=f"videos/{start}.gif" if start == 0 else "")
        for start, letter in enumerate(outcomes)
    ]  # fmt: skip
    (folder / "videos").mkdir()
    (folder / "videos" / "0.gif").write_bytes(b"GIF89a")
    (folder / "trials.jsonl").write_text("".join(record_line(record) + "\n" for record in records))
    if finished:
        results = {"policy": policy, "latency": {"p50_ms": 4.5}, "records": [dataclasses.asdict(r) for r in records]}
        results |= {} if steps is None else {"trained_steps": steps}
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_pairs_are_counted_by_trial(tmp_path: Path) -> None:
    one = written(tmp_path / "one", "ssssffff")
    other = written(tmp_path / "two", "ssfffsff")
    found = compare([one, other])
    (pair,) = found.pairs
    assert pair.counts == Paired(both=2, first=2, second=1, neither=3)
    assert (pair.difference, pair.interval) == difference(pair.counts)
    assert pair.more_trials is not None
    assert pair.more_trials > 0
    assert pair.verdict == f"undecided; about {pair.more_trials} more trials would decide it"
    told = found.to_dict()
    assert [each["success"] for each in told["policies"]] == [0.5, 3 / 8]
    assert told["policies"][0]["ms_a_call"] == 4.5
    (pair_told,) = told["pairs"]
    assert (pair_told["first"], pair_told["second"]) == ("one", "two")
    counts = {name: pair_told[name] for name in ("both", "first_only", "second_only", "neither")}
    assert counts == {"both": 2, "first_only": 2, "second_only": 1, "neither": 3}
    assert pair_told["more_trials_to_decide"] == pair.more_trials
    assert json.loads(json.dumps(told)) == told


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("a/eval/tabletop", "b/eval/tabletop"), ["a", "b"]),
        (("a/eval/tabletop", "a/eval/again"), ["a tabletop", "a again"]),
        (("x/a/eval", "x/b/eval", "x/c/run/eval"), ["a", "b", "run"]),
        (("x/a/eval", "x/b/eval", "y/a/eval"), ["x/a", "x/b", "y/a"]),
        (("x/eval", "x/y/eval"), ["x", "y"]),
        (("a/eval/latest", "b/eval"), ["a", "b"]),
        (("x/1/out", "y/1/out"), ["x", "y"]),
    ],
)
def test_names_are_what_tells_evaluations_apart(tmp_path: Path, folders: tuple[str, ...], names: list[str]) -> None:
    found = compare([written(tmp_path / "shared" / folder, "sf") for folder in folders])
    told = [each.name for each in found.evaluations]
    assert told == names


def test_an_evaluation_may_lie_right_in_a_runs_folder(tmp_path: Path) -> None:
    written(tmp_path / "a/eval", "sf")
    written(tmp_path / "b/eval/tabletop", "ss")
    (pair,) = compare([tmp_path / "a", tmp_path / "b"]).pairs
    assert pair.counts == Paired(both=1, first=0, second=1, neither=0)


def test_a_decided_pair_names_the_better_one(tmp_path: Path) -> None:
    one, other = written(tmp_path / "weak", "f" * 30), written(tmp_path / "strong", "s" * 30)
    (pair,) = compare([one, other]).pairs
    assert pair.verdict == "strong is better than weak"


def test_every_pair_of_three_and_a_warning_about_many(tmp_path: Path) -> None:
    found = compare([written(tmp_path / name, "sf") for name in "abc"])
    assert [(pair.first, pair.second) for pair in found.pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert "3 pairs" in found.notes[-1]


@pytest.mark.parametrize(("one", "other"), [("sf", "sf"), ("sf", "fs"), ("s" * 400, "s" * 400)])
def test_equal_counts_prove_nothing_and_the_interval_says_how_much_is_left(
    tmp_path: Path, one: str, other: str
) -> None:
    (pair,) = compare([written(tmp_path / "a", one), written(tmp_path / "b", other)]).pairs
    assert (pair.difference, pair.more_trials) == (0, None)
    most = max(-pair.interval[0], pair.interval[1])
    assert most > (0.5 if len(one) == 2 else 0.005)
    told = f"no difference seen; the interval leaves room for one of {100 * most:.0f} %"
    assert pair.verdict == told


def test_a_difference_too_small_for_many_times_the_trials_is_undecided(tmp_path: Path) -> None:
    one, other = "s" * 30 + "f" * 30 + "s", "f" * 30 + "s" * 30 + "f"
    (pair,) = compare([written(tmp_path / "a", one), written(tmp_path / "b", other)]).pairs
    assert pair.counts == Paired(both=0, first=31, second=30, neither=0)
    assert pair.more_trials is None
    assert pair.verdict == f"undecided; {MOST_TIMES} times as many trials would not decide it"


def test_errors_of_the_simulator_are_no_trials(tmp_path: Path) -> None:
    found = compare([written(tmp_path / "a", "sse"), written(tmp_path / "b", "sff")])
    assert found.pairs[0].counts.trials == 2
    assert any("a: 1 trials ended in a simulator's error" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "outcomes", "complaint"),
    [
        ({"suite": "libero_object"}, "sf", "suite 'tabletop' and 'libero_object'"),
        ({"seed": 3}, "sf", "seed 0 and 3"),
        ({"max_steps": 50}, "sf", "max_steps 100 and 50"),
        ({}, "sfs", r"trials that only .*two has: put_it from start 2"),
    ],
)
def test_other_trials_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], outcomes: str, complaint: str
) -> None:
    one, other = written(tmp_path / "one", "sf"), written(tmp_path / "two", outcomes, **changes)
    with pytest.raises(UsageError, match=f"are not the same trials: {complaint}") as told:
        compare([one, other])
    assert "\n" not in str(told.value)


def test_another_execution_is_compared_and_told(tmp_path: Path) -> None:
    found = compare([written(tmp_path / "a", "sf"), written(tmp_path / "b", "sf", replan=2)])
    assert found.notes == ("a and b were run differently: replan 5 and 2",)


def test_what_is_no_evaluation_is_said(tmp_path: Path) -> None:
    one, empty = written(tmp_path / "one", "sf"), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="expected two runs or more, got 1"):
        compare([one])
    with pytest.raises(UsageError, match="named twice"):
        compare([one, one])
    with pytest.raises(StoreMissing, match=r"no evaluation here; run `statevla eval tabletop"):
        compare([one, empty])
    offline = empty / "eval/offline/offline.md"
    offline.parent.mkdir(parents=True)
    offline.write_text("of a robot that no suite has")
    with pytest.raises(StoreMissing, match=r"only trials of one are compared; .* read .*offline\.md") as told:
        compare([one, empty])
    assert "statevla eval" not in str(told.value)
    with pytest.raises(StoreMissing, match=r"run `statevla eval libero --suite libero_10 --checkpoint"):
        compare([empty, one], "libero_10")
    with pytest.raises(StoreMissing, match=r"nowhere: no such folder; expected a run's") as told:
        compare([one, tmp_path / "nowhere"])
    assert "statevla eval" not in str(told.value)
    with pytest.raises(StoreMissing, match="not finished; run its command again"):
        compare([one, written(tmp_path / "half", "sf", finished=False)])
    broken = written(tmp_path / "broken", "sf")
    (broken / "run.json").write_text("{")
    with pytest.raises(StoreCorrupt, match=r"run.json: not JSON"):
        compare([one, broken])


def test_advised_commands_take_a_folder_with_a_space_as_one_word(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    with pytest.raises(StoreMissing) as told:
        compare([run, run])
    assert shlex.split(str(told.value).split("`")[1])[-2:] == ["--checkpoint", str(run)]
    store = str(tmp_path / "my store")
    assert shlex.split(remedy(store, "shards/x.tar").split("`")[1])[-2:] == ["verify", store]


def test_a_run_means_its_only_evaluation(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "two"
    written(one / "eval" / "tabletop", "sf")
    written(other / "eval" / "tabletop", "ss")
    written(other / "eval" / "object", "ss", suite="libero_object")
    with pytest.raises(UsageError, match=r"several evaluations: .*object, .*tabletop; name one, or --suite"):
        compare([one, other])
    assert [each.name for each in compare([one, other], "tabletop").evaluations] == ["one", "two"]
    again = written(one / "eval" / "image", "sf")
    with pytest.raises(UsageError, match=r"several evaluations: .*image, .*tabletop; name one$"):
        compare([one, other], "tabletop")  # --suite was said and does not tell them apart
    named = compare([one / "eval" / "tabletop", again, other / "eval" / "tabletop"]).evaluations
    assert [each.name for each in named] == ["one tabletop", "one image", "two tabletop"]


def test_the_page_links_films_side_by_side(tmp_path: Path) -> None:
    found = compare([written(tmp_path / name, "sf") for name in ("a<b", "c")])
    save(found, tmp_path / "out" / "deep")
    html = (tmp_path / "out" / "deep" / "index.html").read_text()
    assert re.findall('src="([^"]*)"', html) == ["../../a%3Cb/videos/0.gif", "../../c/videos/0.gif"]
    assert "a<b" not in html
    assert json.loads((tmp_path / "out" / "deep" / "compare.json").read_text()) == found.to_dict()
    assert to_markdown(found) in (tmp_path / "out" / "deep" / "compare.md").read_text()
    assert page(found, tmp_path / "out" / "deep") == html


def test_a_film_is_linked_where_it_is_there_whatever_its_folder_is_called(tmp_path: Path) -> None:
    one, other = (written(tmp_path / name, "sf") for name in ("50 %20, try #2?", "b"))
    (other / "videos" / "0.gif").unlink()
    html = page(compare([one, other]), tmp_path / "out")
    (link,) = re.findall('src="([^"]*)"', html)
    assert (tmp_path / "out" / urllib.parse.unquote(link)).resolve() == one / "videos" / "0.gif"
    assert not {"#", "?", " "} & set(link)
    (one / "videos" / "0.gif").unlink()
    assert "Films" not in page(compare([one, other]), tmp_path / "out")


def test_a_trained_policy_tells_what_it_cost(tmp_path: Path) -> None:
    config = load_config("tiny", None, (*SETTINGS, "training.max_steps=4"), sections())
    summary = train("film", config, micro_store(tmp_path / "store"), tmp_path / "film-0")
    identity = Policy.load(summary.checkpoint).identity
    run = written(tmp_path / "film-0" / "eval" / "tabletop", "sf", policy=summary.checkpoint, identity=identity)
    control = written(tmp_path / "expert", "ss", policy="expert")
    told = compare([run.parents[1], control]).to_dict()["policies"]
    assert (told[0]["name"], told[0]["system"], told[0]["parameters"]) == ("film-0", "film", 191_590)
    assert told[0]["training_minutes"] > 0
    assert (told[1]["parameters"], told[1]["training_minutes"]) == (None, None)
    (tmp_path / "film-0").rename(tmp_path / "moved")
    moved = compare([tmp_path / "moved", control])
    assert moved.to_dict()["policies"][0]["parameters"] == 191_590
    assert policy_rows(moved)[0][4] == "191,590"


def test_minutes_are_those_of_the_policy_that_was_evaluated(tmp_path: Path) -> None:
    store, run = micro_store(tmp_path / "store"), tmp_path / "film-0"
    summary = train("film", load_config("tiny", None, (*SETTINGS, "training.max_steps=2"), sections()), store, run)
    early = Policy.load(summary.checkpoint)
    told = {"policy": summary.checkpoint, "identity": early.identity}
    by_identity = written(run / "eval" / "early", "sf", **told)
    recorded = written(run / "eval" / "recorded", "sf", **told, steps=early.step)
    half = compare([by_identity, recorded]).to_dict()["policies"]
    assert half[0]["training_minutes"] == half[1]["training_minutes"] > 0
    longer = load_config("tiny", None, (*SETTINGS, "training.max_steps=8"), sections())
    train("film", longer, store, run, resume=True)
    late = written(run / "eval" / "late", "sf", **told | {"identity": Policy.load(summary.checkpoint).identity})
    found = compare([by_identity, recorded, late])
    minutes = [each["training_minutes"] for each in found.to_dict()["policies"]]
    assert minutes[0] is None  # the checkpoint that is there now is another policy
    assert minutes[1] == half[1]["training_minutes"]
    assert minutes[2] > minutes[1]
    assert [note for note in found.notes if "is not the policy that was evaluated" in note]


def test_an_encoders_minutes_are_of_its_own_batch_and_steps(tmp_path: Path) -> None:
    encoder, policy = find_system("temporal_jepa"), find_system("film")
    latest = tmp_path / "checkpoints" / encoder.folder / "checkpoint_latest"
    latest.mkdir(parents=True)
    (latest / "state.json").write_text(json.dumps(state_of(16)))
    for row in (encoder, policy):
        lines = [json.dumps({"kind": "train", "step": step, "samples_per_s": 10.0}) for step in (10, 20, 30)]
        (tmp_path / f"metrics_{row.folder}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    parent = {"system": encoder.name, "checkpoint": latest.name, "step": 20}
    state = CheckpointState(**state_of(160, parent=parent))
    assert training_minutes(tmp_path, policy, state, 30) == pytest.approx((30 * 160 + 20 * 16) / 10 / 60)


def state_of(batch_size: int, parent: dict[str, Any] | None = None) -> dict[str, Any]:
    """A checkpoint's state with little in it."""
    dicts: dict[str, Any] = {
        name: {}
        for name in (
            "loader",
            "scheduler",
            "rng",
            "obs_spec",
            "statistics",
            "init_states",
            "made_by",
            "language",
            "files",
        )
    }
    texts = dict.fromkeys(("system", "content_hash", "code_version"), "")
    return {
        **dicts, **texts, "instructions": [], "format": FORMAT, "epoch": 0, "step": 30, "loss": 0.0, "best": None,
        "backbone": None, "parent": parent, "config": {"training": {"batch_size": batch_size}},
    }  # fmt: skip


def test_controls_of_the_one_evaluator(tmp_path: Path) -> None:
    spec = libero_spec(32)
    for name, policy in (("expert", ExpertControl(0)), ("zero", ZeroPolicy(spec))):
        evaluate(policy, "tabletop", out=tmp_path / name, name=name, episodes=4, tasks="0", max_steps=60)
    (pair,) = compare([tmp_path / "expert", tmp_path / "zero"]).pairs
    assert pair.counts == Paired(0, 4, 0, 0)
    assert pair.verdict == "expert is better than zero"
