"""Whether everything is there: doctor, on this machine and on machines where something is missing or broken."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import call, fine

import pipeline
from pipeline.cache.shard import page_cache
from pipeline.cli import console
from pipeline.cli.about import doctor, probes, requirements
from pipeline.cli.about.probes import ask_probes
from pipeline.video.probe import decoder_identity

Answers = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def answers() -> Answers:
    """What the probes say on this machine, asked once."""
    there = [each.module for each in requirements.requirements() if each.installed]
    return ask_probes([*dict.fromkeys(there), "decoder", "kernels", "hub", "plugins"])


@pytest.fixture
def pretend(answers, monkeypatch) -> Callable[..., None]:
    """Makes some probes answer something else."""

    def pretend(**others: dict[str, Any]) -> None:
        given = answers | others
        monkeypatch.setattr(
            doctor, "ask_probes", lambda names: {name: given.get(name, {}) for name in names}
        )

    return pretend


def checks_of(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in facts["checks"]}


def test_everything_is_there_on_a_machine_that_runs_these_tests():
    facts = fine("doctor", "--json").json
    checks = checks_of(facts)
    assert facts["ok"] is True
    assert checks["torch"] == {
        "name": "torch",
        "state": "ok",
        "text": torch.__version__,
        "next": "",
    }
    assert checks["numpy"]["text"] == metadata.version("numpy")
    assert checks["decoder"]["text"] == decoder_identity()
    assert checks["open files"]["text"].startswith(
        f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} "
    )
    assert re.match(
        rf"{len(os.sched_getaffinity(0))} of {os.cpu_count()}, ", checks["cores"]["text"]
    )
    assert checks["CUDA"]["state"] == ("ok" if torch.cuda.is_available() else "absent")
    assert f"decoder {decoder_identity()}; extras: " in facts["report"]


def test_the_text_fits_80_columns_and_ends_with_what_to_paste(pretend, monkeypatch):
    monkeypatch.setattr(console.out, "width", 80)
    pretend()
    text = fine("doctor").out
    table, report = text.split("\nFor a report on a defect:\n\n")
    assert max(map(len, table.splitlines())) <= 80
    assert table.splitlines()[-1] == "everything needed is there"
    assert report == call("doctor", "--json").json["report"] + "\n"
    assert report.startswith(f"stillframe {pipeline.__version__}")
    assert len(report.splitlines()) == 5


def package(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def test_a_library_that_fails_or_ends_python_is_an_answer(tmp_path, monkeypatch):
    package(tmp_path, "no_object", "raise ImportError('libx.so.1: cannot open shared object file')")
    package(tmp_path, "crashes", "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    package(tmp_path, "leaves", "import os\nos._exit(7)")
    package(tmp_path, "talks", "print('{\"a\": 1}')\nraise SystemExit('no licence')")
    package(tmp_path, "strange", "raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    assert ask_probes(
        ["no_object", "crashes", "json", "leaves", "talks", "strange", "nowhere_at_all"]
    ) == {
        "no_object": {"error": "ImportError: libx.so.1: cannot open shared object file"},
        "crashes": {"error": "ends Python: SIGSEGV"},
        "json": {},
        "leaves": {"error": "ends Python with exit code 7"},
        "talks": {"error": "SystemExit: no licence"},
        "strange": {"error": "KeyboardInterrupt"},
        "nowhere_at_all": {"error": "ModuleNotFoundError: No module named 'nowhere_at_all'"},
    }


def test_a_library_that_hangs_is_an_answer(tmp_path, monkeypatch):
    package(tmp_path, "hangs", "import time\ntime.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(probes, "LIMIT_S", 8)
    answers = ask_probes(["json", "hangs"])
    assert answers == {"json": {}, "hangs": {"error": "does not answer within 8 s"}}


def test_no_process_at_all_is_an_answer(monkeypatch):
    monkeypatch.setattr(probes, "module_command", lambda _: ["/nowhere/python"])
    assert ask_probes(["json"])["json"]["error"].startswith(
        "no process can be started: No such file"
    )


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        ("av", "av", "cannot be imported: ImportError: libavcodec.so"),
        ("PIL", "pillow", "cannot be imported: ImportError: libavcodec.so"),
        ("torch", "torch", "cannot be imported: ImportError: libavcodec.so"),
        ("decoder", "decoder", "cannot be used: ImportError: libavcodec.so"),
    ],
)
def test_what_is_needed_and_broken_is_a_problem_with_a_next_step(pretend, module, name, text):
    pretend(**{module: {"error": "ImportError: libavcodec.so"}})
    result = call("doctor", "--json")
    check = checks_of(result.json)[name]
    assert (result.code, result.err, result.json["ok"]) == (1, "", False)
    assert check["state"] == "problem" and check["text"].endswith(text)
    assert check["next"].startswith("pip install --force-reinstall --no-deps ")
    assert f"problem: {name}: " in result.json["report"]
    text = call("doctor").out
    assert f"problem: {name}; next: pip install " in text and "1 problem found" in text


def test_an_extra_that_is_broken_or_absent_is_no_problem(pretend, monkeypatch):
    pretend(pyarrow={"error": "ImportError: libarrow.so"})
    version_of = metadata.version

    def version(name: str) -> str:
        if name == "submitit":
            raise metadata.PackageNotFoundError(name)
        return version_of(name)

    monkeypatch.setattr(metadata, "version", version)
    checks = checks_of(fine("doctor", "--json").json)
    assert checks["extra slurm"] == {
        "name": "extra slurm",
        "state": "absent",
        "text": "submitit not installed",
        "next": "pip install 'stillframe[slurm]'",
    }
    for extra in ("waymo", "parquet"):
        assert checks[f"extra {extra}"]["state"] == "broken"
        assert "cannot be imported: ImportError: libarrow.so" in checks[f"extra {extra}"]["text"]
    assert "broken: extra waymo; next: pip install 'stillframe[waymo]'" in fine("doctor").out


def test_versions_that_are_too_old_or_missing_are_problems(pretend, monkeypatch):
    pretend()
    version_of = metadata.version

    def version(name: str) -> str:
        if name == "h5py":
            raise metadata.PackageNotFoundError(name)
        return "4.57.1" if name == "transformers" else version_of(name)

    monkeypatch.setattr(metadata, "version", version)
    result = call("doctor", "--json")
    checks = checks_of(result.json)
    assert result.code == 1
    assert checks["transformers"]["text"] == "4.57.1, wanted 5.0 or newer"
    assert checks["transformers"]["next"] == "pip install 'transformers>=5.0'"
    assert (checks["h5py"]["state"], checks["h5py"]["text"]) == ("problem", "not installed")


def test_a_gpu_and_kernels_for_it(pretend):
    gpu = {"name": "NVIDIA H200", "bytes": 150e9, "capability": "9.0"}
    with_cuda = {"version": "2.13.0", "threads": 8, "built_for": "13.0", "devices": [gpu]}
    pretend(torch=with_cuda, kernels={"error": "ImportError: undefined symbol: x"})
    facts = fine("doctor", "--json").json
    checks = checks_of(facts)
    assert checks["CUDA"]["text"] == (
        "NVIDIA H200 (150.0 GB, capability 9.0); torch is built for CUDA 13.0"
    )
    assert checks["Mamba kernels"]["state"] == "broken"
    assert checks["Mamba kernels"]["text"].endswith(
        "plain PyTorch: ImportError: undefined symbol: x"
    )
    assert "CUDA: NVIDIA H200" in facts["report"] and "broken: Mamba kernels" in facts["report"]
    pretend(torch=with_cuda, kernels={"kernel": "mamba_ssm.scan"})
    assert checks_of(fine("doctor", "--json").json)["Mamba kernels"]["state"] == "ok"


def test_too_few_open_files_are_a_problem_that_says_how_many(pretend, monkeypatch):
    pretend()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, resource.RLIM_INFINITY))
    result = call("doctor", "--json")
    check = checks_of(result.json)["open files"]
    assert (result.code, check["state"]) == (1, "problem")
    assert check["text"].startswith("64 (at most unlimited); 256 are needed")
    assert check["next"] == "ulimit -n 256"
    assert page_cache.MAPS + 100 <= doctor.OPEN_FILES


def test_folders_that_cannot_be_written_or_are_gone_are_problems(pretend, monkeypatch, tmp_path):
    pretend()
    monkeypatch.setattr(os, "access", lambda folder, _: False)
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    result = call("doctor", "--json")
    checks = checks_of(result.json)
    assert result.code == 1
    assert checks["working folder"]["text"] == "there is none: No such file or directory"
    assert checks["temporary files"]["text"].endswith(" cannot be written into")
    assert "TMPDIR" in checks["temporary files"]["next"]


def test_without_memfd_no_video_can_be_decoded(pretend, monkeypatch):
    pretend()
    monkeypatch.delattr(os, "memfd_create")
    check = checks_of(call("doctor", "--json").json)["shared memory"]
    assert check["state"] == "problem" and "memfd_create" in check["next"]


def test_plugins_of_packages_are_named_and_broken_ones_are_problems(pretend):
    sound = {"kind": "temporal", "name": "mine", "from": "mine 1.0", "error": ""}
    broken = {"kind": "task", "name": "theirs", "from": "", "error": "does not import"}
    pretend(plugins={"plugins": [sound, broken]})
    result = call("doctor", "--json")
    found = [check for check in result.json["checks"] if check["name"] == "plug-ins"]
    assert result.code == 1
    assert [(check["state"], check["text"]) for check in found] == [
        ("ok", "temporal mine of mine 1.0"),
        ("problem", "task theirs cannot be used: does not import"),
    ]


def test_offline_flags_and_the_hub_folder_are_told(pretend, monkeypatch, tmp_path):
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    pretend(hub={"folder": str(tmp_path / "hub"), "offline": True})
    text = checks_of(fine("doctor", "--json").json)["Hugging Face"]["text"]
    assert text.startswith(f"{tmp_path}/hub, not there yet; offline")
    assert "TRANSFORMERS_OFFLINE=1" in text


def test_the_report_has_no_home_and_no_user(pretend, monkeypatch):
    monkeypatch.setenv("HOME", "/people/jane_doe")
    monkeypatch.setenv("LOGNAME", "jane_doe")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    where = "/people/jane_doe/lib/a.so and /data/jane_doe/b.so"
    pretend(av={"error": f"ImportError: {where}"}, hub={"error": "hf_none"})
    report = call("doctor", "--json").json["report"]
    assert "ImportError: ~/lib/a.so and /data/USER/b.so" in report
    assert not re.search("jane_doe|hf_secret|/people", call("doctor").out)


def test_requirements_are_those_of_the_project(monkeypatch, tmp_path):
    wanted = requirements.requirements()
    by_name = {(each.package, each.extra): each for each in wanted}
    assert by_name["torch", ""].least == "2.6"
    assert by_name["pillow", ""].module == "PIL"
    assert by_name["mamba-ssm", "mamba"].module == "mamba_ssm"
    assert not {each.extra for each in wanted} & {"dev", None}
    assert by_name["torch", ""].is_too_old("2.5.1+cu121")
    assert not by_name["torch", ""].is_too_old("2.13.0+cpu")
    monkeypatch.setattr(pipeline, "__path__", [str(tmp_path / "pipeline")])
    lines = ["torch>=2.6", 'onnx>=1.18; extra == "export"', 'ruff>=0.9; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    assert [tuple(each) for each in requirements.requirements()] == [
        ("torch", "2.6", ""),
        ("onnx", "1.18", "export"),
    ]


def test_where_nothing_says_what_is_needed_it_is_told(pretend, monkeypatch):
    pretend()
    monkeypatch.setattr(doctor, "requirements", list)
    checks = checks_of(fine("doctor", "--json").json)
    assert checks["packages"]["state"] == "note"
