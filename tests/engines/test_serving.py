"""Answers of servers that break their API."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from factual_forgetting.engines.engine import Group, Query
from factual_forgetting.engines.lm_eval import LMEvalEngine
from factual_forgetting.errors import UserError

Reply = Callable[[int], Any]


def choices(*texts: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "text": text} for index, text in enumerate(texts)]}


@pytest.fixture
def served() -> Iterator[Callable[[Reply], str]]:
    servers = []

    def serve(reply: Reply) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(reply(len(asked["prompt"]))).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *given: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1/completions"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(url: str) -> list[list[Any]]:
    arguments = {
        "model": "m", "base_url": url, "tokenized_requests": False, "tokenizer_backend": None,
        "max_retries": 1,
    }  # fmt: skip
    engine = LMEvalEngine("local-completions", arguments, "4", "cpu")
    return engine.answer([Group("", [Query("Q: a\nA:", ("a",)), Query("Q: b\nA:", ("b",))])], 16)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (lambda n: choices("one"), "1 answers came for 2 questions"),
        (lambda n: choices(*["x"] * (2 * n)), "4 answers came for 2 questions"),
        (lambda n: choices(*[None] * n), "an answer is null"),
        (lambda n: choices(*[7] * n), "an answer is no text but int"),
        (lambda n: choices(*["x" * 100_000] * n), "100,000 characters, and 16 tokens were asked"),
        (lambda n: {}, "holds no answers"),
        (lambda n: {"choices": None}, "holds no answers"),
        (lambda n: [], "0 answers came for 2 questions"),
        (lambda n: {"choices": [{"index": 5, "text": "a"}, {"index": 6, "text": "b"}]}, "no answ"),
        (lambda n: None, "holds no answers"),
    ],
)
def test_answers_that_are_not_to_the_questions_are_refused(
    reply: Reply, told: str, served: Callable[[Reply], str]
) -> None:
    with pytest.raises(UserError, match=f"answers can't be taken: .*{told}"):
        ask(served(reply))


def test_an_empty_answer_is_one(served: Callable[[Reply], str]) -> None:
    assert ask(served(lambda n: choices(*[""] * n)))
