"""graft doctor: versions, devices, what is available offline, cache sizes."""

from __future__ import annotations

import argparse
from typing import Any

from graft.commands.lines import as_json


def add(commands: Any) -> None:
    doctor = commands.add_parser("doctor", help="versions, devices, what is available offline, cache sizes")
    doctor.add_argument("--weights", metavar="DIR", help="a weights folder to look into")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from graft import console

    facts = console.doctor_facts(options.weights)
    if options.json:
        print(as_json(facts))
    else:
        console.show_doctor(facts)
    return 0
