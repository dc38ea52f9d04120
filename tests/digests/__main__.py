"""`python -m tests.digests --write [group ...]`, or `--add`: writes digests; alone, says which differ."""

from __future__ import annotations

import sys

from . import store


def main(arguments: list[str]) -> int:
    groups = [a for a in arguments if not a.startswith("-")] or list(store.GROUPS)
    if "--print" in arguments:  # what `store.run` starts
        return store.print_digests(groups, "--kinds" in arguments)
    if "--write" in arguments or "--add" in arguments:
        for group in groups:
            print(store.write(group, only_new="--write" not in arguments), flush=True)
        return 0
    reasons = {group: store.why_not(group) for group in groups}
    for group, reason in reasons.items():
        print(f"{group}: {reason}\n" if reason else "", end="")
    outcomes = store.compare([group for group, reason in reasons.items() if reason is None])
    for group, outcome in outcomes.items():
        print(f"{group}: {outcome.compared} compared, {outcome.left_out} left out, {len(outcome.wrong)} wrong")
        print("".join(f"  {line}\n" for line in outcome.wrong), end="")
    return int(any(outcome.wrong for outcome in outcomes.values()))


sys.exit(main(sys.argv[1:]))
