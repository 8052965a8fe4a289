"""The command line: ``python -m reference.builds [--only NAME …]``, a table of releases and ops."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from qmath.kernels.builds import Build
from reference.builds import recognising
from reference.builds.inputs import OPS, Case, cases
from reference.builds.running import SUMS, Outputs, Tally, compared, of_release
from reference.builds.wheels import RELEASES, MissingError, cache
from reference.jit import Call, answers

COLUMNS = (*OPS, SUMS)
XLA: dict[Build, bool] = {"xla-cpu": True, "xla-cpu-nofma": False}


def of_xla(cases: Sequence[Case], *, fma: bool) -> tuple[str, Outputs]:
    """Return what the installed TensorFlow's XLA gives."""
    calls = []
    for case in cases:
        ends = (float(case.min), float(case.max)) if case.op.startswith("args") else ()
        name = "fake_quant_with_min_max_" + case.op.replace("per_channel", "vars_per_channel")
        name = name.replace(" ", "_")
        calls.append(Call(name, case.inputs, case.num_bits, case.narrow_range, ends))
    return "installed", answers(calls, fma=fma)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit status: 1 if anything differs."""
    parser = argparse.ArgumentParser(
        prog="python -m reference.builds",
        description="Fetch other builds of TensorFlow, and compare their kernels with qmath's.",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="releases, or builds of XLA")
    parser.add_argument("--cases", type=int, default=40, help="ranges of each op; default: 40")
    parser.add_argument("--size", type=int, default=1 << 18, help="floats of each; default: 2**18")
    parser.add_argument(
        "--recognise", type=int, metavar="N", help="recognise N random arrays instead"
    )
    options = parser.parse_args(arguments)
    if options.recognise:
        return _recognise(options.recognise)
    sources: dict[str, tuple[Build, Callable[[Sequence[Case]], tuple[str, Outputs]]]] = {
        release.name: (release.build, lambda made, release=release: of_release(release, made))
        for release in RELEASES
    }
    for build, fma in XLA.items():
        sources[build] = (build, lambda made, fma=fma: of_xla(made, fma=fma))
    made = list(cases(options.cases, options.size))
    differing = 0
    print(f"| release | build | {' | '.join(COLUMNS)} |\n|---|---|{'---:|' * len(COLUMNS)}")
    for name, (build, run) in sources.items():
        if options.only and not any(fnmatchcase(name, pattern) for pattern in options.only):
            continue
        kept = _kept(name, options)
        try:
            tally = _read(kept) or compared(made, run(made)[1], build)
        except MissingError as reason:
            print(f"| {name} | `{build}` | skipped: {reason} |", flush=True)
            continue
        kept.write_text(json.dumps(tally), "utf-8")
        cells = [
            f"{tally[op]['differing']:,} of {tally[op]['compared']:,}" if op in tally else "refused"
            for op in COLUMNS
        ]
        print(f"| {name} | `{build}` | {' | '.join(cells)} |", flush=True)
        differing += sum(count["differing"] for count in tally.values())
    return int(differing > 0)


def _recognise(number: int) -> int:
    """Print the matrix of what arrays are taken for; return 1 if any is taken for a wrong one."""
    old, _, new, _ = RELEASES
    makers: recognising.Makers = {
        "tf": lambda made: of_release(new, made)[1],
        "tf<2.6": lambda made: of_release(old, made)[1],
        "xla-cpu": lambda made: of_xla(made, fma=True)[1],
        "xla-cpu-nofma": lambda made: of_xla(made, fma=False)[1],
    }
    wrong = 0
    for with_inputs in (True, False):
        found = recognising.matrix(makers, number, with_inputs=with_inputs)
        print("with inputs:" if with_inputs else "outputs alone:")
        print("\n".join(recognising.table(found)), flush=True)
        for build, counts in found.items():
            wrong += sum(n for name, n in counts.items() if build not in name.split("; "))
    return int(wrong > 0)


def _kept(name: str, options: argparse.Namespace) -> Path:
    """Return where the tally of a run like this is, from which a stopped one goes on."""
    root = Path(__file__).parents[2]
    sources = [
        *sorted(Path(__file__).parent.glob("*.py")),
        *sorted(root.glob("qmath/kernels/*.py")),
    ]
    state = [name, str(options.cases), str(options.size), *map(Path.read_text, sources)]
    return cache() / f"tally-{hashlib.sha256(''.join(state).encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> Tally | None:
    if not path.exists():
        return None
    found = Tally()
    for op, counts in json.loads(path.read_text("utf-8")).items():
        found[op] = Counter(counts)
    return found


if __name__ == "__main__":
    sys.exit(main())
