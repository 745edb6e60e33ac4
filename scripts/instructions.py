#!/usr/bin/env python3
"""Counts the instructions that the relay spends on a transaction, and holds them against benches/instructions.budget.

callgrind counts what `benches/instructions.rs` executes, on any machine and however busy it is. Only our own code counts, not
libc, which takes other paths on other processors; and the difference between two runs, so that start-up is not in it. A
toolchain other than the budget's makes other code: then the figures are shown and nothing is enforced.

    scripts/instructions.py             # fails if a case costs more than 2% above its budget
    scripts/instructions.py --update    # writes what it counted into the budget; say in the commit why it went up
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUDGET = ROOT / "benches/instructions.budget"
CASES = ["simple", "extended", "prepared", "rows"]
FEW, MANY = 200, 1200
TOLERANCE = 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true")
    arguments = parser.parse_args()
    program = build()
    counted = {case: (count(program, case, MANY) - count(program, case, FEW)) / (MANY - FEW) for case in CASES}
    toolchain = subprocess.check_output(["rustc", "--version"], text=True, cwd=ROOT).strip()
    if arguments.update:
        write(toolchain, counted)
    budget = read()
    enforced = budget.get("toolchain") == toolchain
    if not enforced:
        print(f"the budget was made with {budget.get('toolchain')}, this is {toolchain}: nothing is enforced")
    over = []
    for case, instructions in counted.items():
        allowed = float(budget.get(case, 0))
        change = instructions / allowed - 1 if allowed else 0.0
        print(f"{case:10} {instructions:10.1f} instructions per transaction, budget {allowed:10.1f}: {change:+.1%}")
        over += [case] if change > TOLERANCE else []
    if over and enforced:
        sys.exit(f"over budget: {', '.join(over)}. Make it cheaper, or run with --update and say in the commit what it buys")


def build():
    """Path of the benchmark, optimised like a release but for the whole-program step, which takes minutes."""
    command = ["cargo", "build", "--locked", "--profile", "counted", "--bench", "instructions", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        built = json.loads(line)
        if built.get("executable") and built["target"]["name"] == "instructions":
            return pathlib.Path(built["executable"])
    sys.exit("cargo built no benchmark")


def count(program, case, transactions):
    with tempfile.NamedTemporaryFile(prefix="callgrind.") as out:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out.name}", program, case, str(transactions)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"callgrind failed: {done.stderr[-2000:]}")
        return own(out.name, program)


def own(path, program):
    """Instructions executed in the program itself (callgrind's format: "Callgrind Format Specification")."""
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
                if not is_call and current == str(program):
                    total += int(line.split()[1])
                is_call = False
    return total


def read():
    lines = BUDGET.read_text().splitlines() if BUDGET.exists() else []
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def write(toolchain, counted):
    text = "Instructions per relayed transaction; scripts/instructions.py reads and writes this.\n\n"
    text += f"toolchain = {toolchain}\n"
    text += "".join(f"{case} = {instructions:.1f}\n" for case, instructions in counted.items())
    BUDGET.write_text(text)


if __name__ == "__main__":
    main()
