"""Put a running server under load, store the records, and print latencies, goodput, failures and how busy it was.

Usage: python -m benchmarks.serve_load http://127.0.0.1:8000 --out results/NAME [--rate R | --share 0.8] [--seconds 300]

Requests come as a Poisson process at R per second, or at a share of what the server's workers can do, as three edits
beforehand say. `kontext report` and `kontext cost` read the records. Exit code 0: done; 2: no server that answers.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from kontext_fast.analysis.served_load import load_summary
from kontext_fast.bench.served_load import LoadPlan, run_load, service_seconds
from kontext_fast.errors import KontextError
from kontext_fast.records.store import ResultStore


def main() -> int:
    """Load, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, help="requests per second")
    parser.add_argument("--share", type=float, default=0.8, help="of the capacity, where no rate is named")
    parser.add_argument("--workers", type=int, default=1, help="that share the load, for --share")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--deadline", type=float, default=60.0)
    parser.add_argument("--leaving", type=float, default=0.0, help="share of clients that leave early")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--preset")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except KontextError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _run(arguments: argparse.Namespace) -> int:
    plan = LoadPlan(
        rate_per_s=arguments.rate or 1.0,
        seconds=arguments.seconds,
        deadline_s=arguments.deadline,
        leaving_share=arguments.leaving,
        steps=arguments.steps,
        preset=arguments.preset,
        seed=arguments.seed,
    )
    if arguments.rate is None:
        alone = asyncio.run(service_seconds(arguments.url, plan))
        rate = arguments.share * arguments.workers / alone
        print(f"An edit takes {alone:.3f} s alone; requests come at {rate:.3f} per second.")
        plan = LoadPlan(**{**vars(plan), "rate_per_s": rate})
    result = asyncio.run(run_load(arguments.url, plan))
    ResultStore(arguments.out).write(result)
    (record,) = result.records
    assert record.load_test is not None
    print("\n".join(load_summary(record.load_test).lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
