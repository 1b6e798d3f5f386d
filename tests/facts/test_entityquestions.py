import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from factual_forgetting import files
from factual_forgetting.errors import UserError
from factual_forgetting.facts import entityquestions
from factual_forgetting.facts.entityquestions import (
    ENTITYQUESTIONS_TEMPLATES,
    cache_folder,
    fetch_entity_questions,
    read_entity_questions,
    subject_of,
)
from factual_forgetting.facts.sources import load_facts

ROWS = {
    f"{split}/P17.{split}.json": [
        {"question": f"Which country is {place} located in?", "answers": [country]}
    ]
    for split, place, country in [("train", "Lac Vert", "France"), ("dev", "Ennis Town", "Ireland")]
}


class Mirror(SimpleHTTPRequestHandler):
    """Serves a folder and counts what it is asked for."""

    def log_message(self, *args):
        self.server.asked.append(self.path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    root = tmp_path / "upstream"
    checksums = {}
    for name, rows in ROWS.items():
        files.write_json(root / name, rows)
        checksums[name] = files.sha256_file(root / name)
    monkeypatch.setattr(entityquestions, "_checksums", lambda: checksums)
    handler = functools.partial(Mirror, directory=root)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.root, server.asked = root, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_files_are_fetched_once(tmp_path, mirror):
    folder = fetch_entity_questions(tmp_path / "cache", mirror.url)
    facts = list(read_entity_questions(folder))
    assert [(f.relation, f.subject, f.answers, f.split) for f in facts] == [
        ("P17", "Ennis Town", ("Ireland",), "dev"),
        ("P17", "Lac Vert", ("France",), "train"),
    ]
    assert len(mirror.asked) == 2
    fetch_entity_questions(folder, mirror.url)
    assert len(mirror.asked) == 2


def test_only_what_is_missing_or_damaged_is_fetched_again(tmp_path, mirror):
    folder = fetch_entity_questions(tmp_path / "cache", mirror.url)
    (folder / "dev/P17.dev.json").write_text("[]")
    mirror.asked.clear()
    fetch_entity_questions(folder, mirror.url)
    assert [path for path in mirror.asked if "dev" in path] == mirror.asked != []
    assert len(list(read_entity_questions(folder))) == 2


def test_a_changed_file_is_refused_and_not_kept(tmp_path, mirror):
    (mirror.root / "train/P17.train.json").write_text("[]")
    with pytest.raises(UserError, match="another sha256"):
        fetch_entity_questions(tmp_path / "cache", mirror.url)
    assert not (tmp_path / "cache/train/P17.train.json").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "missing"])
def test_without_a_network_it_says_where_to_put_the_data(tmp_path, mirror, url):
    with pytest.raises(UserError) as caught:
        fetch_entity_questions(tmp_path / "cache", mirror.url + "/x" if url == "missing" else url)
    message = str(caught.value)
    assert str(tmp_path / "cache") in message
    assert entityquestions.COMMIT in message
    assert "\n" not in message


def test_the_source_by_name_uses_the_cache(tmp_path, mirror, monkeypatch):
    monkeypatch.setenv("FF_CACHE", str(tmp_path / "kept"))
    fetch_entity_questions(cache_folder(), mirror.url)
    assert len(load_facts("entityquestions")) == 2
    assert cache_folder().parent == tmp_path / "kept"


def test_the_shipped_checksums_cover_every_relation_and_split():
    checksums = entityquestions._checksums()
    assert set(checksums) == {
        f"{split}/{relation}.{split}.json"
        for split in ("train", "dev", "test")
        for relation in ENTITYQUESTIONS_TEMPLATES
    }
    assert all(len(sha256) == 64 for sha256 in checksums.values())


def test_a_subject_is_what_the_template_leaves():
    template = ENTITYQUESTIONS_TEMPLATES["P40"]
    assert subject_of("Who is Ada's child?", template) == "Ada"
    assert subject_of("Who is Ada's child?'s child?", template) == "Ada's child?"
    assert subject_of("Who is 's child?", template) == ""
    for question in ("Something else?", "Who is Ada?", "Ada's child?", "Who is's child?"):
        assert subject_of(question, template) is None


def test_malformed_rows_name_file_and_line(tmp_path):
    path = tmp_path / "train" / "P17.train.json"
    path.parent.mkdir()
    path.write_text('[\n {"question": "Q?", "answers": ["A"]},\n {"question": "Q?"}\n]')
    with pytest.raises(UserError, match=r"line 3: no answers"):
        list(read_entity_questions(tmp_path))
    with pytest.raises(UserError, match="holds no train"):
        list(read_entity_questions(tmp_path / "train"))
