"""The command line as a script sees it: one JSON object, fixed keys, exit status. An ingest, a
training and some errors run as processes, the rest in this one (`tests.commands`)."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import typer

from cli import app
from tests.commands import ROOT, as_process, one_object, statevla
from tests.pipelines.make_hdf5 import write_suite

MICRO = (
    *(
        "--preset",
        "tiny",
        "--set",
        "model.embed_dim=32",
        "--set",
        "model.encoder_depth=1",
        "--set",
        "model.image_size=32",
    ),
    *(
        "--set",
        "model.policy_layers=1",
        "--set",
        "training.phase1.temporal_predictor_hidden_dim=32",
        "--set",
        "model.gripper_width=32",
    ),
    *("--set", "training.max_steps=3", "--set", "training.batch_size=8", "--set", "training.log_interval=1"),
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which demonstrations were collected, ingested, and both phases trained for three steps."""
    folder = tmp_path_factory.mktemp("project")
    results = {"collect": one_object(folder, "collect", "tabletop", "--episodes", 12)}
    results["ingest"] = one_object(folder, "ingest", "tabletop", "--language", "hashed", run=as_process)
    results["stats"] = one_object(folder, "stats")
    results["train 1"] = one_object(folder, "train", "--phase", 1, *MICRO)
    results["train 2"] = one_object(folder, "train", "--phase", 2, *MICRO, run=as_process)
    return folder, results


STORE = Path("data/stores/tabletop")


def test_ingest_inspect_and_stats_report_the_fixed_keys(project):
    folder, results = project
    assert results["ingest"]["episodes"] == 12
    assert results["ingest"]["quarantined"] == 0
    assert results["ingest"]["store"] == str(STORE)
    inspected = one_object(folder, "inspect", STORE)
    for key in ("episodes", "frames", "bytes", "quarantined", "store"):
        assert inspected[key] == results["ingest"][key], key
    for name, size in (("action", 7), ("robot_state", 9)):
        for column in ("mean", "std", "min", "max", "q01", "q99"):
            assert len(results["stats"][name][column]) == size
        assert results["stats"][name]["count"] > 0


def test_verify_names_a_flipped_byte_with_status_1(project):
    folder, _ = project
    good = one_object(folder, "verify", STORE)
    assert good["ok"] is True
    assert good["problems"] == []
    shard = sorted((folder / STORE / "shards").iterdir())[0]
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
        bad = one_object(folder, "verify", STORE, status=1)
    finally:
        shard.write_bytes(whole)
    assert bad["ok"] is False
    assert [problem["object"] for problem in bad["problems"]] == [f"shards/{shard.name}"]


def test_training_reports_run_steps_best_and_checkpoint(project):
    folder, results = project
    for phase, system in ((1, "temporal_jepa"), (2, "flow_matching")):
        result = results[f"train {phase}"]
        assert result["system"] == system
        assert result["stopped"] is False
        assert result["steps"] == 3
        assert set(result["best"]) == {"step", "val_loss"}
        assert (folder / result["checkpoint"] / "model.safetensors").is_file()
        assert result["run"] == "runs/tabletop"
    again = one_object(folder, "train", "--resume", "runs/tabletop")
    assert (again["system"], again["steps"]) == ("flow_matching", 3)


def test_offline_and_closed_loop_evaluation(project):
    folder, _ = project
    offline = one_object(folder, "eval", "offline")
    assert list(offline["mse"]) == ["x", "y", "z", "rx", "ry", "rz", "gripper"]
    for key in ("mse_normalized", "baseline_mean_action_mse_normalized", "gripper_accuracy", "episodes", "frames"):
        assert isinstance(offline[key], int | float)
    loop = one_object(folder, "eval", "tabletop", "--episodes", 2, "--videos", 1)
    assert loop["trials"] == 2
    assert loop["errors"] == 0
    assert loop["interval"][0] <= loop["success"] <= loop["interval"][1]
    assert loop["records"][0]["video"]
    assert (folder / loop["out"] / "index.html").is_file()
    assert loop["out"] == f"runs/tabletop/eval/tabletop-{loop['identity'][:8]}"
    assert set(loop["instructions"].values()) == {f"put the {b} block in the {g} bowl" for b in ("red", "green")
                                     for g in ("blue", "yellow")}  # fmt: skip


def test_a_policy_is_told_otherwise_in_the_suite_that_it_was_trained_on(project):
    folder, _ = project
    told = one_object(folder, "eval", "language", "--tasks", "0", "--num-trials", 1, "--max-steps", 2)
    assert told["suite"] == "tabletop"
    assert "language" in told["out"]


def test_describe_prints_the_parameter_table(tmp_path):
    base = one_object(tmp_path, "describe")
    assert list(base["parts"]) == [
        "tokenizer", "context_encoder", "state_projection", "temporal_predictor", "flow_policy", "gripper_classifier",
    ]  # fmt: skip
    assert base["trainable"] == sum(base["parts"].values())
    table, _ = statevla(tmp_path, "describe", "--preset", "tiny")
    assert "context_encoder" in table


def test_config_prints_every_key_in_one_line(tmp_path):
    lines, _ = statevla(tmp_path, "config", "--recipe", "libero")
    keys = [line.split()[0] for line in lines.splitlines()]
    assert {"data.cache_gib", "model.embed_dim", "training.phase1.learning_rate", "training.ema_momentum"} <= set(keys)
    assert len(keys) == len(set(keys))
    listed = one_object(tmp_path, "config", "--recipe", "libero", "--set", "training.warmup_steps=7")
    assert list(listed) == keys
    assert listed["data.cache_gib"]["value"] == 6
    assert listed["training.warmup_steps"] == {"value": 7, "range": "int, 0 or more", "help": "steps of linear warmup"}


def test_a_bad_demo_gives_status_3_and_the_rest_is_ingested(project, tmp_path):
    folder, _ = project
    raw = tmp_path / "data/raw/mixed"
    raw.mkdir(parents=True)
    good = sorted((folder / "data/raw/tabletop").iterdir())[0]
    (raw / good.name).write_bytes(good.read_bytes())
    (raw / "broken_demo.hdf5").write_bytes(b"not a demonstration")
    result = one_object(tmp_path, "ingest", "mixed", "--language", "hashed", status=3)
    assert result["quarantined"] == 1
    assert result["episodes"] > 0


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("ingest", "nowhere"), 2, "data/raw/nowhere"),
        (("eval", "offline"), 2, "statevla train --phase 2"),
        (("train", "--phase", "3"), 2, "--phase"),
        (("train",), 2, "--system NAME (temporal_jepa, flow_matching, film"),
        (("train", "--phase", "1", "--system", "flow_matching"), 2, "not the same system"),
        (("train", "--resume", "nowhere"), 1, "nothing to resume"),
        (("describe", "--set", "model.embed_dmi=3"), 2, "did you mean 'model.embed_dim'"),
        (("describe", "--preset", "huge"), 2, "base, original, small, tiny"),
        (("verify", "nothing"), 1, "nothing"),
        (("eval", "libero", "--suite", "../evil"), 2, "no suite '../evil'"),
        (("eval", "tabletop", "--checkpoint", "nowhere"), 1, "nowhere"),
        (("eval", "tabletop", "--policy", "luck"), 2, "checkpoint, replay-demos, expert, zero"),
        (("bench", "nothing"), 2, "stream"),
        (("bench", "features", "--store", "there", "--workers", "3"), 2, "has no use for --store, --workers"),
        (("bench", "order", "--store", "there", "--segments", "1000"), 2, "give one of them"),
        (("bench", "index", "--segments", "100"), 2, "expected 160 (one shard) or more, got 100"),
    ],
)
def test_wrong_usage_is_one_clear_line(tmp_path, arguments, status, complaint):
    out, err = statevla(tmp_path, *arguments, status=status)
    assert complaint in " ".join(err.split())
    assert out == ""


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("train", "--phase", "1"), 1, "statevla ingest"),
        (("frobnicate",), 2, "No such command"),
    ],
)
def test_so_it_is_as_a_process(tmp_path, arguments, status, complaint):
    out, err = as_process(tmp_path, *arguments, status=status)
    assert complaint in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""


def test_a_thing_that_has_a_default_is_a_flag_and_one_that_must_be_named_is_an_argument():
    """A store, run or checkpoint is never an argument that may be left out, nor a flag that must be given."""

    def commands(group):
        for command in group.commands.values():
            yield from commands(command) if hasattr(command, "commands") else (command,)

    found = {}
    for command in commands(typer.main.get_command(app)):
        for parameter in command.params:
            if parameter.name in ("store", "checkpoint", "run", "runs"):
                positional = parameter.param_type_name == "argument"
                assert positional == parameter.required, (command.name, parameter.name)
                if not positional:
                    assert parameter.default is None, (command.name, parameter.name)
                found[command.name] = parameter.name
    assert len(found) > 8


def test_store_means_the_same_in_ingest(project, tmp_path):
    folder, _ = project
    told = ("ingest", "tabletop", "--source", folder / "data/raw/tabletop", "--language", "hashed")
    made = one_object(tmp_path, *told, "--store", "somewhere/mine")
    assert one_object(tmp_path, "inspect", "somewhere/mine")["episodes"] == made["episodes"]
    _, err = statevla(tmp_path, *told, "--store", "one", "--out", "two", status=2)
    assert "two folders for one store" in err


def test_dry_run_writes_nothing(project):
    folder, _ = project
    plan = one_object(folder, "ingest", "tabletop", "--language", "hashed", "--out", "elsewhere", "--dry-run")
    assert plan["bytes"] > 0
    assert not (folder / "elsewhere").exists()


def test_help_loads_nothing_heavy():
    code = (
        "import sys, cli\n"
        "from typer.testing import CliRunner\n"
        "assert 'ingest' in CliRunner().invoke(cli.app, ['--help']).stdout\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'zarr', 'dask', 'h5py', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_stores_loads_no_torch():
    code = (
        "import sys, pkgutil, importlib, stores\n"
        "for module in pkgutil.walk_packages(stores.__path__, 'stores.'): importlib.import_module(module.name)\n"
        "heavy = {'torch', 'transformers', 'dask', 'h5py'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_ingest_of_hashed_instructions_loads_no_torch(tmp_path):
    """Importing it takes longer than the ingest of a few demonstrations, and every unit's process is a copy of this."""
    write_suite(tmp_path / "source", tasks=1, demos=2)
    code = (
        "import sys, cli\n"
        "from typer.testing import CliRunner\n"
        "done = CliRunner().invoke(cli.app, ['ingest', 'toy', '--source', 'source', '--out', 'store', '--language', "
        "'hashed'])\n"
        "assert done.exit_code == 0, done.output\n"
        "heavy = {'torch', 'transformers', 'dask', 'distributed', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ingest_into_object_storage_and_everything_else_from_there(project, s3):
    folder, results = project
    url = f"s3://robots/{uuid.uuid4().hex}"
    env = {
        "AWS_ENDPOINT_URL": s3["endpoint_url"],
        "AWS_ACCESS_KEY_ID": s3["key"],
        "AWS_SECRET_ACCESS_KEY": s3["secret"],
    }
    into = ("ingest", "tabletop", "--language", "hashed", "--store", url)
    ingested = one_object(folder, *into, env=env)
    assert ingested["store"] == url
    assert ingested["episodes"] == 12
    assert one_object(folder, *into, env=env)["units_reused"] == ingested["units"] > 0
    local = one_object(folder, "inspect", STORE)
    assert one_object(folder, "inspect", url, env=env)["frames"] == local["frames"]
    assert one_object(folder, "verify", url, env=env)["ok"] is True
    assert one_object(folder, "stats", "--store", url, env=env) == results["stats"]
    run = folder / "runs" / "from_url"
    trained = one_object(folder, "train", "--phase", 1, *MICRO, "--store", url, "--run", run, env=env)
    assert trained["steps"] == 3
    _, error = as_process(folder, *into, env={**env, "AWS_SECRET_ACCESS_KEY": ""}, status=1)
    assert "credentials" in error


def test_clean_asks_and_removes_what_no_reader_takes(tmp_path):
    from stores.arrays import ArraySpec
    from stores.derived import begin
    from tests.stores.make_store import make_tiny_store

    make_tiny_store(tmp_path / "store")
    begin(tmp_path / "store", "latents", "begun", {"content_hash": "x"}, {"z": ArraySpec((4, 2), "float32", 4)})
    _, refused = statevla(tmp_path, "clean", "store", status=2)
    assert "latents/begun would be removed; say so with --yes" in refused
    removed = one_object(tmp_path, "clean", "store", "--yes")
    assert [row["folder"] for row in removed["removed"]] == ["latents/begun"]
    assert one_object(tmp_path, "clean", "store")["removed"] == []
    (stats,) = (path.relative_to(tmp_path / "store") for path in (tmp_path / "store/stats").iterdir())
    _, refused = statevla(tmp_path, "clean", "store", stats, status=2)
    assert f"{stats} would be removed; say so with --yes" in refused
    removed = one_object(tmp_path, "clean", "store", stats, "--yes")
    assert [(row["folder"], row["state"]) for row in removed["removed"]] == [(str(stats), "finished")]


@pytest.mark.parametrize(
    "command",
    [
        ("clean", "{}"), ("clean-cache", "{}"), ("publish", "{}", "s3://bucket/other"),
        ("collect", "tabletop", "--out", "{}"),
        ("export", "lerobot", "store", "{}"), ("ingest", "toy", "--out", "{}"),
    ],
)  # fmt: skip
def test_a_url_is_no_folder(tmp_path, command):
    _, refused = statevla(tmp_path, *(part.format("http://host:80/a/store") for part in command), status=2)
    assert "http://host:80/a/store: expected a folder on this machine, got a URL" in refused
    assert list(tmp_path.iterdir()) == []


def test_clean_knows_the_cache_of_remote_stores(tmp_path):
    from stores.cloud.cache import RangeCache

    cache = RangeCache(tmp_path / "cache", 10_000)
    cache.put("ab" * 32, 0, bytes(500))
    (tmp_path / "cache" / "mine.txt").write_text("not a range")
    _, refused = statevla(tmp_path, "clean-cache", "cache", status=2)
    assert "500 bytes of remote stores would be removed; say so with --yes" in refused
    assert one_object(tmp_path, "clean-cache", "cache", "--yes")["bytes"] == 500
    assert cache.bytes() == 0
    assert (tmp_path / "cache" / "mine.txt").exists()
    (tmp_path / "locale" / "de").mkdir(parents=True)
    (tmp_path / "locale" / "de" / "messages.po").write_text("not a range")
    _, refused = statevla(tmp_path, "clean-cache", "locale", "--yes", status=2)
    assert "holds de/messages.po, which is not the cache's" in refused
    assert (tmp_path / "locale" / "de" / "messages.po").exists()
