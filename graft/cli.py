"""The command line: parse, call one function, print.

Nothing heavy is imported before it is needed: `graft --help` costs no numpy, `graft predict` no torch. A GraftError is
printed as its sentence, without a traceback, and the exit code is 2.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from graft.errors import DatasetError, GraftError
from graft.version import VERSION

EXAMPLES = """examples:
  graft study photos/                          measure, choose, report and pack
  graft study photos/ --budget 5m --weights weights/ --max-size 5MB
  graft predict runs/photos/model.graft a.jpg some/folder/ --csv
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for an error with a sentence, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    options.typed = shlex.join(["graft", *given])
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except GraftError as error:
        print(f"graft: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            return 141
        print(f"graft: {error.filename or 'A file'}: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("graft: stopped; the same command continues where it was.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graft",
        description="Measures whether to transfer or to train from scratch, and hands over the smallest image "
        "classifier you can trust.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"graft {VERSION}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_study(commands)
    _add_demo(commands)
    _add_check(commands)
    _add_models(commands)
    _add_pretrain(commands)
    _add_predict(commands)
    _add_serve(commands)
    _add_evaluate(commands)
    _add_index(commands)
    _add_similar(commands)
    _add_report(commands)
    doctor = commands.add_parser("doctor", help="versions, devices, what is available offline, cache sizes")
    doctor.add_argument("--weights", metavar="DIR", help="a weights folder to look into")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_study(commands: Any) -> None:
    study = commands.add_parser(
        "study", help="the main job: labelled photos in; a choice, a report and a bundle out"
    )
    study.add_argument(
        "source", help="a folder <class>/..., a folder with train|val|test above it, a CSV or Parquet file"
    )
    study.set_defaults(run=_study)
    _study_options(study, out="runs/<name of the source>", budget="10m")


def _study_options(study: Any, *, out: str, budget: str) -> None:
    study.add_argument("--out", metavar="DIR", help=f"the run folder (default: {out})")
    study.add_argument(
        "--budget", default=budget, help="time to spend, such as 90s, 5m, 2h (default: %(default)s)"
    )
    study.add_argument("--weights", metavar="DIR", help="a folder with weights.json (or GRAFT_WEIGHTS)")
    study.add_argument(
        "--backbones", default="auto", metavar="NAMES", help="auto, or names separated by commas"
    )
    study.add_argument("--folds", type=int, default=5, help="folds of the cross-validation (default: 5)")
    study.add_argument(
        "--metric",
        default="macro_f1",
        help="what decides: macro_f1, accuracy, log_loss, ... (default: macro_f1)",
    )
    study.add_argument("--max-size", metavar="SIZE", help="limit of the packed model, such as 5MB")
    study.add_argument(
        "--max-latency", metavar="TIME", help="limit for one image on one thread, such as 10ms"
    )
    study.add_argument("--only", metavar="WHAT", help="frozen, finetuned or scratch")
    study.add_argument(
        "--fit", default="auto", help="how images become square: auto (measured), crop, squash, pad"
    )
    study.add_argument(
        "--groups",
        default="near",
        help="what stays on one side of a split: near (duplicates) or series (all views of one subject)",
    )
    study.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    study.add_argument("--seed", type=int, default=0, help="of folds and training (default: 0)")
    study.add_argument("--overwrite", action="store_true", help="replace another study in --out")
    study.add_argument(
        "--json", action="store_true", help="print the result as JSON, progress on standard error"
    )


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="make a set of surface-inspection images and run the study on it")
    demo.add_argument("--folder", default="demo/surfaces", help="where the images go (default: %(default)s)")
    demo.set_defaults(run=_demo)
    _study_options(demo, out="runs/surfaces", budget="4m")


def _add_check(commands: Any) -> None:
    check = commands.add_parser("check", help="only look at the images: what is there, what is wrong")
    check.add_argument("source", help="a folder, a CSV or a Parquet file")
    check.add_argument("--out", metavar="FILE", help="write the list of issues as CSV")
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(run=_check)


def _add_models(commands: Any) -> None:
    models = commands.add_parser("models", help="the catalogue of backbones, and where their weights are now")
    models.add_argument("--weights", metavar="DIR", help="a folder with weights.json (or GRAFT_WEIGHTS)")
    models.add_argument("--sort", default="name", help="name, size, gmacs or top1 (default: name)")
    models.add_argument("--max-params", metavar="N", help="at most so many parameters, such as 5M")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=_models)


def _add_pretrain(commands: Any) -> None:
    pretrain = commands.add_parser(
        "pretrain", help="make a backbone of your own: from labelled images, or taught by a larger network"
    )
    add = pretrain.add_argument
    add("source", help="a folder of images (classes, nested or flat) or Parquet files with image bytes")
    add("--out", metavar="DIR", required=True, help="the weights folder to write to; others in it are kept")
    add("--name", help="what the weights are called (default: from the student and the source)")
    add("--teacher", metavar="NAME", help="distil from this network instead of learning from labels")
    add("--weights", metavar="DIR", help="a folder with the teacher's weights (or GRAFT_WEIGHTS)")
    add("--student", default="small", help="small, tiny or an architecture of timm (default: small)")
    add("--size", type=int, default=96, help="side of the input in pixels (default: 96)")
    add("--input-size", type=int, help="side of the input of the result (default: a third larger)")
    add("--epochs", type=int, help="passes over the source (default: 60, or as the budget allows)")
    add("--batch-size", type=int, default=128, help="images in a step (default: 128)")
    add("--budget", metavar="TIME", help="time to spend, such as 20m or 2h")
    add("--lr", type=float, default=1e-3, help="the highest learning rate (default: 0.001)")
    add("--init", default="auto", help="auto, random or teacher: how the student begins (default: auto)")
    add("--made", type=float, default=0.0, help="share of images that Graft makes itself (default: 0)")
    add("--hint", type=float, default=1.0, help="weight of the teacher's earlier taps (default: 1)")
    add("--target-space", default="8GB", help="disk for the teacher's kept answers (default: 8GB)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--seed", type=int, default=0, help="of the first weights and of all views (default: 0)")
    add("--resume", action="store_true", help="go on with an unfinished training")
    add("--overwrite", action="store_true", help="start over, and replace weights of this name")
    pretrain.set_defaults(run=_pretrain)


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="classify images with a packed model")
    predict.add_argument("bundle", help="a folder model.graft")
    predict.add_argument("images", nargs="+", help="image files or folders")
    predict.add_argument("--topk", type=int, default=1, help="how many classes to show (default: 1)")
    form = predict.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object per line")
    form.add_argument("--csv", action="store_true", help="CSV with all probabilities")
    predict.set_defaults(run=_predict)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser("serve", help="put packed models behind HTTP, with a page to try them")
    serve.add_argument(
        "bundles",
        nargs="+",
        metavar="bundle",
        help="folders model.graft, or NAME=FOLDER; the first is the default",
    )
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine only)")
    serve.add_argument("--port", type=int, default=8000, help="0 takes any free one (default: %(default)s)")
    serve.add_argument("--api-key-file", metavar="FILE", help="ask for one of these keys, one per line")
    serve.add_argument("--workers", type=int, default=1, help="processes that answer (default: 1)")
    serve.add_argument("--index", metavar="DIR", help="an index made by `graft index`, for similar images")
    serve.set_defaults(run=_serve)


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="how good a packed model is on labelled images")
    evaluate.add_argument("bundle", help="a folder model.graft")
    evaluate.add_argument("source", help="a folder <class>/..., a CSV or Parquet file")
    evaluate.add_argument("--csv", metavar="FILE", help="write every image's answer as CSV")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_evaluate)


def _add_index(commands: Any) -> None:
    index = commands.add_parser("index", help="make a folder of images searchable for similar ones")
    index.add_argument("bundle", help="a folder model.graft")
    index.add_argument("source", help="a folder of images, a CSV or Parquet file")
    index.add_argument("--out", metavar="DIR", required=True, help="the index; one that is there is updated")
    index.add_argument("--overwrite", action="store_true", help="replace an index of another model or folder")
    index.add_argument("--rebuild", action="store_true", help="embed all images anew")
    index.set_defaults(run=_index)


def _add_similar(commands: Any) -> None:
    similar = commands.add_parser("similar", help="the images of an index that look most like this one")
    similar.add_argument("index", help="a folder that `graft index` made")
    similar.add_argument("images", nargs="*", help="image files or folders to search for")
    similar.add_argument("--topk", type=int, default=10, help="how many to list for each (default: 10)")
    similar.add_argument("--duplicates", action="store_true", help="list groups of near-duplicates instead")
    similar.add_argument(
        "--threshold",
        type=float,
        metavar="S",
        help="similarity of duplicates, up to 1 (default: by the index)",
    )
    similar.add_argument("--model", metavar="DIR", help="the model.graft of the index, if it was moved")
    similar.add_argument("--json", action="store_true", help="one JSON object per line")
    similar.set_defaults(run=_similar)


def _add_report(commands: Any) -> None:
    report = commands.add_parser("report", help="render the report of a study again")
    report.add_argument("run_folder", help="a run folder")
    report.add_argument(
        "--out", metavar="FILE", help="where to write it (default: report.html in the run folder)"
    )
    report.set_defaults(run=_report)


def _study(options: argparse.Namespace) -> int:
    from graft import console
    from graft.api import running
    from graft.studies.settings import resolved

    settings = resolved(
        options.source,
        out=options.out,
        budget=options.budget,
        weights=options.weights,
        backbones=options.backbones,
        folds=options.folds,
        metric=options.metric,
        max_size=options.max_size,
        max_latency=options.max_latency,
        only=options.only,
        fit=options.fit,
        groups=options.groups,
        device=options.device,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    result = console.follow(running(settings, command=options.typed), to_stderr=options.json)
    if options.json:
        print(json.dumps(result.facts, ensure_ascii=False))
    else:
        console.show_result(result)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from graft import console
    from graft.images.demo import write

    folder = Path(options.folder)
    console.count(write(folder), "making demo images", to_stderr=options.json)
    options.source = str(folder)
    options.out = options.out or "runs/surfaces"
    return _study(options)


def _check(options: argparse.Namespace) -> int:
    from graft import console
    from graft.api import check
    from graft.images.issues import write_check

    dataset = check(options.source)
    if options.out:
        write_check(dataset, Path(options.out))
    if options.json:
        print(json.dumps(console.dataset_facts(dataset), ensure_ascii=False))
    else:
        console.show_dataset(dataset)
    return 0


def _models(options: argparse.Namespace) -> int:
    from graft import console
    from graft.backbones.catalogue import rows
    from graft.backbones.hub import reach_hub
    from graft.backbones.weights import folder_from, held, locate

    folder = folder_from(options.weights)
    here = held(folder)
    names = {entry.name for entry in here}
    entries = [*here, *(row for row in rows() if row.name not in names)]
    listed = console.model_rows(
        entries,
        locate(entries, folder=folder, reach=reach_hub()),
        sort=options.sort,
        most=console.parameter_count(options.max_params) if options.max_params else None,
    )
    if options.json:
        print(json.dumps(listed, ensure_ascii=False))
    else:
        console.show_models(listed)
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from graft import console
    from graft.pretraining.settings import resolved_pretraining

    settings = resolved_pretraining(
        options.source,
        out=options.out,
        name=options.name,
        student=options.student,
        teacher=options.teacher,
        weights=options.weights,
        size=options.size,
        input_size=options.input_size,
        epochs=options.epochs,
        batch_size=options.batch_size,
        budget=options.budget,
        lr=options.lr,
        init=options.init,
        made=options.made,
        hint=options.hint,
        target_space=options.target_space,
        device=options.device,
        seed=options.seed,
        resume=options.resume,
        overwrite=options.overwrite,
    )
    from graft.pretraining.pretrain import pretraining

    published = console.follow_pretraining(pretraining(settings))
    print(f"weights: {published.weights}\ncard:    {published.card}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from graft.deploy.bundle import load

    if options.topk < 1:
        raise GraftError(f"--topk {options.topk}: choose a number from 1 up.")
    bundle = load(options.bundle)
    files = _image_files([Path(name) for name in options.images])
    failed = 0
    table = csv.writer(sys.stdout, lineterminator="\n") if options.csv else None
    if table:
        table.writerow(["file", "label", "probability", *bundle.labels])
    for file in files:
        try:
            answer = bundle.predict(file)
        except GraftError as error:
            print(f"graft: {error}", file=sys.stderr)
            failed += 1
            continue
        top = answer.top(options.topk)
        if table:
            row = [answer.probabilities[label] for label in bundle.labels]
            table.writerow([str(file), answer.label, f"{answer.probability:.6f}", *(f"{p:.6f}" for p in row)])
        elif options.json:
            print(
                json.dumps(
                    {"file": str(file), "label": answer.label, "probabilities": top}, ensure_ascii=False
                )
            )
        else:
            print(f"{file}: " + ", ".join(f"{label} {100 * share:.1f} %" for label, share in top.items()))
    if failed:
        print(f"graft: {failed} of {len(files)} files could not be read and have no answer.", file=sys.stderr)
    return 2 if failed else 0


def _serve(options: argparse.Namespace) -> int:
    from graft.serving.process import Service
    from graft.serving.settings import resolved

    service = Service(
        resolved(
            options.bundles,
            host=options.host,
            port=options.port,
            api_key_file=options.api_key_file,
            workers=options.workers,
            index=options.index,
        )
    )
    print(f"serving at {service.url} (the page; /docs for programs). Ctrl-C ends it.", flush=True)
    if service.is_open_to_all:
        print(
            f"graft: whoever reaches {options.host} may use this service; --api-key-file asks for a key.",
            file=sys.stderr,
        )
    service.run()
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from graft import console
    from graft.deploy.bundle import load
    from graft.deploy.evaluate import evaluating, write_answers

    bundle = load(options.bundle, threads=1)
    evaluation = console.follow_steps(evaluating(bundle, options.source), to_stderr=options.json)
    if options.csv:
        write_answers(evaluation, Path(options.csv))
    if options.json:
        print(json.dumps(evaluation.facts, ensure_ascii=False))
    else:
        console.show_evaluation(evaluation)
    return 0


def _index(options: argparse.Namespace) -> int:
    from graft import console
    from graft.deploy.bundle import load
    from graft.similar.build import indexing

    steps = indexing(
        load(options.bundle, threads=1),
        options.source,
        out=options.out,
        overwrite=options.overwrite,
        rebuild=options.rebuild,
    )
    console.show_indexed(console.follow_steps(steps))
    return 0


def _similar(options: argparse.Namespace) -> int:
    from graft.similar.search import open_index

    if options.duplicates == bool(options.images):
        raise GraftError("graft similar wants either images to search for, or --duplicates.")
    index = open_index(options.index)
    if options.duplicates:
        return _duplicates(options, index)
    from graft.deploy.bundle import load
    from graft.similar.search import matching_bundle

    bundle = matching_bundle(index, load(options.model) if options.model else None)
    files = _image_files([Path(name) for name in options.images])
    failed = 0
    for file in files:
        try:
            matches = index.search(bundle.embed(file), options.topk)[0]
        except DatasetError as error:
            print(f"graft: {error}", file=sys.stderr)
            failed += 1
            continue
        if options.json:
            found = [{"name": match.name, "similarity": match.similarity} for match in matches]
            print(json.dumps({"file": str(file), "similar": found}))
            continue
        print(f"{file}:")
        for match in matches:
            print(f"  {match.similarity:6.3f}  {_shown(index.root / match.name)}")
    if failed:
        print(f"graft: {failed} of {len(files)} files could not be read and have no answer.", file=sys.stderr)
    return 2 if failed else 0


def _duplicates(options: argparse.Namespace, index: Any) -> int:
    from graft.similar.duplicates import groups, usual_threshold

    threshold = usual_threshold(index) if options.threshold is None else options.threshold
    found = groups(index, threshold=threshold)
    if options.json:
        for group in found:
            print(json.dumps({"similarity": group.least, "names": list(group.names)}))
        return 0
    for number, group in enumerate(found, start=1):
        print(f"group {number}: {len(group.names)} images, similarity {group.least:.3f} or more")
        for name in group.names:
            print(f"  {_shown(index.root / name)}")
    images = sum(len(group.names) for group in found)
    print(
        f"{len(found)} groups with {images} of {len(index)} images, by a similarity from {threshold:.4g} up"
    )
    return 0


def _shown(path: Path) -> str:
    """A path for the screen; bytes in its name that are no text are shown as question marks."""
    return str(path).encode("utf-8", errors="replace").decode("utf-8")


def _image_files(paths: Sequence[Path]) -> list[Path]:
    """The named files, and the images in the named folders and below them, sorted."""
    from graft.images.folders import IMAGE_SUFFIXES, walk

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = [file for file in walk(path).all_files() if file.suffix.lower() in IMAGE_SUFFIXES]
            if not found:
                raise GraftError(
                    f"{path} holds no image files; name a folder with images, or the files themselves."
                )
            files += sorted(found)
        elif path.exists():
            files.append(path)
        else:
            raise GraftError(f"{path} does not exist; check the path.")
    return files


def _report(options: argparse.Namespace) -> int:
    from graft.report.page import write

    place = write(Path(options.run_folder), Path(options.out) if options.out else None)
    print(f"report: {place}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from graft import console

    facts = console.doctor_facts(options.weights)
    if options.json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        console.show_doctor(facts)
    return 0


def run() -> None:
    """The command as a process. Everything is written and closed by now; taking torch and OpenVINO down in order
    would keep the user waiting for another 1.6 s (measured on 2 cores)."""
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 141
    os._exit(code)


if __name__ == "__main__":
    run()
