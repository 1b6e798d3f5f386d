"""EntityQuestions (Sciavolino, Zhong, Lee and Chen 2021): its layout, and its fetch.

The data was committed to its public repository once and then removed in favour of a hosted
archive; it is read from that commit, where every file's content is fixed.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.request
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from tqdm import tqdm

from factual_forgetting import files
from factual_forgetting.errors import InputError, NotFoundError
from factual_forgetting.facts.fact import FACT_SPLITS, Fact
from factual_forgetting.facts.matching import normalise
from factual_forgetting.facts.rows import fact_from_row, read_rows

_REPOSITORY = "princeton-nlp/EntityQuestions"
COMMIT = "096c261f327431b30af7ff718670f4bd13214908"
_URL = f"https://raw.githubusercontent.com/{_REPOSITORY}/{COMMIT}/dataset"
_TIMEOUT_SECONDS = 60
_LARGEST_FILE = 1 << 24

# The question templates of the data, by Wikidata property.
ENTITYQUESTIONS_TEMPLATES = {
    "P17": "Which country is [X] located in?",
    "P19": "Where was [X] born?",
    "P20": "Where did [X] die?",
    "P26": "Who is [X] married to?",
    "P36": "What is the capital of [X]?",
    "P40": "Who is [X]'s child?",
    "P50": "Who is the author of [X]?",
    "P69": "Where was [X] educated?",
    "P106": "What kind of work does [X] do?",
    "P112": "Who founded [X]?",
    "P127": "Who owns [X]?",
    "P131": "Where is [X] located?",
    "P136": "What type of music does [X] play?",
    "P159": "Where is the headquarter of [X]?",
    "P170": "Who was [X] created by?",
    "P175": "Who performed [X]?",
    "P176": "Which company is [X] produced by?",
    "P264": "What music label is [X] represented by?",
    "P276": "Where is [X] located?",
    "P407": "Which language was [X] written in?",
    "P413": "What position does [X] play?",
    "P495": "Which country was [X] created in?",
    "P740": "Where was [X] founded?",
    "P800": "What is [X] famous for?",
}

# What isn't music among genres, unless the last word says that it is ("film score").
_NOT_MUSIC = re.compile(
    r"\b(?:films?|movies?|cinema|blaxploitation|exploitation|noir|giallo|mockbuster|bollywood"
    r"|television|sitcom|telenovela|series|miniseries|(?:soap|space) opera|anime|manga|seinen"
    r"|gekiga|yaoi|yuri|hentai|eroge|tokusatsu|comics?|games?|gaming|gamebook|shooter"
    r"|shoot em up|roguelike|simulator|simulation|sim|tactics|strategy|pinball|tower defense"
    r"|arena|4x|fiction|novels?|novella|novelization|literature|lit|stor(?:y|ies)|tales?|fable"
    r"|sonnet|poem|poetry|verse|prose|memoir|essay|encyclopedia|anthology|magazine|atlas|book"
    r"|cookbook|biography|satire|farce|parody|comedy|drama|docudrama|melodrama|tragedy"
    r"|thriller|horror|mystery|fantasy|romance|western|documentary|mockumentary|docufiction"
    r"|procedural|adventure|pornograph(?:y|ic)|propaganda|art|painting|portrait|statue"
    r"|sculpture|still life|veduta|photography|altarpiece|calligraphy|animation|graphics"
    r"|bildungsroman|magical girl|wuxia|theatre|play|philosophy|football|wrestling|cyberpunk"
    r"|magic realism|alternate history|criticism|journalism|religious text|coming of age)\b"
)
_MUSIC = re.compile(
    r"\b(?:music|rock|metal|pop|punk|jazz|hop|blues|folk|swing|song|score|(?<!soap )"
    r"(?<!space )opera)$"
)


def read_entity_questions(root: Path) -> Iterator[Fact]:
    """Yields the rows of a folder in EntityQuestions' layout, `{split}/{relation}.{split}.json`.

    Raises:
        UserError: If there is no such file, or a row is malformed; names file and line.
    """
    paths = sorted(path for split in FACT_SPLITS for path in (root / split).glob(f"*.{split}.json"))
    if not paths:
        told = f"{root} holds no train/*.train.json"
        raise NotFoundError(f"{told}. Give the folder `dataset/` of EntityQuestions.")
    for path in paths:
        relation, split = path.name.split(".")[:2]
        columns = {"relation": f"={relation}", "split": f"={split}"}
        template = ENTITYQUESTIONS_TEMPLATES.get(relation, "[X]")
        for origin, row in read_rows(path):
            subject = subject_of(str(row.get("question", "")).strip(), template)
            yield fact_from_row({**row, "subject": subject}, columns, origin)


def subject_of(question: str, template: str) -> str | None:
    """Returns what stands in a question for the `[X]` of a template; None if it isn't of it."""
    head, tail = template.split("[X]")
    middle = question.removeprefix(head).removesuffix(tail)
    return middle.strip() if f"{head}{middle}{tail}" == question else None


def template_misfit(fact: Fact) -> bool:
    """Tells whether a question about music (P136) is asked of a film, a game, a book or a picture.

    EntityQuestions asks "What type of music does [X] play?" of everything that has a genre.
    The words of the golds decide, which is a heuristic.
    """
    genres = map(normalise, fact.answers)
    return "type of music" in fact.question and any(
        _NOT_MUSIC.search(genre) and not _MUSIC.search(genre) for genre in genres
    )


def cache_folder() -> Path:
    """Returns where fetched data is kept: `$FF_CACHE`, else the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("FF_CACHE") or base / "factual-forgetting")
    return root / f"entityquestions-{COMMIT[:12]}"


def fetch_entity_questions(folder: Path, url: str = _URL) -> Path:
    """Brings every data file into a folder and checks its sha256; what is there stays.

    Args:
        folder: Where the files are kept, in the data's own layout; it is returned.
        url: Address of the `dataset/` folder, the public repository's or a mirror's.

    Raises:
        UserError: If a file can't be fetched or isn't the one of the commit.
    """
    missing = [
        (name, sha256)
        for name, sha256 in _checksums().items()
        if not ((folder / name).is_file() and files.sha256_file(folder / name) == sha256)
    ]
    for name, sha256 in tqdm(missing, "EntityQuestions", unit="file", disable=not missing):
        files.write_atomic(folder / name, _download(f"{url}/{name}", sha256, folder))
    return folder


def _checksums() -> dict[str, str]:
    text = (resources.files(__package__) / "entityquestions.sha256").read_text(encoding="utf-8")
    return {name: sha256 for sha256, name in (line.split() for line in text.splitlines())}


def _download(url: str, sha256: str, folder: Path) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310
            content: bytes = answer.read(_LARGEST_FILE)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"EntityQuestions could not be fetched from {url} ({error}). Run again, or put "
            f"train/, dev/ and test/ of dataset/ at commit {COMMIT} of {_REPOSITORY} into "
            f"{folder}, or give their folder as the source."
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        told = f"{url} has another sha256 than at commit {COMMIT}"
        raise InputError(f"{told}. Run again, or give a folder with the data as the source.")
    return content
