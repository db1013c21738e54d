"""The report's page in a browser: from disk, offline, with any content."""

import base64
import dataclasses
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import expect, sync_playwright

from analysis.figures import styles
from analysis.output.html import SHOWN, Group, Page, Section, _grid, render
from analysis.statistics.curves import Target
from testbed.metrics import METRICS as ROWS
from testbed.metrics import find
from tests import browser

METRICS = tuple(f"{part}_{row.name}" for part in ("validation", "test", "train") for row in ROWS[:5])
SCRIPT = "<script>alert(1)</script>"
MARKUP = '<img src=x onerror=alert(2)> & "q" </script><b>%{x}</b>'
GROUP = Group("digits", "function_matching", 1000)
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><rect width="40" height="30"/></svg>'
)


def curve(optimizer, label=None, end=0.01, group=GROUP, timed=True, points=20):
    """A straight line in logarithms from 1 to `end`, with quartiles around it."""
    step = np.linspace(0, group.total_steps, points).astype(int)
    kl = np.exp(np.linspace(0, np.log(end), points))
    rows = {
        "optimizer": optimizer,
        "label": label or optimizer,
        "step": step,
        "epoch": step / 40,
        "n": 5,
    }
    rows |= dict(zip(Group._fields, group, strict=True)) | {
        "train_seconds": step / 100 if timed else np.nan
    }
    for metric in METRICS:
        values = kl if find(metric).better == "min" else 1 - kl / 10
        rows |= {metric: values, f"{metric}_low": values * 0.9, f"{metric}_high": values * 1.1}
    return pd.DataFrame(rows)


def page(*curves, **changes):
    curves = pd.concat(curves) if curves else pd.DataFrame()
    optimizers = sorted(set(curves.get("optimizer", ())))
    runs = pd.DataFrame(
        {
            "label": optimizers,
            "seed": range(len(optimizers)),
            "test_kl": [np.nan, 0.5, 0.25, 0.125][: len(optimizers)],
            "record": [f"../runs/digits/{name}/1.jsonl" for name in optimizers],
        }
    )
    value = Page(
        title=f"Report of {SCRIPT}",
        headlines=[f"{SCRIPT} reaches the target in 0.31x [0.28, 0.35] of adam's steps"] * 7,
        warnings=[f"mixed devices {MARKUP}"] * 6,
        curves=curves,
        targets={GROUP: Target("validation_kl", 0.05, "min")},
        styles=styles(optimizers),
        sections=[Section(f"Speed-up {MARKUP}", f"By {MARKUP}", pd.DataFrame({MARKUP: [MARKUP]}))],
        runs=runs,
        provenance=pd.DataFrame({"what": ["commit"], "values": [MARKUP]}),
        notes=[MARKUP],
    )
    return dataclasses.replace(value, **changes)


@pytest.fixture(scope="module")
def chromium():
    path = browser.find()
    if not path:
        pytest.fail(browser.MISSING, pytrace=False)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def swipe(tab, selector, up):
    """A finger moves `up` pixels from the middle of an element."""
    box = tab.locator(selector).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    session = tab.context.new_cdp_session(tab)
    for kind, moved in (("touchStart", 0), *(("touchMove", up * i / 8) for i in range(1, 9))):
        points = [{"x": x, "y": y - moved}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


@pytest.fixture
def faults():
    """What pages have logged on the console, thrown, asked the reader, or fetched."""
    return []


@pytest.fixture
def show(chromium, faults, tmp_path):
    """Opens a page from disk; there must be no faults at the end."""
    address = (tmp_path / "index.html").as_uri()
    contexts = []

    def on_request(request):
        if request.url != address and not request.url.startswith("data:"):
            faults.append(request.url)

    def opened(value, scripts=True, width=1400, **options):
        (tmp_path / "index.html").write_text(render(value, tmp_path), "utf-8")
        options |= {"viewport": {"width": width, "height": 900}, "java_script_enabled": scripts}
        contexts.append(chromium.new_context(**options))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(20_000)
        tab.on("console", lambda message: faults.append(message.text))
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
        tab.on("request", on_request)
        tab.goto(address)
        if scripts:
            tab.locator("#plot .main-svg, #no-curves:not([hidden])").first.wait_for()
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert faults == []


LINES = """() => document.getElementById("plot").data.filter((trace) => trace.mode === "lines+markers")
    .map(({name, visible, x, y, line}) => ({name, visible, x, y, line}))"""
RANGE = "() => document.getElementById('plot')._fullLayout.xaxis.range"
TOO_WIDE = "() => document.documentElement.scrollWidth > document.documentElement.clientWidth"


def lines(tab):
    return {line["name"]: line for line in tab.evaluate(LINES)}


def column(tab, number, table="#runs"):
    return tab.locator(f"{table} tbody tr:not([hidden]) td:nth-child({number})").all_inner_texts()


def test_the_page_works_from_disk_and_forbids_itself_the_network_and_other_scripts(show, faults):
    tab = show(page(curve("adam", points=3), curve("shampoo", end=0.002)))
    assert set(lines(tab)) == {"adam", "shampoo"}
    expect(tab.locator("#warnings h2")).to_have_text("6 warnings")
    expect(tab.locator(".headline")).to_have_count(6)
    expect(tab.get_by_text("target 0.05")).to_be_visible()
    expect(tab.get_by_role("link", name="record").first).to_have_attribute(
        "href", "../runs/digits/adam/1.jsonl"
    )
    tab.evaluate("() => Plotly.Fx.hover('plot', [{curveNumber: 2, pointNumber: 1}])")
    expect(tab.locator("#plot .hoverlayer")).to_have_text("adam500 steps0.1 [0.09, 0.11], n = 5")

    assert faults == []
    assert tab.evaluate("() => fetch('https://example.org/').catch(() => 'refused')") == "refused"
    tab.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'changed'";
        document.body.append(script);
    }""")
    assert tab.title() == f"Report of {SCRIPT}"
    assert len(faults) >= 2
    assert all("Content Security Policy" in fault for fault in faults)
    faults.clear()


def test_a_name_that_is_markup_is_shown_as_it_is_and_runs_nothing(show):
    tab = show(page(curve(SCRIPT), curve(MARKUP, f"{MARKUP} a"), curve(MARKUP, f"{MARKUP} b")))
    expect(tab.locator("h1")).to_have_text(f"Report of {SCRIPT}")
    assert SCRIPT in tab.locator("#configurations").inner_text()
    assert MARKUP in tab.locator("#configurations").inner_text()
    assert set(column(tab, 1)) == {MARKUP, SCRIPT}
    for number, name in ((3, SCRIPT), (4, MARKUP)):  # after the three bands
        tab.evaluate("(curveNumber) => Plotly.Fx.hover('plot', [{curveNumber, pointNumber: 9}])", number)
        expect(tab.locator("#plot .hoverlayer")).to_contain_text(name)
    assert tab.locator("main b, main img").count() == 0
    assert not tab.evaluate("() => document.querySelector('main script') !== null")


def test_tables_sort_by_click_and_by_key_and_are_filtered(show):
    steps = ["1,200 [900, 2,000]", "not reached", "90 [80, 95]", "1e-3", None, "not reached"]
    steps += ["at least 4 [3.45, \u221e)", "at most 0.25 [0.2, 0.3]", "-"]
    estimates = pd.DataFrame({"steps": steps, "label": list("abcdefghi")})
    tab = show(page(*map(curve, ["a", "b", "c", "dd"]), sections=[Section("Steps", "", estimates)]))
    header = tab.locator("#runs th:nth-child(3)")
    assert column(tab, 3) == ["\u2013", "0.5", "0.25", "0.125"]
    header.get_by_role("button").click()
    assert column(tab, 3) == ["0.125", "0.25", "0.5", "\u2013"]
    expect(header).to_have_attribute("aria-sort", "ascending")
    header.get_by_role("button").focus()
    tab.keyboard.press("Enter")
    assert column(tab, 3) == ["0.5", "0.25", "0.125", "\u2013"]  # what is missing stays last
    expect(header).to_have_attribute("aria-sort", "descending")
    expect(tab.locator("#live")).to_have_text("Runs: sorted by test_kl, descending")

    # Estimates and bounds by their numbers, before words; ties keep their order.
    tab.locator("#section-1").get_by_role("button", name="steps").click()
    assert column(tab, 2, "#section-1") == list("dhgcabfei")
    tab.locator("#section-1").get_by_role("button", name="steps").click()
    assert column(tab, 2, "#section-1") == list("bfacghdei")

    expect(tab.locator("#count")).to_have_text("4 runs")
    tab.get_by_label("Rows that contain").fill("DD 0.125")
    assert column(tab, 1) == ["dd"]
    expect(tab.locator("#count")).to_have_text("1 of 4 runs")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (1.23456e-7, "1.235e-07"),
        (12345.678, "12,350"),
        (np.int64(1234567), "1,234,567"),
        (np.float32(0.1), "0.1"),
        (300.0, "300"),
        (np.inf, "\u221e"),
        (True, "True"),
        ("5 of 5", "5 of 5"),
        *((missing, "\u2013") for missing in (None, np.nan, pd.NA, pd.NaT, "", "-")),
    ],
)
def test_numbers_are_shown_to_four_digits_and_missing_ones_as_a_dash(value, text):
    table = pd.DataFrame({"x": pd.Series([value], dtype=object)})
    assert [[cell.text for cell in row] for row in _grid(table).rows] == [[text]]


def test_a_seed_is_shown_as_a_name():
    seeds = [2**31 - 1, 2**31 - 2]
    rows = _grid(pd.DataFrame({"seed": seeds})).rows
    assert [(cell.text, cell.value) for (cell,) in rows] == [(str(seed), str(seed)) for seed in seeds]


def test_curves_toggle_and_zoom(show):
    tab = show(page(curve("adam", "adam lr=1"), curve("adam", "adam lr=2"), curve("sgd")))
    first, second, other = (line["line"] for line in lines(tab).values())
    assert first["color"] == second["color"] != other["color"]
    assert first["dash"] != second["dash"]

    whole = tab.evaluate(RANGE)
    tab.locator("#plot").scroll_into_view_if_needed()
    box = tab.locator("#plot .nsewdrag").first.bounding_box()
    tab.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.3 * box["height"])
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.7 * box["height"], steps=4)
    tab.mouse.up()
    tab.wait_for_function(f"(whole) => ({RANGE})()[0] > whole[0] + 0.1", arg=whole)
    zoomed = tab.evaluate(RANGE)

    tab.get_by_label("lr=1", exact=True).uncheck()
    assert [line["visible"] for line in lines(tab).values()] == [False, True, True]
    assert tab.get_by_label("adam", exact=True).evaluate("(box) => box.indeterminate")
    tab.get_by_label("adam", exact=True).check()
    tab.get_by_label("adam", exact=True).uncheck()
    assert [line["visible"] for line in lines(tab).values()] == [False, False, True]
    tab.get_by_role("button", name="None").click()
    assert not any(line["visible"] for line in lines(tab).values())
    tab.get_by_role("button", name="All").click()
    assert all(line["visible"] for line in lines(tab).values())
    assert tab.evaluate(RANGE) == zoomed

    tab.get_by_role("button", name="Reset zoom").click()
    assert tab.evaluate(RANGE) == pytest.approx(whole)
    tab.get_by_role("button", name="Zoom in").press("Enter")
    assert np.diff(tab.evaluate(RANGE)) == pytest.approx(0.6 * np.diff(whole))


def test_axes_metrics_and_groups_switch(show):
    other = Group("digits", "labels", 200)
    diverged = curve("sgd", group=other, timed=False)
    diverged[[name for name in diverged if name.startswith(tuple(METRICS))]] = np.inf
    tab = show(page(curve("adam", points=3), curve("sgd", timed=False), diverged))
    group, metric, axis = (
        tab.get_by_role("combobox", name=name) for name in ("Group", "Metric", "Against")
    )
    assert lines(tab)["adam"]["x"] == [0, 500, 1000]
    axis.select_option("epochs")
    assert lines(tab)["adam"]["x"] == [0, 12.5, 25]
    axis.select_option("training seconds")
    assert lines(tab)["adam"]["x"] == [0, 5, 10]
    expect(tab.locator("#curves-remark")).to_contain_text("1 is not timed")

    metric.select_option("held-out error")
    assert lines(tab)["adam"]["y"] == [None, 0.01, 0.001]  # a logarithmic axis has no second 0
    tab.get_by_label("log x").uncheck()
    assert lines(tab)["adam"]["y"] == [0.1, 0.01, 0.001]
    types = "() => ['xaxis', 'yaxis'].map((id) => document.getElementById('plot')._fullLayout[id].type)"
    assert tab.evaluate(types) == ["linear", "log"]
    expect(tab.get_by_text("target 0.05")).to_have_count(0)  # it is of another metric

    group.select_option("digits, labels, 200 steps")
    expect(tab.locator("#axis option[value=train_seconds]")).to_be_disabled()
    assert max(lines(tab)["sgd"]["x"]) == 200
    expect(tab.locator("#plot .annotation")).to_have_text("nothing to draw: no finite value")


def test_what_may_be_negative_has_a_linear_axis_until_the_reader_chooses(show):
    scalar = curve("adam", points=3).assign(**dict.fromkeys(("sharpness_low", "sharpness_high"), 1.0))
    scalar["sharpness"] = [-2.0, 0.0, 3.0]
    tab = show(page(scalar))
    metric, log = tab.get_by_role("combobox", name="Metric"), tab.get_by_label("log y")
    expect(log).to_be_checked()
    metric.select_option("sharpness (largest Hessian eigenvalue)")
    expect(log).not_to_be_checked()
    assert lines(tab)["adam"]["y"] == [None, 0, 3]  # a logarithmic axis has no step 0
    tab.get_by_label("log x").uncheck()
    assert lines(tab)["adam"]["y"] == [-2, 0, 3]
    log.check()
    assert lines(tab)["adam"]["y"] == [None, None, 3]
    metric.select_option("held-out KL (nats)")
    expect(log).to_be_checked()
    log.uncheck()
    metric.select_option("held-out error")
    expect(log).not_to_be_checked()  # as the reader chose


def test_on_a_phone_nothing_is_too_wide_a_finger_scrolls_and_keys_reach_every_control(show):
    long = pd.DataFrame({f"column {i}": ["a" * 200] for i in range(3)})
    section = Section("word" * 40, "word" * 200, long, group="word" * 40)
    tab = show(
        page(curve("x" * 200), sections=[section] * 2, warnings=["y" * 500]), width=400, has_touch=True
    )
    assert not tab.evaluate(TOO_WIDE)

    whole = tab.evaluate(RANGE)
    tab.evaluate("() => document.getElementById('plot').scrollIntoView({block: 'center'})")
    before = tab.evaluate("() => scrollY")
    swipe(tab, "#plot", up=200)
    tab.wait_for_function("(before) => scrollY > before + 100", arg=before)
    assert tab.evaluate(RANGE) == whole  # not zoomed

    tab.get_by_text("Contents").click()
    stops = tab.locator("button, select, input, summary, a, [tabindex]").filter(visible=True)
    stops.evaluate_all("(all) => all.forEach((one, i) => { one.dataset.stop = i; })")
    order = list(range(stops.count()))
    stops.first.focus()
    assert reached(tab, "Tab", len(order) - 1) == order[1:]
    assert reached(tab, "Shift+Tab", len(order) - 1) == order[-2::-1]


def reached(tab, key, times):
    """The numbers of the stops that a key goes to."""
    stops = []
    for _ in range(times):
        tab.keyboard.press(key)
        stops.append(int(tab.evaluate("() => document.activeElement.dataset.stop ?? -1")))
    return stops


def test_only_boxes_that_scroll_are_stops_of_the_tab_key(show):
    small, wide = pd.DataFrame({"a": [1]}), pd.DataFrame({f"column {i}": ["a" * 30] for i in range(9)})
    tab = show(page(curve("adam"), sections=[Section("Small", "", small), Section("Wide", "", wide)]))
    expect(tab.locator("#section-1 .box")).not_to_have_attribute("tabindex", "0")
    expect(tab.locator("#section-2 .box")).to_have_attribute("tabindex", "0")


def test_sections_of_a_group_are_together_and_the_contents_fold_on_a_phone(show):
    places = [("Speed-up", "b"), ("Cost", "a"), ("Profile", ""), ("Cost", "b")]
    sections = [Section(title, "", pd.DataFrame({"x": [1]}), group=group) for title, group in places]
    value = page(curve("adam"), sections=sections, notes=[])
    tab = show(value)
    titles = ["Curves", "Profile", "b", "Speed-up", "Cost", "a", "Cost", "Runs", "Provenance"]
    assert tab.locator("section:not(#warnings) > :is(h2, h3)").all_inner_texts() == titles
    assert tab.locator("h3").all_inner_texts() == ["Speed-up", "Cost", "Cost"]
    contents = [line.locator("a").all_inner_texts() for line in tab.locator("nav ul").all()]
    assert contents == [
        ["Curves", "Profile", "Runs", "Provenance"],
        ["b", "Speed-up", "Cost"],
        ["a", "Cost"],
    ]
    assert tab.evaluate("""() => [...document.querySelectorAll("nav a")].every((link) =>
        document.querySelector(`${link.hash} > :is(h2, h3)`).textContent === link.textContent)""")
    tab.set_viewport_size({"width": 400, "height": 900})
    expect(tab.get_by_role("link", name="Profile")).to_be_hidden()
    tab.get_by_text("Contents").click()
    expect(tab.get_by_role("link", name="Profile")).to_be_visible()


BOXES = """(selector) => [...document.querySelectorAll(selector)]
    .map((one) => one.getBoundingClientRect())
    .map(({left, right, top, bottom}) => [left, right, top, bottom])"""


def test_labels_of_ticks_leave_each_other_room(show):
    ranges = {1000: 0.7, 10**6: 1e-9, 120: 0.01}
    groups = [curve("adam", end=end, group=GROUP._replace(total_steps=n)) for n, end in ranges.items()]
    tab = show(page(*groups), width=400)
    for number, logarithmic in product("012", (True, False)):
        tab.locator("#group").select_option(number)
        tab.get_by_label("log x").set_checked(logarithmic)
        tab.get_by_label("log y").set_checked(logarithmic)
        for zoom in ("reset()", "zoom(0.1)", "zoom(200)"):
            tab.evaluate(zoom)
            xs = sorted(tab.evaluate(BOXES, "#plot .xtick text"))
            ys = sorted(tab.evaluate(BOXES, "#plot .ytick text"), key=lambda box: box[2])
            assert min(len(xs), len(ys)) >= 2
            assert all(a[1] + 4 < b[0] for a, b in pairwise(xs))
            assert all(a[3] < b[2] for a, b in pairwise(ys))


def test_the_name_of_a_target_is_inside_the_diagram_and_has_its_value(show):
    target = {GROUP: Target("validation_accuracy", 0.89, "max")}
    tab = show(page(curve("adam"), targets=target), width=400)
    name = tab.get_by_text("target 0.11 (accuracy 0.89)")
    for zoom in ("reset()", "Plotly.relayout('plot', {'yaxis.range': [-3, -0.958]}).then(() => 0)"):
        tab.evaluate(zoom)
        inside, box = tab.locator("#plot .nsewdrag").first.bounding_box(), name.bounding_box()
        assert inside["y"] <= box["y"]
        assert box["y"] + box["height"] <= inside["y"] + inside["height"]


def test_quartiles_are_drawn_where_few_curves_are_until_the_reader_chooses(show):
    several = [curve("adam", f"adam lr={i}") for i in range(SHOWN + 1)]
    other = Group("digits", "labels", 1000)
    tab = show(page(*several, curve("sgd", group=other)))
    bands = tab.get_by_label("quartiles")
    expect(bands).to_be_checked()  # one of many is shown
    tab.get_by_role("button", name="All").click()
    expect(bands).not_to_be_checked()
    tab.get_by_role("button", name="None").click()
    expect(bands).to_be_checked()
    bands.uncheck()
    tab.get_by_role("combobox", name="Group").select_option("digits, labels, 1,000 steps")
    expect(bands).not_to_be_checked()


def test_a_page_of_no_curves_opens_and_shows_its_figures(show, tmp_path):
    (tmp_path / "a.svg").write_text(SVG)
    section = Section("Figures", "", pd.DataFrame(), {"a": None})
    tab = show(page(sections=[section], warnings=[], headlines=[], runs=pd.DataFrame()))
    assert tab.locator("#section-1 img").evaluate("(image) => image.naturalWidth") == 40
    expect(tab.locator("#no-curves")).to_be_visible()


def test_of_many_configurations_the_best_of_each_optimizer_is_drawn_first(show):
    several = [curve("adam", f"adam lr={i}", end=0.1 / (i + 1)) for i in range(SHOWN)]
    tab = show(page(*several, curve("sgd")))
    shown = [name for name, line in lines(tab).items() if line["visible"]]
    assert shown == [f"adam lr={SHOWN - 1}", "sgd"]
    expect(tab.locator("#curves-remark")).to_contain_text(f"2 of {SHOWN + 1} configurations")


def test_the_page_follows_the_colour_scheme_and_its_button(show):
    tab = show(page(curve("adam")), color_scheme="dark")
    background = "() => getComputedStyle(document.body).backgroundColor"
    plot = "() => document.getElementById('plot')._fullLayout.paper_bgcolor"
    dark, style = tab.evaluate(background), styles(["adam"])["adam"]
    assert tab.evaluate(plot) == dark
    assert lines(tab)["adam"]["line"]["color"] == style.dark
    tab.get_by_role("button", name="Light theme").press("Enter")
    assert tab.evaluate(background) == tab.evaluate(plot) == "rgb(255, 255, 255)" != dark
    assert lines(tab)["adam"]["line"]["color"] == style.colour


def test_without_scripts_all_but_the_curves_can_be_read(show):
    tab = show(page(curve("adam")), scripts=False)
    expect(tab.get_by_text("need JavaScript")).to_be_visible()
    expect(tab.locator(".headline").first).to_be_visible()
    expect(tab.locator("#runs tbody tr")).to_have_count(1)
    expect(tab.locator("#panel")).to_be_hidden()


def test_figures_are_inside_the_page_until_it_would_be_large(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.svg").write_text(SVG)
    (tmp_path / "a.pdf").touch()
    value = page(sections=[Section("Figures", "", pd.DataFrame(), {"a": None, "b": None})])
    image = base64.b64encode(SVG.encode()).decode()
    html = render(value, tmp_path)
    assert html.count(image) == 2
    assert 'href="a.pdf"' in html
    assert 'href="b.pdf"' not in html
    monkeypatch.setattr("analysis.output.html.INLINED", len(image))
    html = render(value, tmp_path)
    assert html.count(image) == 1
    assert 'href="b.svg"' in html
    assert "1 figure is linked" in html
    with pytest.raises(FileNotFoundError):
        render(page(sections=[Section("Figures", "", pd.DataFrame(), {"c": None})]), tmp_path)


def test_files_of_a_section_are_linked_and_not_drawn(tmp_path):
    for name in ("a.svg", "a.csv", "b.svg", "b.pdf", "c.csv"):
        (tmp_path / name).write_text(SVG)
    table = pd.DataFrame({"x": [1]})
    html = render(
        page(sections=[Section("A", "", table, {"a": None, "b": None}, ("b", "c", "none"))]), tmp_path
    )
    assert html.count('<img src="data:') == 1
    for name in ("a.svg", "a.csv", "b.svg", "b.pdf", "c.csv"):
        assert html.count(f'href="{name}"') == 1
    assert "<span>c" in html
    assert "<span>none" not in html


def test_links_to_records_stay_paths(tmp_path):
    runs = pd.DataFrame({"record": ["javascript:alert(1)", "../runs/a b/<script>#?.jsonl"]})
    html = render(page(runs=runs), tmp_path)
    assert 'href="javascript%3Aalert%281%29"' in html
    assert 'href="../runs/a%20b/%3Cscript%3E%23%3F.jsonl"' in html
