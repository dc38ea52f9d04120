"""How good flows are, not how fast: test nats of ours beside the libraries' on ten tables, `python -m bench.quality`.

A run (`runs.Run`) is one model trained on one split of one table from one seed at one learning rate, by the same loop
for all: Adam, best of validation, standardised data. All models of a family have as many weights as its first, as
near as the width of their networks allows. Seeds come in two kinds that are never mixed: whoever chooses a default
looks at tuning seeds, and believes it once fresh seeds say the same. Runs go to a file line by line as they end, and
a command that was stopped goes on where it was.
"""
