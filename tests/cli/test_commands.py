"""The command line: every subcommand as a person or a script calls it."""

import json
import subprocess
import sys

import pytest

from mi_course import assets
from mi_course.cli import COMMANDS, chapters, doctor, main


def run_json(capsys, *argv) -> tuple[int, dict]:
    code = main([*argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_python_m_and_help_name_every_command():
    done = subprocess.run([sys.executable, "-m", "mi_course", "--help"], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)


def test_the_command_line_starts_without_the_heavy_packages():
    heavy = ("torch", "transformers", "nbformat", "matplotlib")
    code = f"import sys, mi_course.cli; sys.exit(any(name in sys.modules for name in {heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as error:
        main(["dance"])
    assert error.value.code == 2


class TestChapters:
    def test_numbers_and_names_are_unique_and_in_order(self):
        numbers = [entry.number for entry in chapters.TABLE]
        assert numbers == [f"{n:02d}" for n in range(27)]
        assert len({entry.stem for entry in chapters.TABLE}) == 27

    def test_ready_only_when_the_notebook_exists(self, tmp_path, capsys):
        (tmp_path / "solutions").mkdir()
        (tmp_path / "chapters").mkdir()
        (tmp_path / "pyproject.toml").touch()
        (tmp_path / "chapters" / "08_probing.ipynb").touch()
        (tmp_path / "chapters" / "measured.json").write_text('{"08_probing": {"seconds": 3.5, "exercises": 4}}')
        code, result = run_json(capsys, "chapters", "--root", str(tmp_path / "chapters"))
        ready = [row for row in result["chapters"] if row["status"] == "ready"]
        assert code == 0 and [row["number"] for row in ready] == ["08"] and ready[0]["seconds"] == 3.5
        main(["chapters", "--root", str(tmp_path)])
        assert "08  Probing" in (out := capsys.readouterr().out) and "4 exercises, runs in 4 s" in out

    def test_outside_a_repository_all_are_planned(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        assert {row["status"] for row in run_json(capsys, "chapters")[1]["chapters"]} == {"planned"}


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder with one intact asset of two files."""
    (tmp_path / "lab").mkdir()
    files = [tmp_path / "lab" / "config.json", tmp_path / "lab" / "model.safetensors"]
    for file in files:
        file.write_text(file.name)
    monkeypatch.setattr(assets, "FOLDER", tmp_path)
    assets.register("lab", files, parameters=12, measured={"facts": 0.995})
    return tmp_path


class TestAssets:
    def test_an_intact_asset_is_listed_with_its_facts(self, shipped, capsys):
        code, result = run_json(capsys, "assets")
        (row,) = result["assets"]
        assert code == 0 and row["intact"] and row["measured"] == {"facts": 0.995} and row["bytes"] == 28
        assert assets.path("lab") == shipped / "lab"

    def test_a_changed_byte_names_the_file_and_how_to_restore_it(self, shipped, capsys):
        (shipped / "lab" / "model.safetensors").write_text("model.safetensorX")
        with pytest.raises(
            assets.AssetError, match=r"lab/model\.safetensors.*git checkout -- mi_course/assets/lab/model"
        ):
            assets.path("lab")
        code, result = run_json(capsys, "assets")
        assert code == 1 and not result["assets"][0]["intact"]
        assert doctor.shipped().ok is False and "lab/model.safetensors" in doctor.shipped().found

    def test_a_missing_file_is_told_apart_from_a_changed_one(self, shipped):
        (shipped / "lab" / "config.json").unlink()
        with pytest.raises(assets.AssetError, match="lab/config.json is missing"):
            assets.path("lab")

    def test_an_unknown_asset_names_the_known_ones(self, shipped):
        with pytest.raises(KeyError, match="no asset is called 'labb'; shipped are: lab"):
            assets.path("labb")

    def test_registering_again_replaces_the_entry_and_keeps_the_others(self, shipped):
        (shipped / "delta.safetensors").write_text("d")
        assets.register("delta.safetensors", [shipped / "delta.safetensors"])
        assets.register("lab", [shipped / "lab" / "config.json"])
        assert list(assets.manifest()) == ["delta.safetensors", "lab"]
        assert list(assets.manifest()["lab"]["files"]) == ["lab/config.json"]
        assert assets.path("delta.safetensors") == shipped / "delta.safetensors"

    def test_text_output_shows_measured_accuracy(self, shipped, capsys):
        assert main(["assets"]) == 0
        out = capsys.readouterr().out
        assert "intact" in out and "facts" in out and "0.995" in out

    def test_what_this_copy_ships_is_intact_and_small(self):
        problems = [problem for name in assets.manifest() for problem in assets.check(name)]
        total = sum(file.stat().st_size for file in assets.FOLDER.rglob("*") if file.is_file())
        assert problems == [] and total < 40e6


class TestDoctor:
    def test_it_finds_this_machine_fit_but_for_what_it_names(self, shipped, capsys):
        code, result = run_json(capsys, "doctor")
        assert code == (0 if result["ok"] else 1)
        assert {"python", "torch", "transformers", "jupyterlab", "assets", "kernel", "threads", "memory"} <= {
            check["name"] for check in result["checks"]
        }
        assert all(check["ok"] or check["remedy"] for check in result["checks"])

    def test_a_missing_package_says_how_to_install_it(self):
        found = doctor.package("no-such-package-of-ours", "1.0")
        assert not found.ok and "pip install 'no-such-package-of-ours>=1.0'" in found.remedy

    def test_an_old_package_says_how_to_upgrade_it(self):
        found = doctor.package("torch", "999")
        assert not found.ok and "--upgrade 'torch>=999'" in found.remedy

    def test_more_threads_than_cores_is_a_finding(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "4096")
        assert not doctor.threads().ok
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert doctor.threads().ok

    def test_no_kernel_says_how_to_make_one(self, monkeypatch):
        from jupyter_client import kernelspec

        def absent(self, name):
            raise kernelspec.NoSuchKernel(name)

        monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", absent)
        assert not doctor.kernel().ok and "ipykernel install" in doctor.kernel().remedy

    @pytest.mark.parametrize(
        "command, ours", [("python", True), (sys.executable, True), ("/elsewhere/bin/python", False)]
    )
    def test_the_kernel_must_be_of_this_environment(self, monkeypatch, command, ours):
        from types import SimpleNamespace

        from jupyter_client import kernelspec

        spec = SimpleNamespace(argv=[command])
        monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: spec)
        assert doctor.kernel().ok is ours

    def test_no_assets_is_a_finding(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(assets, "FOLDER", tmp_path)
        assert main(["doctor"]) == 1
        assert "NO  assets" in capsys.readouterr().out
