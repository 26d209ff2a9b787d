"""The option --runtime of the commands that run a packed model."""

from __future__ import annotations

import argparse

RUNTIMES = ("onnxruntime", "openvino")


def add(command: argparse.ArgumentParser) -> None:
    """What computes the answers; they are the same."""
    command.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="onnxruntime",
        help="what computes the answers, which are the same: openvino is often faster once it runs, and takes longer "
        "to start (default: %(default)s)",
    )
