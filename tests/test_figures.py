"""Every figure at every size of data: no warning, nothing cut off, no text over another."""

import functools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from analysis import figures, frames
from analysis.figures import styles
from analysis.figures.axes import round_ticks, width, wrapped
from analysis.figures.lines import spread
from analysis.figures.sensitivity import lower_hull
from analysis.figures.style import KNOWN, PALETTE
from analysis.statistics import matched_quality, sensitivity, trials, tuning
from analysis.statistics.curves import Target, curves
from analysis.statistics.speedups import speedups as speedups_of
from testbed.metrics import METRICS as ROWS
from testbed.metrics import find
from tests.test_analysis import FAST, NEVER, SLOW, write

METRICS = tuple(f"{part}_{row.name}" for part in ("train", "validation", "test") for row in ROWS[:5])
TARGET = Target("validation_kl", 0.05, "min")
STEPS = np.array([0, 10, 20, 40, 80, 160, 320, 640, 1000])
LONG = tuple(f"an_optimizer_whose_name_is_40_characters{i}"[-40:] for i in range(5))
SIZES = {
    "one optimizer": {"names": KNOWN[:1]},
    "three optimizers": {"names": KNOWN[:3]},
    "12 optimizers": {"names": KNOWN[:12]},
    "18 optimizers": {"names": KNOWN},
    "one seed": {"names": KNOWN[:5], "seeds": 1},
    "diverged runs only": {"names": KNOWN[:3], "diverged": True},
    "long names": {"names": LONG},
    "strange names": {
        "names": ("<script>alert(1)</script>", "a$b$\\frac", "\u4f18\u5316\u5668 \n", "%s{}")
    },
    "several configurations": {"names": KNOWN[:3], "configurations": 3},
    "many configurations": {"names": KNOWN[:3], "configurations": 6},
}


def labels(names, configurations=1):
    """Pairs of optimizer and label."""
    tails = [f" learning_rate={0.001 * (i + 1):.3g}" for i in range(configurations)]
    return [(name, name + tail * (configurations > 1)) for name in names for tail in tails]


@functools.cache
def table_of_curves(names, seeds=5, diverged=False, configurations=1):
    rng, rows = np.random.default_rng(0), []
    for i, (name, label) in enumerate(labels(names, configurations)):
        for seed in range(seeds):
            kl = 2 * (1 + 0.1 * i) * (1 + STEPS / 10) ** -0.8 * rng.lognormal(0, 0.05, len(STEPS))
            known = {"optimizer": name, "label": label, "run_id": f"{i}-{seed}", "seed": seed}
            scores = {m: kl if find(m).better == "min" else 1 - kl / 20 for m in METRICS}
            rows.append(pd.DataFrame({**known, "step": STEPS, "train_seconds": STEPS / 50, **scores}))
    frame = pd.concat(rows, ignore_index=True)
    frame = frame.assign(task="digits", protocol="function_matching", total_steps=1000)
    frame["epoch"] = frame["step"] / 10
    return curves(
        frame[frame["step"] == 0].assign(status="diverged") if diverged else frame.assign(status="")
    )


def curve(metric, axis):
    def draw(**size):
        return figures.time_to_accuracy(
            table_of_curves(**size), metric, axis, styles(size["names"]), TARGET
        )

    return draw


def overfitting(**size):
    return figures.overfitting(table_of_curves(**size), styles(size["names"]), TARGET)


INTERVALS = ["label", "optimizer", "speedup", "low", "high", "bound", "n"]


def intervals(size):
    """Rows of INTERVALS with every kind of bound."""
    n = size.get("seeds", 5)
    for i, (name, label) in enumerate(labels(size["names"], size.get("configurations", 1))):
        value, low, high = 0.5 + 0.3 * i, 0.4 + 0.2 * i, 0.7 + 0.5 * i
        bounds = {
            1: (low, np.inf, ""),
            2: (0, high, ""),
            3: (low, np.inf, "at least"),
            4: (0, high, "at most"),
            5: (0, np.inf, "at least"),
        }
        low, high, bound = bounds.get(i % 7, (low, high, ""))
        if n == 1:
            low = high = np.nan
        if size.get("diverged"):
            value = low = high = np.nan
            bound = ""
        yield label, name, value, low, high, bound, n


def patience(**size):
    pairs, n = labels(size["names"], size.get("configurations", 1)), size.get("seeds", 5)
    known = [(name, label, steps) for name, label in pairs for steps in (1000, 4000, 16000)]
    finals = pd.DataFrame(known, columns=["optimizer", "label", "total_steps"]).assign(
        task="digits", n=n
    )
    finals["median"] = np.inf if size.get("diverged") else 9 * finals["total_steps"] ** -0.5
    finals["median"] *= 1 + 0.1 * finals.groupby("label", sort=False).ngroup()
    finals["low"], finals["high"] = finals["median"] * 0.9, finals["median"] * 1.1
    matched = pd.DataFrame(list(intervals(size))[1:], columns=INTERVALS)
    matched = matched.assign(task="digits", over=pairs[0][1], horizon=16000)
    # Within the horizons: nothing is extrapolated.
    matched["speedup"] = matched["speedup"].clip(1, 16)
    matched["needed"] = 16000 / matched["speedup"]
    return figures.patience(finals, matched, styles(size["names"]))


def speedups(axes=("steps", "seconds"), tasks=("digits",)):
    def draw(**size):
        one = pd.DataFrame(list(intervals(size)), columns=INTERVALS)
        one = one.assign(over="adam", total_steps=1000)
        one["wins"] = one["n"]
        table = [one.assign(axis=axis, task=task) for axis in axes for task in tasks]
        return figures.speedups(pd.concat(table), styles(size["names"]))

    return draw


def profile(**size):
    taus = np.linspace(1, 4, 61)
    reached = {
        name: np.floor(8 * np.clip((taus - 1) / (i + 1), 0, 1)) / 8
        for i, name in enumerate(size["names"])
    }
    table = pd.DataFrame(reached, index=taus).T * (0 if size.get("diverged") else 1)
    return figures.profile(table, styles(size["names"]), note="8 workloads")


def tuning_curve(**size):
    k = np.arange(1, size.get("configurations", 12) + 1)
    tables = [
        pd.DataFrame(
            {
                "optimizer": name,
                "measure": "steps_to_target",
                "k": k,
                "n": len(k),
                "median": 99 * (i + 2) / k,
            }
        )
        for i, name in enumerate(size["names"])
    ]
    table = pd.concat(tables)
    table.loc[table["k"] == 1, "median"] = np.inf
    if size.get("diverged"):
        table["median"] = np.inf
    table["q25"], table["q75"], table["mean"] = (
        0.8 * table["median"],
        1.3 * table["median"],
        table["median"],
    )
    return figures.tuning_curve(table, styles(size["names"]))


def rates(**size):
    relative = np.logspace(-2, 2, 9)
    ratio = np.exp(np.log(relative) ** 2 / 5)
    ratio[-1] = np.inf
    if size.get("diverged"):
        relative, ratio = relative * np.nan, ratio * np.inf
    points = {"relative": relative, "loss_ratio": ratio, "metric": 0.1, "n": 1}
    tables = [pd.DataFrame(points).assign(optimizer=name) for name in size["names"]]
    return figures.sensitivity(pd.concat(tables), styles(size["names"]))


def costs(**size):
    pairs = labels(size["names"], size.get("configurations", 1))
    table = pd.DataFrame(pairs, columns=["optimizer", "label"]).assign(n=5)
    parts = ("learning", "data_wait", "evaluation", "checkpoint", "record", "compile", "setup")
    for i, part in enumerate(parts):
        table[part] = np.nan if size.get("diverged") else (i + 1) * (1 + 0.1 * table.index)
    return figures.cost_split(table, styles(size["names"]))


KINDS = {
    "time to accuracy": curve("validation_kl", "step"),
    "shares against seconds": curve("test_accuracy", "train_seconds"),
    "overfitting": overfitting,
    "patience": patience,
    "speed-ups": speedups(),
    "speed-ups in steps": speedups(("steps",), ("digits", "flowers")),
    "profile": profile,
    "tuning curve": tuning_curve,
    "sensitivity": rates,
    "cost split": costs,
}


def texts(figure):
    """Each text that is seen, with its box (x0, y0, x1, y1) in pixels."""
    figure.draw_without_rendering()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    found = [text for text in found if text.axes is None or text.axes in figure.axes]
    return [(text.get_text(), text.get_window_extent().extents) for text in found]


@pytest.mark.parametrize("size", sorted({*SIZES} - {"three optimizers"}))
@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_cut_off_or_over_another(kind, size):
    assert_readable(KINDS[kind](**SIZES[size]))


def assert_readable(figure):
    words, boxes = zip(*texts(figure), strict=True)
    low, high = np.array(boxes).reshape(-1, 2, 2).transpose(1, 0, 2)
    assert (low >= 0).all(), words
    assert (high <= figure.bbox.max).all(), words
    shared = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    # Boxes of lines set solid touch: 2 pixels are 0.7 points.
    over = np.triu((shared > [1, 2]).all(axis=-1), k=1)
    assert not over.any(), [(words[i], words[j]) for i, j in np.argwhere(over)]
    assert figure.get_figwidth() == 3.4


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """`trials.trials`: of all fates against one target, at three horizons, and at many rates."""
    folder = tmp_path_factory.mktemp("real")
    for seed in range(3):
        fates = {"adam": SLOW, "muon": [4] * 10 + [0.4] * 11, "shampoo": FAST}
        for name, kls in (fates | {"sgd": NEVER, "lion": [4, None]}).items():
            write(folder, name, seed, kls, status="diverged" if None in kls else "finished")
        for steps in (200, 800, 3200):
            for name, c in (("adam", 100), ("muon", 90), ("shampoo", 1), ("sgd", 4000)):
                write(folder, name, seed, [9, c / steps * (1 + seed / 99)], steps, protocol="q")
    for name in ("adam", "sgd"):
        for i, kls in enumerate((FAST, SLOW, SLOW, FAST, NEVER, [4, None])):
            status = "diverged" if None in kls else "finished"
            rate = {"learning_rate": 0.001 * 4**i}
            write(folder, name, 0, kls, status=status, protocol="tuning", **rate)
    return trials.trials(frames.load(folder)[0])


def by_best(table):
    """As in reports: labelled with their optimizers' names."""
    return table.assign(label=table["optimizer"])


def drawn_of(ends):
    """Each figure of a table that comes from its own producer."""
    style = styles([*KNOWN])
    p, q, tuned = (by_best(ends[ends["protocol"] == name]) for name in ("p", "q", "tuning"))
    for over in ("adam", "sgd", "lion"):
        yield figures.speedups(speedups_of(p, over), style, title=f"Over {over}")
        few = speedups_of(p[p["seed"] < 2], over)
        yield figures.speedups(few[few["axis"] == "steps"], style)
    for over in ("adam", "sgd"):
        yield figures.patience(
            matched_quality.finals(q), matched_quality.matched_quality(q, over), style, title=over
        )
    for metric, mode in (("validation_kl", "min"), ("validation_accuracy", "max")):
        score = tuned["score"].where(np.isinf(tuned["score"]), tuned[metric] * (1, -1)[mode == "max"])
        own = tuned.assign(target_metric=metric, target_mode=mode, score=score)
        curves = tuning.tuning_curves(own)
        for measure in ("final", "steps_to_target"):
            yield figures.tuning_curve(curves[curves["measure"] == measure], style, measure, metric)
        yield figures.sensitivity(sensitivity.sensitivity(own), style, "Rates", metric)


def test_figures_of_real_tables_are_readable(real):
    seen = []
    for figure in drawn_of(real):
        assert_readable(figure)
        seen.append(" ".join(text.replace("\n", " ") for text, _ in texts(figure)))
    adams, adams_few, sgds, _, lions = seen[:5]
    for figure in (adams, sgds, lions):
        assert "hollow: a bound" in figure
    assert "Over adam" in adams
    assert "at most" in adams_few
    assert "at least 16" in seen[6], "shampoo is better from its first horizon on"
    assert "at most 1" in seen[6]
    assert "held-out KL (nats), best of k" in seen[8]
    assert "steps to the target, best of k" in seen[9]
    assert "held-out KL / the best one's" in seen[10]
    assert "held-out error, best of k" in seen[11]
    assert "the best held-out accuracy / each one's" in seen[13]


def arrows_and_markers(axes):
    """Boxes in pixels of the tips of arrows, and of all other single markers."""
    found = {True: [], False: []}
    for line in axes.lines:
        if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "", None):
            (x, y), half = axes.transData.transform(line.get_xydata()[0]), line.get_markersize() / 2
            half *= axes.figure.dpi / 72
            found[line.get_marker() in ("<", ">")].append((x - half, y - half, x + half, y + half))
    return (np.array(found[kind]).reshape(-1, 4) for kind in (True, False))


def test_arrows_stand_free(real):
    """Within their panels, and on no marker: a bound's own stands beside it."""
    many = 0
    synthetic = (KINDS[kind](**SIZES["18 optimizers"]) for kind in ("speed-ups", "patience"))
    for figure in (*drawn_of(real), *synthetic):
        figure.draw_without_rendering()
        for axes in figure.axes:
            arrows, markers = arrows_and_markers(axes)
            many += len(arrows)
            x0, _, x1, _ = axes.bbox.extents
            assert (arrows[:, 0] >= x0 - 1).all()
            assert (arrows[:, 2] <= x1 + 1).all()
            low = np.maximum(arrows[:, None, :2], markers[:, :2])
            high = np.minimum(arrows[:, None, 2:], markers[:, 2:])
            assert not (low < high).all(axis=-1).any()
    assert many > 20


def test_a_bound_is_hollow_with_an_arrow_where_it_is_open(real):
    table = speedups_of(by_best(real[real["protocol"] == "p"]), "adam")
    table = table[table["axis"] == "steps"].set_index("label")
    assert table.loc["sgd", "bound"] == "at most"
    # At the target in its first measurement, it may have been there long before.
    assert table.loc["shampoo", ["bound", "high"]].tolist() == ["", np.inf]
    expected = (("sgd", True, ["<"]), ("shampoo", False, [">"]), ("muon", False, []))
    for label, hollow, tips in expected:
        figure = figures.speedups(table.loc[[label]].reset_index(), styles(KNOWN))
        drawn = [line for line in figure.axes[0].lines if line.get_marker() != "None"]
        (point,) = (line for line in drawn if line.get_marker() not in "<>")
        assert (to_hex(point.get_markerfacecolor()) == "#ffffff") == hollow
        assert [line.get_marker() for line in drawn if line.get_marker() in "<>"] == tips


@pytest.mark.parametrize("kind", KINDS)
def test_figures_report_what_is_missing(kind):
    seen = " ".join(text for text, _ in texts(KINDS[kind](**SIZES["diverged runs only"])))
    if kind != "profile":  # where a line at 0 shows it
        assert any(word in seen for word in ("diverged", "no ratio", "finite", "No trial"))


def test_one_seed_is_reported_and_has_no_band():
    figure = KINDS["time to accuracy"](**SIZES["one seed"])
    assert any("n = 1 seed" in text for text, _ in texts(figure))
    seen = texts(KINDS["time to accuracy"](**SIZES["three optimizers"]))
    assert any("n = 5 seeds" in text for text, _ in seen)


def test_of_many_configurations_the_best_is_named():
    seen = [text for text, _ in texts(KINDS["time to accuracy"](**SIZES["many configurations"]))]
    assert set(KNOWN[:3]) < set(seen)
    assert any("+ 15 other configurations" in text.replace("\n", " ") for text in seen)
    seen = [text for text, _ in texts(KINDS["time to accuracy"](**SIZES["several configurations"]))]
    assert sum("learning" in text for text in seen) == 9


def colours(figure):
    drawn = {line.get_color() for line in figure.findobj(mpl.lines.Line2D)}
    drawn |= {patch.get_facecolor() for patch in figure.findobj(mpl.patches.Patch)}
    return {to_hex(colour).upper() for colour in drawn}


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_has_one_colour_in_all_figures(kind):
    """Regardless of which others are in the figure."""
    style = styles(KNOWN)
    for names in (("shampoo",), ("adam", "muon", "shampoo")):
        found = colours(KINDS[kind](names=names))
        assert {style[name].colour for name in names} <= found
        assert style["sgd"].colour not in found


def test_unknown_names_get_the_least_used_colours():
    names = [f"new{i}" for i in range(9)]
    style = styles(["adam", "shampoo", *names])
    assert {name: style[name] for name in KNOWN[:2]} == styles(KNOWN[:2])
    fresh = [style[name].colour for name in names]
    assert fresh[:5] == [pair[0] for pair in PALETTE[2:]]
    assert fresh[5:] == [pair[0] for pair in PALETTE[:4]]
    assert len({style[name].marker for name in names[:5]}) == 5, "grey prints tell them apart too"
    everyone = [*KNOWN, "adam@1", *(f"new{i}" for i in range(30))]
    assert len(set(styles(everyone).values())) == 49
    versions = dict.fromkeys(["adam@1", "adam@2"], "adam")
    assert styles(versions, versions)["adam@1"] == styles(["adam"])["adam"]
    assert len(styles([*everyone, "one more"])) == 50


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_written_and_the_same_each_time(kind, tmp_path):
    size = SIZES["three optimizers"]
    paths = figures.save(KINDS[kind](**size), tmp_path, "one")
    assert [path.suffix for path in paths] == [".png", ".svg", ".pdf"]
    assert all(path.stat().st_size > 3000 for path in paths)
    assert b"/Type3" not in paths[2].read_bytes()
    if kind in ("time to accuracy", "cost split"):
        again = figures.save(KINDS[kind](**size), tmp_path, "again")
        assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_labels_are_spread_as_little_as_they_need():
    wanted, heights = np.array([0.0, 0.01, 5.0]), np.ones(3)
    np.testing.assert_allclose(spread(wanted, heights, -9, 9), [-0.495, 0.505, 5])
    np.testing.assert_allclose(spread(wanted, heights, 0, 9), [0.5, 1.5, 5])
    places = spread(np.full(30, 2.0), np.linspace(0.1, 0.3, 30), 0, 9)
    assert (np.diff(places) > 0.099).all()
    assert places.min() >= 0.05
    assert places.max() <= 9


@pytest.mark.parametrize("limits", [(40, 1000), (0.031, 0.26), (1e-9, 1e6), (1, 1.1), (0.95, 1.05)])
def test_axes_have_round_ticks_with_room_for_their_labels(limits):
    ticks = round_ticks(*limits, 2.0, lambda label: width(label) + 0.1)
    assert 2 <= len(ticks) <= 8
    assert all(limits[0] <= tick <= limits[1] for tick in ticks)
    gaps = np.diff(np.log(ticks)) * 2 / np.log(limits[1] / limits[0])
    assert (gaps > 0.1).all()


def test_wrapped_text_keeps_its_characters_and_its_width():
    text = "an_optimizer_with_a_name that=has parts,and/more"
    lines = wrapped(text, 0.8).split("\n")
    assert all(width(line) <= 0.8 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("\u4f18$x$\n", 2) == "?$x$"


def test_the_lower_hull_is_below_all_points_and_convex():
    x, y = np.random.default_rng(0).random((2, 50))
    hull = lower_hull(x, y)
    assert (np.interp(x, *hull) <= y + 1e-12).all()
    assert (np.diff(np.diff(hull[1]) / np.diff(hull[0])) > 0).all()
    assert {*zip(*hull, strict=True)} <= {*zip(x, y, strict=True)}
