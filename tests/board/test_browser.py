"""The page in a headless Chromium: sorted, filtered, selected, opened, and free of errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic import any_record, make_bundle

from factual_forgetting.board.board import Entry, make_board
from factual_forgetting.board.bundles import reference_of
from factual_forgetting.board.links import Links
from factual_forgetting.board.page import page, tell_records, write_page
from factual_forgetting.board.record import load_records
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.scoring.styles import CHAT, FEWSHOT

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

MANY = 5000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver_program = shutil.which("chromedriver")
    if not program or not driver_program:
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(driver_program)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def site(board: dict[str, Any], entries: list[Entry], world: Bundle, tmp_path_factory: Any) -> Path:
    return written(board, entries, world, tmp_path_factory.mktemp("site"))


def written(board: dict[str, Any], entries: list[Entry], world: Bundle, output: Path) -> Path:
    bundles = {world.sha256: world}
    assert len(list(tell_records(entries, bundles, output))) == len(entries)
    return write_page(board, bundles, output)


@pytest.fixture(scope="module")
def large(
    board: dict[str, Any], entries: list[Entry], world: Bundle, tmp_path_factory: Any
) -> Path:
    """Every one of 5,000 records a row of its own: the most that so many can be."""
    wide = json.loads(json.dumps(board))
    (bundle,) = wide["bundles"]
    originals = [row for row in bundle["rows"] if not row["reference"]]
    copies = []
    for index in range(MANY):
        row = dict(originals[index % len(originals)])
        row |= {"id": f"{index:012x}", "method": f"method_{index}", "records": row["records"][:1]}
        row["rank"] = {"learns": 1 + index, "keeps": 1 + index}
        spread = (index % 997) / 997
        row["stability"] = {**row["stability"], "value": spread, "low": spread, "high": spread}
        copies.append(row)
    bundle["rows"] = [*copies, *(row for row in bundle["rows"] if row["reference"])]
    order = [row["id"] for row in bundle["rows"]]
    bundle["tables"] = {"learns": order, "keeps": order, "any": []}
    # Only the data that the test opens is written: 5,000 files take longer than all the rest.
    opened = {row["id"] for row in bundle["rows"][:8] + bundle["rows"][-2:]}
    few = [row for row in bundle["rows"] if row["id"] in opened]
    narrow = {
        **wide,
        "bundles": [{**bundle, "rows": few, "tables": {table: [] for table in bundle["tables"]}}],
    }
    output = tmp_path_factory.mktemp("large")
    index = written(narrow, entries, world, output)
    index.write_text(page(wide), encoding="utf-8")
    return index


class Page:
    """What a reader does."""

    def __init__(
        self,
        driver: Any,
        path: Path,
        width: int = 1440,
        dark: bool = False,
        wait: bool = True,
    ) -> None:
        self.driver = driver
        size = {"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get(path.as_uri())
        self.until(lambda: self.all("#ranked tr") and (self.all("path.way") or not wait))

    def until(self, condition: Any) -> Any:
        return WebDriverWait(self.driver, 20).until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def methods(self) -> list[str]:
        return self.texts("#ranked .open")

    def column(self, index: int) -> list[str]:
        return self.texts(f"#ranked tr > :nth-child({index})")

    def texts(self, selector: str) -> list[str]:
        # In one step: the table may be drawn again between two.
        script = f"return [...document.querySelectorAll('{selector}')].map((n) => n.textContent)"
        return list(self.run(script))

    def sort(self, name: str) -> None:
        self.one(f'th[data-name="{name}"] button').click()

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def errors(self) -> list[str]:
        return [line["message"] for line in self.driver.get_log("browser")]


def test_sort_and_filter(browser: Any, site: Path) -> None:
    reader = Page(browser, site)
    assert reader.methods() == [
        "self_distillation(teacher=base,tau=1.0)",
        "sft",
        "freeze(trainable=attention)",
    ]
    assert "known_only" in reader.one("#references").text
    assert "majority answer" in reader.one("#references").text
    ranks = dict(zip(reader.methods(), reader.column(2), strict=True))
    reader.sort("method")
    assert reader.methods() == sorted(reader.methods())
    assert reader.one('th[data-name="method"]').get_attribute("aria-sort") == "ascending"
    reader.sort("method")
    assert reader.methods() == sorted(reader.methods(), reverse=True)
    reader.one("#search").send_keys("sft")
    reader.until(lambda: reader.methods() == ["sft"])
    assert reader.column(2) == [ranks["sft"]]  # Filters move no rank.
    assert "1 of 3 methods" in reader.one("#status").text
    reader.one("#search").send_keys(Keys.CONTROL, "a")
    reader.one("#search").send_keys(Keys.DELETE)
    reader.until(lambda: len(reader.methods()) == 3)
    Select(reader.one("#family")).select_by_value("freeze")
    assert reader.methods() == ["freeze(trainable=attention)"]
    reader.one("#keeps").click()
    assert reader.one("#keeps").get_attribute("aria-pressed") == "true"
    assert reader.errors() == []


def test_select_a_point(browser: Any, site: Path) -> None:
    reader = Page(browser, site)
    box = '#ranked tr[data-key="{}"] input'
    point = reader.all("circle.dot")[0]
    key = point.get_attribute("data-key")
    before = reader.one(box.format(key)).is_selected()
    ways = len(reader.all("path.way"))
    reader.run(f"document.querySelector('circle[data-key=\"{key}\"]')"
             ".dispatchEvent(new MouseEvent('click', {bubbles: true}))")  # fmt: skip
    reader.until(lambda: reader.one(box.format(key)).is_selected() != before)
    assert len(reader.all("path.way")) != ways
    webdriver.ActionChains(browser).move_to_element(reader.one("circle.dot")).perform()
    reader.until(lambda: reader.one("#tip").is_displayed())
    hot = reader.one("circle.hot").get_attribute("data-key")
    assert reader.one("tr.hot").get_attribute("data-key") == hot
    assert reader.errors() == []


def test_open_a_record(browser: Any, site: Path) -> None:
    reader = Page(browser, site)
    reader.one("#ranked .open").click()
    reader.until(lambda: reader.all("details.record"))
    reader.one("details.record:nth-of-type(2) summary").click()
    reader.until(lambda: reader.all("details.record pre"))
    text = reader.one("#detail").text
    assert "factual-forgetting finetune" in text
    assert "--method self_distillation" in text
    assert "of Heldout" in text
    assert "of Unknown" in text
    assert "self-reported" in text
    assert "S, mean over relations" in text
    address = browser.current_url
    reader.one("#detail").send_keys(Keys.ESCAPE)
    reader.until(lambda: not reader.one("#detail").is_displayed())
    browser.get("about:blank")
    browser.get(address)
    reader.until(lambda: reader.one("#detail").is_displayed())
    assert reader.errors() == []


def test_the_keyboard_is_enough(browser: Any, site: Path) -> None:
    reader = Page(browser, site)
    reader.run("document.getElementById('search').focus()")
    seen = []
    for _ in range(30):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        node = browser.switch_to.active_element
        seen.append(node.get_attribute("aria-label") or node.text)
        if "open" in (node.get_attribute("class") or ""):
            break
    assert {"Learns new facts", "Need not learn", "Table of methods"} <= set(seen)
    assert any(text.startswith("Rank") for text in seen)
    assert any(text.startswith("Show the curve of") for text in seen)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    reader.until(lambda: reader.one("#detail").is_displayed())
    assert reader.errors() == []


def test_names_for_screen_readers(browser: Any, site: Path) -> None:
    reader = Page(browser, site)
    unnamed = reader.run(
        "return [...document.querySelectorAll('button, input, select, svg[role=img]')]"
        ".filter((n) => !n.textContent.trim() && !n.ariaLabel && !(n.labels && n.labels.length))"
        ".map((n) => n.outerHTML)"
    )
    assert unnamed == []
    assert reader.one("caption").get_attribute("textContent")
    assert reader.all('#ranked th[scope="row"]')
    assert reader.run("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("dark", [False, True])
def test_widths_and_themes(browser: Any, site: Path, width: int, dark: bool) -> None:
    reader = Page(browser, site, width, dark)
    assert reader.run("return document.documentElement.scrollWidth") <= width
    assert _contrast(reader, "body") > 7
    assert _contrast(reader, "#status") > 4.5
    before = reader.run("return getComputedStyle(document.body).backgroundColor")
    reader.one("#theme").click()
    assert reader.run("return getComputedStyle(document.body).backgroundColor") != before
    assert _contrast(reader, "body") > 7
    reader.run("localStorage.clear()")
    assert reader.errors() == []


def _contrast(reader: Page, selector: str) -> float:
    """Contrast of text and page by the WCAG formula."""
    script = (
        f"return [getComputedStyle(document.querySelector('{selector}')).color, "
        "getComputedStyle(document.body).backgroundColor]"
    )
    lights = []
    for color in reader.run(script):
        channels = [int(v) / 255 for v in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_five_thousand_records(browser: Any, large: Path) -> None:
    assert large.stat().st_size < MANY / 2000 * 1_500_000
    reader = Page(browser, large)
    assert f"{MANY} of {MANY} methods" in reader.one("#status").text
    assert len(reader.all("circle.dot")) == MANY + 1
    reader.sort("S")
    values = [float(text.split()[0]) for text in reader.column(5)]
    assert values == sorted(values, reverse=True)
    reader.one("#more").click()
    reader.until(lambda: len(reader.all("#ranked tr")) == 600)
    reader.one("#search").send_keys("method_4999")
    reader.until(lambda: reader.methods() == ["method_4999"])
    reader.one("#ranked .open").click()
    reader.until(lambda: reader.all("details.record[open] pre"))
    assert reader.errors() == []


def test_a_selection_redraws_no_table_and_keeps_the_focus(browser: Any, large: Path) -> None:
    reader = Page(browser, large)
    reader.run(
        "window.first = document.querySelector('#ranked tr'); first.querySelector('input').focus()"
    )
    dots = "return document.querySelector('circle.dot')"
    dot = reader.run(dots)
    before = reader.texts("#status")
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    reader.until(lambda: reader.texts("#status") != before)
    assert reader.run("return document.activeElement === first.querySelector('input')")
    assert reader.run("return document.querySelector('#ranked tr') === first")
    assert reader.run(dots) == dot
    # What comes with the button is there for the keyboard too.
    reader.run("document.getElementById('search').value = 'method_12'")
    reader.one("#search").send_keys("3")
    reader.until(lambda: len(reader.methods()) == 11)
    reader.one("#search").send_keys(Keys.BACK_SPACE)
    reader.until(lambda: "(100 of 111 shown)" in reader.one("#more").text)
    reader.one("#more").send_keys(Keys.ENTER)
    reader.until(lambda: len(reader.methods()) == 111)
    assert reader.run(
        "return document.querySelectorAll('#ranked tr')[100].contains(document.activeElement)"
    )
    assert reader.errors() == []


@pytest.mark.parametrize("width", [375, 1440])
def test_names_in_the_plot_lie_apart(browser: Any, large: Path, width: int) -> None:
    """Eight points beside each other."""
    reader = Page(browser, large, width)
    for line in reader.all("#ranked tr input")[:8]:
        if not line.is_selected():
            line.click()
    overlapping = """
        const boxes = [...document.querySelectorAll('#plane .name, #plane .guided')]
            .map((node) => node.getBBox());
        return [boxes.length, boxes.filter((a, i) => boxes.some((b, j) => i < j &&
            a.x < b.x + b.width && b.x < a.x + a.width &&
            a.y < b.y + b.height && b.y < a.y + a.height)).length]
    """
    reader.until(lambda: reader.run(overlapping)[0] == 9)
    assert reader.run(overlapping) == [9, 0]


def test_a_phone_reaches_every_column(browser: Any, site: Path) -> None:
    wide = Page(browser, site).texts("thead th")
    reader = Page(browser, site, 375)
    assert reader.texts("thead th") == wide
    reader.run("document.getElementById('scroll').scrollLeft = 1e6")
    seen = (
        "return [...document.querySelector('#ranked tr').children].at({}).getBoundingClientRect()"
    )
    assert 0 < reader.run(seen.format(-1))["right"] <= 375
    assert 0 <= reader.run(seen.format(2))["left"] < 40  # The method stays in view.


@pytest.mark.parametrize("width", [375, 1440])
def test_names_break_between_words(browser: Any, site: Path, width: int) -> None:
    reader = Page(browser, site, width)
    broken = """
        const range = document.createRange(), found = [];
        for (const name of document.querySelectorAll('#ranked .open'))
            for (const part of name.childNodes) if (part.nodeType === Node.TEXT_NODE) {
                range.selectNodeContents(part);
                if (range.getClientRects().length > 1) found.push(part.data);
            }
        return found
    """
    assert reader.run(broken) == []


def test_links_are_https_and_the_page_s_own(
    browser: Any, board: dict[str, Any], entries: list[Entry], world: Bundle, tmp_path: Path
) -> None:
    home = "https://git.example/me/board/tree/main/leaderboard"
    links = Links(home, {}, {world.sha256: "almanac/v1"})
    bundles = {world.sha256: world}
    hostile = [
        (record.model_copy(update={"note": f"{home}/note", "url": "javascript:alert(1)"}), outcomes)
        for record, outcomes in entries
    ]
    assert list(tell_records(hostile, bundles, tmp_path, links))
    page_ = Page(browser, write_page(board, bundles, tmp_path, links))

    def addresses(where: str) -> list[str]:
        return [str(one.get_attribute("href")) for one in page_.all(f"{where} a")]

    assert addresses("#about") == [f"{home}/bundles/almanac/v1"]
    told = addresses("#ranked tr:first-child")
    assert told[0] == "https://git.example/me"
    assert told[1].startswith(f"{home}/records/almanac/{world.sha256[:12]}/")
    page_.one("#ranked .open").click()
    page_.until(lambda: page_.all("details.record"))
    page_.run("document.querySelector('details.record').open = true")
    page_.until(lambda: page_.all("details.record .pairs"))
    found = set(addresses("details.record"))
    assert {one.removeprefix("https://git.example/me")[:6] for one in found} <= {"", "/board"}
    assert f"{home}/note" not in found


def test_the_table_of_any_checkpoint(
    browser: Any, entries: list[Entry], world: Bundle, tmp_path: Path
) -> None:
    for kept, style in ((20, FEWSHOT), (10, FEWSHOT), (20, CHAT)):
        any_record(tmp_path / "records", world, kept, f"tuned-{kept}", style)
    both = [*entries, *load_records(tmp_path / "records")]
    board = make_board(both, {world.sha256: reference_of(world)})
    reader = Page(browser, written(board, both, world, tmp_path / "site"))
    assert "tuned-20" not in reader.methods()
    reader.one("#any").click()
    reader.until(lambda: len(reader.methods()) == 3)
    assert reader.methods() == ["tuned-20", "tuned-10", "tuned-20"]
    assert reader.column(4) == ["few-shot", "few-shot", "chat"]
    assert not reader.one("#plots").is_displayed()
    assert not reader.all("#table input")
    assert "the base itself" in reader.one("#references").text
    reader.sort("lost")
    assert "Lost ▲" in reader.one("#table thead").text
    reader.one("#ranked .open").click()
    reader.until(lambda: reader.all(".record pre"))
    assert "0 facts lost, 0 right" in reader.one(".record summary").text
    assert "--no-trained" in reader.one(".record pre").text
    assert "gained" not in reader.one("dl.pairs").text  # Of nothing that the base gets wrong.
    reader.one("#close").click()
    reader.one("#learns").click()
    reader.until(lambda: reader.all("path.way"))
    assert reader.one("#plots").is_displayed()
    assert reader.errors() == []


def test_a_bundle_without_trained_checkpoints(
    browser: Any, entries: list[Entry], world: Bundle, tmp_path: Path
) -> None:
    other = make_bundle(tmp_path / "bundle", heldout=24)
    any_record(tmp_path / "records", other, 20)
    both = [*entries, *load_records(tmp_path / "records")]
    board = make_board(both)
    reader = Page(browser, written(board, both, world, tmp_path / "site"), wait=False)
    where = [bundle["sha256"] for bundle in board["bundles"]]
    for sha256 in (other.sha256, world.sha256, other.sha256, world.sha256):
        Select(reader.one("#bundle")).select_by_index(where.index(sha256))
        of_world = sha256 == world.sha256
        reader.until(lambda: "instruct" in reader.methods() or reader.all("#plots path.way"))
        assert reader.one("#learns" if of_world else "#any").get_attribute("aria-pressed") == "true"
        assert of_world or not reader.all("#table tr.on")
        if of_world:
            reader.until(lambda: len(reader.all("#ranked tr.on, #references tr.on")) == 4)
    assert reader.errors() == []
