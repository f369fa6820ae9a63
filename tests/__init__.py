"""The tests; a run of all of them is spread over processes."""


def load_tests(loader, tests, pattern):
    from tests import side_by_side  # not above: it is also run as a program
    return side_by_side.load(loader, pattern)
