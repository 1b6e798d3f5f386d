"""One valid instance of every file that is read from outside, and how a command reads it."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from board.synthetic import BASE, ME, answered_record, drawn, make_bundle, write_run
from factual_forgetting import checkpoint, files
from factual_forgetting.board.bundles import make_official, official, reference_of
from factual_forgetting.board.making import make_record
from factual_forgetting.board.record import load_record, maintained
from factual_forgetting.board.validate import render_findings, validate
from factual_forgetting.bundle.build import BundleConfig, build_bundle
from factual_forgetting.bundle.command import export_training_data
from factual_forgetting.bundle.datasheet import relations_by_split
from factual_forgetting.bundle.manifest import Bundle, load_bundle
from factual_forgetting.config import load_yaml, parse
from factual_forgetting.engines import merging
from factual_forgetting.facts.aliases import read_aliases
from factual_forgetting.facts.almanac import world
from factual_forgetting.facts.matching import MATCHER_VERSION
from factual_forgetting.facts.sources import load_facts
from factual_forgetting.lab import command as lab
from factual_forgetting.protocol.recipe import load_protocol
from factual_forgetting.protocol.sweep import Sweep, sweep_runs
from factual_forgetting.scoring import frontier, render
from factual_forgetting.scoring.report import in_order, make_report
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.styles import SPLIT_OF_TASK, STYLES, TASK, TASK_VERSION
from factual_forgetting.slick.labelling import load_labels

Seal = Callable[[Path], None]


@dataclass(frozen=True)
class Specimen:
    """Files in a directory that a reader reads; `seal` makes hashes fit what they are told of."""

    name: str
    folder: Path
    damaged: tuple[str, ...]
    read: Callable[[Path], Any]
    seal: Seal = field(default=lambda _: None)


def specimens(root: Path) -> dict[str, Specimen]:
    """Makes all of them below a directory."""
    bundle = _bundle(root / "bundle")
    made = [
        Specimen(
            "bundle",
            bundle.path,
            tuple(sorted(p.name for p in bundle.path.iterdir() if p.suffix != ".md")),
            _read_bundle,
            _seal_bundle,
        ),
        _labels(root / "labels"),
        _record(root / "record", bundle),
        _run(root / "run", bundle),
        _sweep_chosen(root / "sweep", bundle),
        _results(root / "results", bundle),
        *_facts(root / "facts"),
        _exposures(root / "exposures"),
        _pretrain(root / "pretrain"),
        _protocol(root / "protocol"),
        _sweep(root / "sweeping", bundle),
        _aliases(root / "aliases"),
        _leaderboard(root / "leaderboard", bundle),
        _checkpoint(root / "checkpoint"),
        _adapter(root / "adapter"),
    ]
    return {specimen.name: specimen for specimen in made}


def _bundle(path: Path) -> Bundle:
    bundle = make_bundle(path.with_name("plain"), 3, 3, 3)
    exemplars = {
        relation: [item.fact for item in bundle.splits["replay"][:2]]
        for relation in ("country", "place_of_birth")
    }
    shutil.copytree(bundle.path, path)
    rows = [
        {"relation": relation, "facts": [fact.row() for fact in facts]}
        for relation, facts in exemplars.items()
    ]
    files.write_jsonl(path / "exemplars.jsonl", rows)
    manifest = files.read_json(path / "manifest.json")
    manifest |= {
        "relations": {"known": {"country": 2, "1969": 1}, "unknown": {"country": 2}},
        "majority_baseline": {"micro": 0.5, "macro": 0.5},
        "answer_distance": {"country": 0.5},
        "source": {"facts": "almanac", "dropped": {"blank": 1}, "versions": {"a": "1"}},
        "labels": {"matcher": MATCHER_VERSION, "engine": "prefix", "settings": {}, "files": {}},
    }
    files.write_json(path / "manifest.json", manifest)
    _seal_bundle(path)
    return load_bundle(path)


def _seal_bundle(path: Path) -> None:
    """Writes the hashes that fit, as somebody who changed the files would."""
    told = path / "manifest.json"
    try:
        manifest = json.loads(told.read_text())
        for name in manifest["files"]:
            if (path / name).is_file() and isinstance(manifest["files"][name], str):
                manifest["files"][name] = files.sha256_file(path / name)
        unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
        if isinstance(manifest.get("sha256"), str):
            manifest["sha256"] = files.sha256_json(unsigned)
        # As it stands there: what writes it may not be able to.
        told.write_text(json.dumps(manifest, ensure_ascii=False))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        pass


def _read_bundle(path: Path) -> Any:
    bundle = load_bundle(path)
    export_training_data(bundle, path / "export.jsonl.out")
    return (
        reference_of(bundle), relations_by_split(bundle.manifest),
        [[style.prompt(item, bundle) for _, item in bundle.items()] for style in STYLES.values()],
    )  # fmt: skip


def _labels(path: Path) -> Specimen:
    facts = [fact for fact in world(facts_per_relation=16) if fact.relation == "country"]
    marks = ["1111", "1111", "0000"]
    told = {"1111": "HighlyKnown", "0000": "Unknown"}
    labels = [
        {
            "id": fact.id, "correct": marks[i % 3], "category": told[marks[i % 3]], "margin": 0.5,
            "base": {"zero_shot": i % 3 < 2, "fresh": i % 3 < 2},
            "sampled": [1, 4] if i % 3 == 2 else None,
        }
        for i, fact in enumerate(facts)
    ]  # fmt: skip
    labels = [
        {**row, "category": "WeaklyKnown"} if row["sampled"] and i % 2 else {**row, "sampled": None}
        for i, row in enumerate(labels)
    ]
    exemplars = [
        {"relation": "country", "run": run, "facts": [fact.row() for fact in facts[:2]]}
        for run in ("0", "fresh")
    ]
    for name, rows in (
        ("facts", [f.row() for f in facts]),
        ("labels", labels),
        ("exemplars", exemplars),
    ):
        files.write_jsonl(path / f"{name}.jsonl", rows)
    files.write_json(path / "source.json", {"facts": "almanac", "dropped": {"blank": 1}})
    manifest = {
        "base": BASE, "engine": "prefix", "settings": {"runs": 4}, "matcher": MATCHER_VERSION,
        "files": {f"{name}.jsonl": "" for name in ("facts", "labels", "exemplars")},
    }  # fmt: skip
    files.write_json(path / "manifest.json", manifest)
    _seal_labels(path)
    damaged = ("exemplars.jsonl", "facts.jsonl", "labels.jsonl", "manifest.json", "source.json")
    return Specimen("labels", path, damaged, _read_labels, _seal_labels)


def _seal_labels(path: Path) -> None:
    told = path / "manifest.json"
    try:
        manifest = json.loads(told.read_text())
        for name, digest in manifest["files"].items():
            if (path / name).is_file() and isinstance(digest, str):
                manifest["files"][name] = files.sha256_file(path / name)
        told.write_text(json.dumps(manifest))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError):
        pass


def _read_labels(path: Path) -> Any:
    sizes = BundleConfig(known=2, unknown=1, heldout=1, validation=0, replay=0)
    bundle = build_bundle(load_labels(path), sizes, path / "bundle")
    return load_bundle(bundle.path).sha256


def _record(path: Path, bundle: Bundle) -> Specimen:
    run = write_run(path.with_name("recorded"), bundle, drawn(bundle, 0, 0.5, 0.1))
    where = answered_record(run, bundle, path / "records", ME)
    files.write_json(path / "maintainers.json", {where.stem: "rescored"})
    record = where.relative_to(path).as_posix()
    outcomes = record.replace(".json", ".outcomes.jsonl.gz")

    def seal(folder: Path) -> None:
        try:
            content = gzip.decompress((folder / outcomes).read_bytes())
            told = json.loads((folder / record).read_text())
            told["outcomes"] |= {
                "sha256": hashlib.sha256(content).hexdigest(),
                "rows": len(content.splitlines()),
            }
            (folder / record).write_text(json.dumps(told))
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            OSError,
            EOFError,
            __import__("zlib").error,
        ):
            pass

    def read(folder: Path) -> Any:
        findings = validate(folder / "records", {bundle.sha256: bundle})
        for style in ("rich", "json", "github"):
            assert "\x1b" not in render_findings(findings, style)
        maintained(folder / "records")
        return load_record(folder / record)[0], [f.message for f in findings]

    return Specimen("record", path, (record, outcomes, "maintainers.json"), read, seal)


def _points(path: Path) -> None:
    points = list(files.read_jsonl(path / "curve.jsonl"))
    for index, point in enumerate(points):
        shares = {"plasticity": index / 11, "stability": 1 - index / 20, "task_learning": 1.0}
        point |= {**shares, "validation_stability": 1.0, "kl_to_base": 0.1, "alpha": None}
    files.write_jsonl(path / "curve.jsonl", points)


def _run(path: Path, bundle: Bundle) -> Specimen:
    write_run(path, bundle, drawn(bundle, 1, 0.5, 0.1))
    _points(path)
    files.write_json(path / "run.log.json", {"seconds": 1.5})
    damaged = ("run.json", "curve.jsonl", "curve.outcomes.jsonl.gz", "run.log.json")

    def read(folder: Path) -> Any:
        first = _try(lambda: _frontier([folder], bundle))
        return first, make_record(folder, bundle, folder.parent / "records", ME).name

    return Specimen("run", path, damaged, read)


def _try(act: Callable[[], Any]) -> Any:
    """The second reader reads too, whatever the first says."""
    from factual_forgetting.errors import UserError

    try:
        return act()
    except UserError as error:
        return str(error)


def _frontier(paths: list[Path], bundle: Bundle) -> Any:
    runs = frontier.find_runs(paths, bundle)
    rows = frontier.frontier(runs, bundle)
    files.dumps(rows)
    return frontier.frontier_markdown(rows), [frontier._curves(row, runs) for row in rows]


def _sweep_chosen(path: Path, bundle: Bundle) -> Specimen:
    run = write_run(path / "runs" / "plain" / "1-1-0", bundle, drawn(bundle, 2, 0.5, 0.1))
    _points(run)
    row = {
        "learning_rate": 1e-5,
        "strength": 1.0,
        "score": 0.5,
        "trials": 2,
        "runs": ["runs/plain/1-1-0"],
    }
    files.write_json(path / "chosen.json", {"plain": row})

    def read(folder: Path) -> Any:
        first = _try(lambda: _frontier([folder], bundle))
        run = folder / "runs" / "plain" / "1-1-0"
        undeclared = ME.model_copy(update={"trials": None})
        return first, make_record(run, bundle, folder.parent / "records", undeclared).name

    return Specimen("chosen", path, ("chosen.json",), read)


def _results(path: Path, bundle: Bundle) -> Specimen:
    style, stamp = STYLES[TASK], "2026-01-01T00-00-00"
    made = {"bundle_sha256": bundle.sha256}
    made |= {"weights_sha256": "a" * 64, "tokenizer_sha256": "b" * 64}
    sent = {"do_sample": False, "until": ["\n"], "max_gen_toks": style.max_new_tokens}
    tasks = {
        f"{TASK}_{name}": split for name, split in SPLIT_OF_TASK.items() if bundle.splits[split]
    }
    for task, split in tasks.items():
        rows = [
            {
                "doc_id": number,
                "doc": {"id": item.fact.id, **made},
                "resps": [[" nowhere"]],
                "filtered_resps": ["nowhere"],
                "arguments": {"gen_args_0": {
                    "arg_0": style.prompt(item, bundle),
                    "arg_1": sent,
                }},
            }
            for number, item in enumerate(bundle.splits[split])
        ]  # fmt: skip
        files.write_jsonl(path / f"samples_{task}_{stamp}.jsonl", rows)
    told = {
        "results": {task: {"ff_accuracy,none": 0.0} for task in tasks},
        "versions": dict.fromkeys(tasks, TASK_VERSION),
        "configs": {task: {"metadata": {"version": TASK_VERSION}} for task in tasks},
        "config": {
            "model": "hf", "model_args": "pretrained=nowhere,dtype=float32", "batch_size": "16",
            "device": None, "limit": None, "use_cache": None, "model_dtype": "torch.float32",
        },
        "max_length": 256, "lm_eval_version": "0.4.13", "transformers_version": "5",
        "chat_template": None, "system_instruction": None,
    }  # fmt: skip
    files.write_json(path / f"results_{stamp}.json", told)
    damaged = tuple(sorted(p.name for p in path.iterdir()))

    def read(folder: Path) -> Any:
        found = read_results(folder, bundle)
        report = make_report(bundle, found)
        in_order([found, found])
        make_record(
            folder,
            bundle,
            folder.parent / "records",
            ME.model_copy(update={"method": "x", "trained": True}),
        )
        files.dumps(report.summary)
        return render.report_markdown([report]), render.facts_markdown([report], "lost")

    return Specimen("results", path, damaged, read)


def _facts(path: Path) -> list[Specimen]:
    rows = [
        {"question": f"In which country is {name}?", "answers": [f"{name[:3]}land", "Northland"],
         "relation": "P17", "subject": name, "aliases": ["The North"], "split": "train",
         "popularity": 5, "other": 1.5}
        for name in ("Aberdeen", "Bordeaux", "Catania")
    ]  # fmt: skip
    path.mkdir()
    head = ["question", "answers", "relation", "subject", "aliases", "split", "popularity"]
    cells = [
        [str(row[key]) if not isinstance(row[key], list) else row[key][0] for key in head]
        for row in rows
    ]
    contents = {
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "json": json.dumps(rows),
        "csv": "\n".join(map(",".join, [head, *cells])),
        "tsv": "\n".join(map("\t".join, [head, *cells])),
    }
    made = []
    for kind, text in contents.items():
        for packed in (False, True):
            name = f"facts.{kind}{'.gz' * packed}"
            folder = path / name
            folder.mkdir()
            content = text.encode()
            (folder / name).write_bytes(gzip.compress(content, mtime=0) if packed else content)

            def read(folder: Path, name: str = name) -> Any:
                return load_facts(str(folder / name))

            made.append(Specimen(name, folder, (name,), read))
    return made


def _exposures(path: Path) -> Specimen:
    facts = [fact for fact in world(facts_per_relation=3) if fact.relation == "country"]
    files.write_jsonl(path / "exposures.jsonl", [{"id": f.id, "exposures": 3} for f in facts])
    return Specimen("exposures", path, ("exposures.jsonl",), _pretrains("exposures.jsonl", None))


def _pretrains(exposures: str | None, recipe: str | None) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        facts = [fact for fact in world(facts_per_relation=3) if fact.relation == "country"]
        return lab.read_recipe(
            facts,
            folder / recipe if recipe else lab.ALMANAC_RECIPE,
            folder / exposures if exposures else None,
        )

    return read


def _pretrain(path: Path) -> Specimen:
    path.mkdir()
    shutil.copy(lab.ALMANAC_RECIPE, path / "recipe.yaml")
    return Specimen("pretrain", path, ("recipe.yaml",), _pretrains(None, "recipe.yaml"))


def _protocol(path: Path) -> Specimen:
    path.mkdir()
    told = load_protocol("almanac-v1").model_dump(mode="json")
    told |= {"name": "mine", "settings": {"self_distillation": [{"tau": 1.0}], "sft": [{}]}}
    (path / "mine.yaml").write_text(yaml.safe_dump(told))

    def read(folder: Path) -> Any:
        return load_protocol(str(folder / "mine.yaml"))

    return Specimen("protocol", path, ("mine.yaml",), read)


def _sweep(path: Path, bundle: Bundle) -> Specimen:
    path.mkdir()
    told = {
        "bundle": str(bundle.path), "protocol": "almanac-v1", "learning_rates": [1e-4, 1e-3],
        "strengths": [1.0], "seeds": [0, 1], "choosing_seeds": [0],
        "arms": [{"name": "sd", "method": "self_distillation", "settings": {"tau": 1.0}},
                 {"name": "fr", "method": "freeze", "settings": {"trainable": ["attention"]}}],
    }  # fmt: skip
    (path / "sweep.yaml").write_text(yaml.safe_dump(told))

    def read(folder: Path) -> Any:
        sweep = parse(Sweep, load_yaml(folder / "sweep.yaml"), "sweep.yaml")
        return len(sweep_runs(sweep, bundle, folder))

    return Specimen("sweep", path, ("sweep.yaml",), read)


def _aliases(path: Path) -> Specimen:
    files.write_json(path / "aliases.json", {"P17": [["US", "USA"]], "*": [["a", "b"]]})
    return Specimen("aliases", path, ("aliases.json",), lambda f: read_aliases(f / "aliases.json"))


def _leaderboard(path: Path, bundle: Bundle) -> Specimen:
    where = make_official(bundle, path, "v1").relative_to(path)
    damaged = (where.as_posix(), where.with_name("reference.json").as_posix())

    def read(folder: Path) -> Any:
        return official(folder), _try(lambda: make_official(bundle, folder, "v1"))

    return Specimen("official", path, damaged, read)


def _checkpoint(path: Path) -> Specimen:
    embedded = checkpoint.embedded("base")
    config = files.read_json(embedded / "config.json", ours=False)
    files.write_json(
        path / "config.json",
        config | {"repetition_penalty": 1.1, "text_config": {"hidden_size": 8}},
    )
    files.write_json(path / "generation_config.json", {"eos_token_id": [1, 2], "num_beams": 2})
    files.write_json(
        path / "model.safetensors.index.json", {"weight_map": {"w": "model.safetensors"}}
    )
    files.write_json(path / "trainer_state.json", {"global_step": 5})
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1234")
    damaged = (
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "model.safetensors",
    )

    def read(folder: Path) -> Any:
        base = checkpoint.identity(str(folder))
        return (
            checkpoint.end_tokens_told(folder),
            files.dumps(checkpoint.shape(folder)),
            base["decoding_ignored"],
        )

    return Specimen("checkpoint", path, damaged, read)


def _adapter(path: Path) -> Specimen:
    files.write_json(
        path / "adapter_config.json",
        {"base_model_name_or_path": "almanac", "r": 4, "revision": None},
    )
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (path / "adapter_model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + b"1234"
    )
    return Specimen("adapter", path, ("adapter_config.json",), _merge)


def _merge(folder: Path) -> Any:
    real, merging._merge = merging._merge, lambda *_: None
    try:
        return str(merging.merge_adapter({"pretrained": str(folder)}, folder / "merged"))
    finally:
        merging._merge = real
