"""Writes the generated parts of the documentation; `--check` only compares. Run by `make docs` and by a test."""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import architecture
import click

import akssl_core
from akssl_core.cli.base import akssl
from akssl_core.config import describe
from akssl_core.config.registry import KINDS, STAND_IN
from akssl_core.examining import RULES
from akssl_core.plugins import first_party
from akssl_core.plugins.first_party import ALONE, METHODS, TAUGHT
from akssl_core.plugins.manager import installed
from akssl_core.settings import EvaluateSpec, StartSpec, TrainSpec
from akssl_core.testing.published import compared

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


FAMILIES = {
    "contrast": ("simclr", "simclrv2", "mocov2", "mocov3", "nnclr"),
    "redundancy": ("barlowtwins", "vicreg", "lejepa"),
    "distillation": ("byol", "simsiam", "dino", "distill"),
    "clustering": ("swav",),
    "masked": ("ibot", "dinov2", "ijepa", "mae"),
}  # of methods, by what keeps images apart


def methods() -> str:
    """The table of installed methods, family by family."""
    family = {name: kind for kind, names in FAMILIES.items() for name in names}
    order = [*FAMILIES, "other"]
    found = sorted(akssl_core.methods(), key=lambda m: order.index(family.get(m.name, "other")))
    lines = [
        [family.get(m.name, "other"), f"`{m.name}`", m.summary, f"[{m.distribution}](plugins/{m.distribution})"]
        for m in found
    ]
    return describe.markdown(["family", "method", "what it does", "package"], lines)


def installation(name: str) -> str:
    """How to install one of our distributions, and the core with it."""
    if first_party.ON_INDEX:
        return f"Install: `{first_party.install(name)}`."
    clone = first_party.install(*dict.fromkeys(["akssl-core", name])).removesuffix(first_party.IN_A_CLONE)
    return (
        f"Install, in a clone of the repository: `{clone}`. From wheels: `make wheels` in the clone, then,\n"
        f"in any folder, `pip install --find-links CLONE/dist {name}`. No package index has it yet."
    )


def core_for_authors() -> str:
    """Where plugins of others take the core from."""
    if first_party.ON_INDEX:
        return "Your users' pip finds `akssl-core`, on which your plugin depends, on the package index."
    return (
        "`akssl-core`, on which your plugin depends, is on no package index yet. Until then `make wheels` in a clone\n"
        "of akssl, put `dist/akssl_core-*.whl` into a folder `wheels` of your repository, and commit it: the workflow\n"
        "that tests, and the commands of the README, say `pip install --find-links wheels ...`, and so do you below.\n"
        "You can publish before the core does, but pip will install your plugin only where that wheel, or the core, is."
    )


def plugin_settings(name: str) -> str:
    """The settings of one method."""
    return describe.settings_table(installed().get("method", name).Config)


def published(names: list[str]) -> str:
    """What the sources of a plugin's recipes say, and where and why the recipes differ."""
    lines = []
    for name in names:
        method: Any = installed().get("method", name)
        for recipe, source in method.published.items():
            same: dict[str, list[str]] = {}
            other = []
            for path, theirs, ours in compared(method, recipe, installed()):
                if path in source.differs:
                    other.append(f"`{path}` {_value(theirs)}, here {_value(ours)}: {source.differs[path]}")
                else:
                    section, _, setting = path.rpartition(".")
                    same.setdefault(section, []).append(f"{setting} {_value(theirs)}")
            other += source.beside
            title = f"`{recipe}`" if len(names) == 1 else f"`{name}`, `{recipe}`"
            alike = [f"`{section}` {', '.join(settings)}" for section, settings in same.items()]
            lines.append([title, source.source, "<br>".join(alike), "<br>".join(other) or "nothing known"])
    return describe.markdown(["recipe", "source", "as published", "not as published"], lines)


def _value(value: Any) -> str:
    """A setting's value as a user would type it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    plain = {None: "null", True: "true", False: "false"}
    return f"{value:g}" if type(value) in (int, float) else plain[value] if type(value) in (bool, type(None)) else value


def learning_results(names: list[str]) -> str:
    """The measured scores of a plugin's methods, beside raw pixels, untrained weights and training with labels."""
    file = RESULTS / "accuracy.json"
    if not file.exists():
        return "Nothing has been measured yet."
    data = json.loads(file.read_text())
    recipes = {name: installed().get("method", name).recipes["default"] for name in names}
    own = [f"untrained {name}" for name, recipe in recipes.items() if "backbone" in recipe]
    wanted = ["raw pixels", *(own or ["random init"]), *names, "supervised"]
    columns = ["data", *data["columns"]]
    mine = [entry for entry in data["summary"] if entry["system"] in wanted or entry["system"].split()[0] in names]
    if not any(entry["system"] in names for entry in mine):
        return "Nothing has been measured yet."
    lines = [[entry[key] for key in columns] for entry in mine]
    return f"{data['caption']}\n\n{describe.markdown(columns, lines)}"


def accuracy() -> str:
    """What every method learned within the same small budget, beside the baselines and a peer."""
    data = json.loads((RESULTS / "accuracy.json").read_text())
    columns = ["data", *data["columns"]]
    return f"{data['caption']}\n\n{describe.markdown(columns, [[e[key] for key in columns] for e in data['summary']])}"


def scores() -> str:
    """What each method's features were worth to a k-NN classifier, and the minutes of its run."""
    summary = json.loads((RESULTS / "accuracy.json").read_text())["summary"]
    of = {(entry["data"], entry["system"]): entry for entry in summary}
    own = {entry["system"]: entry["system"] for entry in summary if entry["system"].startswith("untrained ")}
    systems = {"raw pixels": "raw pixels", "random init": "untrained", **own, **{name: f"`{name}`" for name in ALONE}}
    found = [("shapes", "k-NN"), ("shapes", "linear probe"), ("fashion-mnist", "k-NN"), ("shapes", "minutes")]
    lines = [
        [name, *(of.get((data, system), {}).get(key, "-") for data, key in found)]
        for system, name in systems.items()
        if ("shapes", system) in of  # what is new has not been measured
    ]
    return describe.markdown(["features", "shapes", "shapes, linear probe", "fashion-mnist", "minutes"], lines)


MEASURED = (
    "overhead",
    "throughput",
    "throughput-96",
    "photos",
    "feeding-decoding",
    "feeding-batches",
    "speedrun",
    "augment",
    "augment-operations",
    "memory",
    "busy",
    "scaling-batch",
    "scaling-size",
    "scaling-views",
    "scaling-images",
    "scaling-processes",
)


def measured(name: str) -> str:
    """What a benchmark has found, with the facts it depends on."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "Nothing has been measured yet."
    data = json.loads(file.read_text())
    facts = ", ".join(f"{name} {value}" for name, value in data["facts"].items() if name != "runs")
    columns = list(dict.fromkeys(key for row in data["rows"] for key in row))
    lines = [[str(row.get(column, "-")) for column in columns] for row in data["rows"]]
    return f"{describe.markdown(columns, lines)}\n\n({facts})"


LEADERS = {
    "knn_top1": "k-NN",
    "knn_random_init": "untrained",
    "knn_raw_pixels": "raw pixels",
    "std_ratio": "std ratio",
    "rankme": "RankMe",
    "lidar": "LiDAR",
    "alpha_req": "alpha-ReQ",
    "seconds": "seconds",
}


def leaderboard() -> str:
    """What the sweep over all methods has found, the best first."""
    file = RESULTS / "leaderboard.json"
    if not file.exists():
        return "Nothing has been measured yet."
    lines = [
        [row["method"], *(_spread(row["metrics"].get(name)) for name in LEADERS), ", ".join(row["verdicts"])]
        for row in json.loads(file.read_text())["rows"]
    ]
    return describe.markdown(["method", *LEADERS.values(), "verdict"], lines)


def _spread(found: dict[str, Any] | None) -> str:
    """Mean and deviation of a number over the seeds."""
    if not found:
        return "-"
    return f"{found['mean']:.4g}" if found["std"] is None else f"{found['mean']:.4g} ± {found['std']:.2g}"


def did_it_help() -> str:
    """Accuracies and differences at each share of the labels, and the answers."""
    file = RESULTS / "did-it-help.json"
    if not file.exists():
        return "Nothing has been measured yet."
    data = json.loads(file.read_text())
    answers = "\n".join(f"- {name}: {text}" for name, text in data["answers"].items())
    return f"{measured('did-it-help')}\n\n{answers}"


TRIED = ("layouts", "kills", "faults", "fuzz", "steps")


def runs(text: str) -> str:
    """`docs/runs.md` with what `make soak` has found: without the titles, which would end the page's own section."""
    for name in TRIED:
        file = ROOT / "soak" / "results" / f"{name}.md"
        found = file.read_text().strip() if file.exists() else "Nothing has been tried yet."
        text = filled(text, name, re.sub(r"^## ", "### ", re.sub(r"\A# .*\n+", "", found), flags=re.MULTILINE))
    return text


def precision() -> str:
    """k-NN accuracy at the default precision (the leaderboard's) and in fp32, over the seeds of both."""
    leaders = json.loads((RESULTS / "leaderboard.json").read_text())["rows"]
    plain = [row for row in json.loads((RESULTS / "accuracy-fp32.json").read_text())["rows"] if row["data"] == "shapes"]
    knn = {
        "bf16": {
            (row["method"], seed): value
            for row in leaders
            for seed, value in zip(row["seeds"], row["metrics"]["knn_top1"]["values"], strict=True)
        },
        "fp32": {(row["system"], row["seed"]): row["knn"] for row in plain},
    }
    lines = []
    for system in dict.fromkeys(system for system, _ in knn["fp32"]):
        seeds = sorted(seed for name, seed in knn["bf16"].keys() & knn["fp32"].keys() if name == system)
        auto, fp32 = ([found[system, seed] for seed in seeds] for found in knn.values())
        spread = max(statistics.stdev(auto), statistics.stdev(fp32))
        gap = statistics.mean(auto) - statistics.mean(fp32)
        cells = [f"{statistics.mean(x):.1f} ± {statistics.stdev(x):.1f}" for x in (auto, fp32)]
        lines.append([system, str(len(seeds)), *cells, f"{gap:+.1f}", f"{spread:.1f}"])
    return describe.markdown(["method", "seeds", "bf16", "fp32", "bf16 - fp32", "larger deviation"], sorted(lines))


def performance(text: str) -> str:
    """`docs/performance.md` with every table filled in."""
    for name in MEASURED:
        text = filled(text, name, measured(name))
    return filled(text, "precision", precision())


def all_settings() -> str:
    """`docs/settings.md`: every setting of the core's components."""
    parts = ["# Settings", "", "Generated by `make docs`. On the command line: `--set SECTION.NAME=VALUE`.", ""]
    for section, schema in (("train", TrainSpec), ("start", StartSpec), ("evaluate", EvaluateSpec)):
        parts += [f"## `{section}`", "", describe.markdown(describe.HEADER, describe.cells(schema)), ""]
    registry = installed().registry
    installed().load_all()
    for kind in KINDS:
        for component, owner in registry.components(kind):
            if component.name == STAND_IN or not owner.startswith("akssl_core"):
                continue
            summary = (component.__doc__ or "").partition("\n")[0]
            parts += [f"## {kind} `{component.name}`", "", summary, ""]
            if component.Config.model_fields:
                parts += [describe.markdown(describe.HEADER, describe.cells(component.Config)), ""]
    return "\n".join(parts)


def all_commands() -> str:
    """`docs/commands.md`: the help page of every command."""
    twins = "Every command has a [twin in Python](reference/running.md), whose result has a `.text`: what is printed."
    parts = ["# Commands", "", "Generated by `make docs`; each page is what `--help` prints.", "", twins, ""]
    for path, command in walk(akssl, ("akssl",)):
        context = click.Context(command, info_name=" ".join(path), terminal_width=110, **akssl.context_settings)
        parts += [f"## `{' '.join(path)}`", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(parts)


def rules(kind: str) -> str:
    """What `akssl doctor` looks for before a run ("plan") or in its folder ("run")."""
    lines = [[f"`{r.name}`", r.meaning, r.cause, r.cure] for r in RULES if r.kind == kind]
    return describe.markdown(["rule", "finds", "cause", "cure"], lines)


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    yield path, command
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], (*path, name))


def filled(text: str, part: str, content: str) -> str:
    """A page with one generated part replaced."""
    pattern = rf"(<!-- generated: {part} -->\n).*?(<!-- end -->)"
    found, count = re.subn(pattern, lambda m: f"{m[1]}{content}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, f"no place for {part}"
    return found


def pages() -> dict[Path, str]:
    """Every page with its generated parts as they should be."""
    readme = ROOT / "README.md"
    speed, lasting, judging, elsewhere = (
        ROOT / "docs" / f"{name}.md" for name in ("performance", "runs", "evaluate", "export")
    )
    advice = ROOT / "docs" / "doctor.md"
    choice = ROOT / "docs" / "tutorials" / "choosing_a_method.md"
    first, own = ROOT / "docs" / "tutorials" / "first_run.md", ROOT / "docs" / "write_a_method.md"
    sharing, keeping = ROOT / "docs" / "publish.md", ROOT / "docs" / "classify.md"
    start = filled(readme.read_text(), "install", installation("akssl-plugin-simsiam"))
    result = {
        readme: filled(filled(start, "methods", methods()), "accuracy", accuracy()),
        first: filled(first.read_text(), "install", installation("akssl-plugin-simsiam")),
        sharing: filled(sharing.read_text(), "core", core_for_authors()),
        own: filled(own.read_text(), "install", installation("akssl-core")),
        speed: performance(speed.read_text()),
        lasting: runs(lasting.read_text()),
        elsewhere: filled(elsewhere.read_text(), "leaderboard", leaderboard()),
        keeping: filled(keeping.read_text(), "finetuning", measured("finetuning")),
        judging: filled(judging.read_text(), "did-it-help", did_it_help()),
        advice: filled(filled(advice.read_text(), "plan rules", rules("plan")), "run rules", rules("run")),
        choice: filled(choice.read_text(), "scores", scores()),
        ROOT / "docs" / "architecture.md": architecture.page(),
        ROOT / "docs" / "settings.md": all_settings(),
        ROOT / "docs" / "commands.md": all_commands(),
    }
    for page in sorted((ROOT / "plugins").glob("*/README.md")):
        names = [name for name, owner in METHODS.items() if owner == page.parent.name]
        text = filled(page.read_text(), "install", installation(page.parent.name))
        for name in names:
            part = "settings" if len(names) == 1 else f"settings {name}"
            text = filled(text, part, plugin_settings(name))
        if names:  # what is no method has no recipes, and nothing to measure
            text = filled(text, "published", published(names))
            taught = names == list(TAUGHT)  # learns from a teacher, for which no other method has a row
            found = measured("distillation-shapes") if taught else learning_results(names)
            text = filled(text, "distillation" if taught else "results", found)
        result[page] = text
    return result


def main() -> int:
    """Write the pages, or with --check name those that differ."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is out of date; run `make docs`\n")
        return int(bool(stale))
    for path in stale:
        path.write_text(pages()[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
