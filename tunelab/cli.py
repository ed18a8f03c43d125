"""The command line: loads the command that is asked for; errors become one line and an exit status here alone.

A command reads options, calls one function, prints. Its module in `tunelab.commands` is imported when it is run or its
help is shown, and imports what is slow only when it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping

import click

from tunelab.credentials import hide
from tunelab.errors import TunelabError, UnfitError
from tunelab.shared_options import CommandLine

_HOMES = {
    "ablate": "ablating.ablate",
    "best": "ranking.best",
    "compare": "deciding.compare",
    "dashboard": "serving.dashboard",
    "describe": "describing.describe",
    "diagnose": "diagnosing.diagnose",
    "doctor": "checking.doctor",
    "export": "using.export",
    "extend": "searching.extend",
    "importance": "deciding.importance",
    "list": "looking.list_command",
    "new-space": "describing.new_space",
    "predict": "using.predict",
    "profile": "measuring.profile",
    "report": "reporting.report",
    "reproduce": "repeating.reproduce",
    "resume": "searching.resume",
    "search": "searching.search",
    "show": "looking.show",
    "spaces": "looking.spaces",
    "trust": "describing.trust",
}
"""Where each command is: its module in `tunelab.commands`, and its function there."""


class _Commands(Mapping[str, click.Command]):
    """The commands by name, each imported when it is looked up."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, function = _HOMES[name].partition(".")
        command: click.Command = getattr(importlib.import_module(f"tunelab.commands.{module}"), function)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_HOMES)

    def __len__(self) -> int:
        return len(_HOMES)


def main() -> None:
    """The console script: runs a command and leaves with its exit status.

    0 done; 1 the work failed; 2 the input was wrong; 3 stopped before the end and can be resumed; 130 interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text, and terminals lack letters
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit status."""
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"]
    try:
        with _stoppable():
            called = CommandLine(tuple(arguments), run)
            left = tunelab.main(args=words, prog_name="tunelab", standalone_mode=False, obj=called)
            return left if isinstance(left, int) else 0  # click gives the status that a command leaves with
    except click.ClickException as error:
        return _complain(error.format_message(), 2, debug)
    except TunelabError as error:
        if isinstance(error, UnfitError):
            from tunelab.supervision import tell

            tell(again="the cluster was not fit")
        return _complain(str(error), error.exit_status, debug)
    except (KeyboardInterrupt, click.Abort) as error:
        told = error.__cause__ or error  # click makes Abort of what it catches
        if isinstance(told, _Stop):
            return _complain(f"stopped ({told})", 3, debug)
        return _complain("interrupted", 130, debug)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        return _complain(f"unexpected {type(error).__name__}: {error} (--debug shows where)", 1, debug)


class _Stop(KeyboardInterrupt):
    """A signal that asks the process to end has come; its name."""


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: it cleans up. The next signal ends the process at once.

    A signal that is ignored, as under nohup, stays ignored. A search, once its trials run, has ways of its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: object) -> None:
        for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)
        raise _Stop(signal.Signals(number).name)

    usual = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    interrupt = signal.getsignal(signal.SIGINT)
    for number in usual:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in usual:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, interrupt)


def _complain(message: str, status: int, debug: bool) -> int:
    if debug:
        click.echo(hide(traceback.format_exc()), err=True, nl=False)
    click.echo(f"tunelab: {' '.join(hide(message).split())}", err=True)
    return status


@click.group(
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=True,
)
@click.version_option(package_name="tunelab")
@click.option("--debug", is_flag=True, help="Show tracebacks (also after a command).")
@click.pass_context
def tunelab(context: click.Context, debug: bool) -> None:
    """Search network architectures and training recipes for small images, with numbers you can believe.

    \b
    tunelab search arch --trials 16          a search on scikit-learn's digits
    tunelab best                             its ranking
    tunelab best --retrain --epochs 150      the winner in full, tested once
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


if __name__ == "__main__":
    main()
