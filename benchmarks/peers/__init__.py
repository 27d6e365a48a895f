"""One script per queue, each run in its own process: `python peers/NAME.py VERB [argument]…`.

Verbs are the same for all: `install` makes the tables, `fill` enqueues jobs in bulk, `drain` works
until nothing is left, `serve` works until SIGTERM, `send` enqueues stamped jobs one by one.
"""
