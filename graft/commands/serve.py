"""graft serve: packed models behind HTTP, with a page to try them."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from graft.commands import runtimes


def add(commands: Any) -> None:
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
    runtimes.add(serve)
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
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
            runtime=options.runtime,
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
