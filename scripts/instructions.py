#!/usr/bin/env python3
"""Counts the instructions that a transaction takes, and holds them against benches/instructions.budget.

callgrind counts what `benches/instructions.rs` executes, on any machine and however busy it is. Only our own code counts, not
the C library, which takes other paths on other processors; and the difference between two runs, so that their beginning is
not in it. A toolchain other than the budget's makes other code: then the budget is not enforced. That a transaction takes no more
on many shards than on one always is.

    scripts/test.sh instructions    # fails if a case takes more than 2% above its budget
    scripts/instructions.py target/release/examples/instructions --update
                                    # writes what it counted into the budget; say in the commit why it went up
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET = ROOT / "benches/instructions.budget"
RELAY = ["simple", "extended", "prepared", "rows"]
POOL = ["idle", "line", "lines", "mixed"]
# Those in which no server changes shards.
STEADY = ["idle", "line", "lines"]
SHARDS = [1, 2, 8, 32]
CASES = RELAY + [f"{case} {shards}" for case in POOL for shards in SHARDS]
# Multiples of the servers of 32 shards: every shard has its turn equally often.
FEW, MANY = 640, 3200
TOLERANCE = 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path, help="benches/instructions.rs, built: cargo build --release --bins --example instructions")
    parser.add_argument("--update", action="store_true", help="write what is counted into the budget")
    arguments = parser.parse_args()
    program = str(arguments.program.resolve())
    counted = {case: (count(program, case, MANY) - count(program, case, FEW)) / (MANY - FEW) for case in CASES}
    toolchain = subprocess.check_output(["rustc", "--version"], text=True, cwd=ROOT).strip()
    if arguments.update:
        write(toolchain, counted)
    compare(counted, read(), toolchain)
    compare_shards(counted)


def compare(counted, budget, toolchain):
    over = []
    for case, instructions in counted.items():
        allowed = float(budget.get(case, 0))
        print(f"{case:10} {instructions:10.1f} instructions per transaction, budget {allowed:10.1f}")
        over += [case] if instructions > allowed * (1 + TOLERANCE) else []
    if budget.get("toolchain") != toolchain:
        print(f"the budget is not enforced: it was made with {budget.get('toolchain')}, this is {toolchain}")
    elif over:
        sys.exit(
            f"more than {TOLERANCE:.0%} over budget: {', '.join(over)}. Make it cheaper, or write a new budget (--update) and say "
            "in the commit why it takes more"
        )


def compare_shards(counted):
    few, many = SHARDS[0], SHARDS[-1]
    grown = [case for case in STEADY if counted[f"{case} {many}"] > counted[f"{case} {few}"] * (1 + TOLERANCE)]
    if grown:
        sys.exit(f"a transaction takes more on {many} shards than on {few}: {', '.join(grown)}")


def count(program, case, transactions):
    with tempfile.NamedTemporaryFile(prefix="callgrind.") as out:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", program, *case.split(), str(transactions)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"callgrind failed: {done.stderr[-2000:]}")
        return own(out.name, program) or sys.exit(f"callgrind counted nothing in {program}")


def own(path, program):
    """Instructions executed in the program itself (valgrind manual, "Callgrind Format Specification")."""
    names, current, total, is_call = {}, None, 0, False
    with open(path) as lines:
        for line in lines:
            key, _, value = line.strip().partition("=")
            if key in ("ob", "cob"):
                number, _, name = value.partition(" ")
                names.setdefault(number, name)
                current = names[number] if key == "ob" else current
            elif key == "calls":
                # The next line has what the callee cost, which its own lines have as well.
                is_call = True
            elif line[:1].isdigit() or line[:1] in "+-*":
                if not is_call and current == program:
                    total += int(line.split()[1])
                is_call = False
    return total


def read():
    lines = BUDGET.read_text().splitlines() if BUDGET.exists() else []
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def write(toolchain, counted):
    text = "Instructions per transaction; scripts/instructions.py reads and writes this.\n\n"
    text += f"toolchain = {toolchain}\n"
    text += "".join(f"{case} = {instructions:.1f}\n" for case, instructions in counted.items())
    BUDGET.write_text(text)


if __name__ == "__main__":
    main()
