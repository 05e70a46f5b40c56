"""The default path asks the network for nothing: loading, recording, steering, generating, and the commands."""

import json
import os
import subprocess
import sys

from mi_course import assets
from tests.cli.test_packaging import ROOT, tiny_model

SESSION = """
import socket, sys

asked = []

def refuse(*args, **kwargs):
    asked.append(repr(args[:2]))
    raise OSError("no network in this test")

socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect = socket.socket.connect_ex = lambda self, address: refuse(address)

import mi_course as mi
from mi_course.cli import main
import mi_course.teach

model = mi.load(*sys.argv[1:])
mi.record(model, [[1, 2, 3]], ["x1"])
with mi.intervene(model, mi.zero("L0H0")):
    model.generate_ids([[1, 2, 3]], max_new_tokens=2)
for command in ("doctor", "assets", "chapters"):
    main([command, "--json"])
import json
print(json.dumps(asked))
"""


def test_nothing_is_looked_up(tmp_path):
    model = [] if "lab" in assets.manifest() else [str(tiny_model(tmp_path / "tiny"))]
    env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    env |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-c", SESSION, *model]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
