import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import network

ROOT = Path(__file__).parents[1]
CODE = """
import sys
import network
sys.addaudithook(network.refuse)
from factual_forgetting import cli, finetune, score
cli.parser()
sys.exit(bool(network.REACHED))
"""


def test_tests_reach_their_own_machine_and_no_other() -> None:
    for call in (socket.create_connection, socket.socket().connect):
        with pytest.raises(OSError, match="reached for the network"):
            call(("192.0.2.1", 80))
    with pytest.raises(OSError, match="reached for the network"):
        socket.getaddrinfo("example.org", 80)
    assert len(network.REACHED) == 3
    network.REACHED.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()


def test_importing_reaches_for_nothing() -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT / 'benchmark'}:{ROOT / 'tests'}"}
    env.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
