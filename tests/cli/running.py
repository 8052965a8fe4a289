"""Run the command line in this process."""

from click.testing import CliRunner

from qmath.cli.app import app


def runner() -> CliRunner:
    try:
        return CliRunner(mix_stderr=False)  # until click 8.2, the two streams were one
    except TypeError:
        return CliRunner()


def run(*args: object):
    return runner().invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def fails(*args: object) -> str:
    """Run what must fail; return its one line."""
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("qmath: error: ")
    return lines[0]
