"""Commands of `python -m experiments`: each file has `add`, its parser, and what it runs."""
