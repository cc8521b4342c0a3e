"""Training: config, objectives, the one order of set-up, the loop, checkpoints, preflight and proof.

`budwood.train` is this package and, called, its main verb: `budwood.train("demo-lm", "faq.jsonl")` is
`budwood.train.run.train`, whatever was imported before. Importing this package imports nothing heavy.
"""

from budwood.calling import make_callable

VERB = "run.train"
make_callable(__name__)
