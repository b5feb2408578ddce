"""The manner that all commands keep: help, errors, exit statuses, output.

Every module of `durus.commands` uses it, and `durus.__main__` starts commands with `run`.  The
invariants:

    * Whatever goes wrong for a reason that is the user's to know is one line on stderr, unwrapped,
      which names the path (or the server) and the reason; no traceback.
    * What is meant for machines stands alone on stdout.
    * What comes out of a database, or out of a file name, cannot steer a terminal.
"""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar, get_args

import click

from durus.error import CorruptionError, DurusError
from durus.log_codec import Compression

__all__ = [
    "Command",
    "CommandError",
    "CommandGroup",
    "ExitStatus",
    "about",
    "compression_option",
    "counted",
    "echo",
    "echo_json",
    "file_argument",
    "json_option",
    "note",
    "printable",
    "run",
    "source_argument",
    "target_argument",
    "with_options",
]

F = TypeVar("F", bound=Callable[..., Any])


class ExitStatus(IntEnum):
    """How a command ended; docs/command-line.md says it to users.  Ctrl-C leaves it to `main`."""

    OK = 0
    DAMAGED = 1
    """The database is damaged: what `verify` answers, and what stops any other command."""
    FAILED = 2
    """A mistake in the command line, or something else that makes the command impossible."""
    OUTPUT_CLOSED = 141
    """Nobody reads stdout any more: 128 + SIGPIPE."""


class CommandError(Exception):
    """Why a command ends, for the user: one line, which names what it speaks of."""

    def __init__(self, message: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(message)
        self.status = status


# Commands and their options


class Command(click.Command):
    """A command whose help ends with examples, one line each.

    Its function returns the exit status; None means that all went well.
    """

    def __init__(self, *args: Any, examples: Sequence[str], **kwargs: Any) -> None:
        kwargs["context_settings"] = {
            "help_option_names": ["-h", "--help"],
            **kwargs.get("context_settings", {}),
        }
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples; they are not wrapped, so that they can be copied."""
        super().format_epilog(ctx, formatter)
        formatter.write("\n")
        for example in self.examples:
            formatter.write(f"Example: {example}\n")


class CommandGroup(Command, click.Group):
    """The command that has the others."""


def file_argument(*, required: bool = True) -> Callable[[F], F]:
    """The database FILE that a command reads, as `path`."""
    return click.argument("path", metavar="FILE" if required else "[FILE]", required=required)


source_argument = click.argument("source", metavar="SOURCE")
"""The database file that a command reads to make another one."""

target_argument = click.argument("target", metavar="TARGET")
"""The file that a command makes; nothing may be there."""


def compression_option(text: str) -> Callable[[F], F]:
    """--compression; text: its help."""
    return click.option("--compression", type=click.Choice(get_args(Compression)), help=text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


# Output


def printable(text: str) -> str:
    """The text with escapes for what would not be visible, or would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str) -> str:
    """'1 object', '2,000 objects'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def echo(line: str) -> None:
    """Print one line of the answer."""
    with _writing_output():
        click.echo(printable(line))


def echo_json(document: Mapping[str, object]) -> None:
    """Print the answer for machines: one line."""
    echo(json.dumps(document))


def _status_of_exit(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or ExitStatus.OK
    note(ended.code)
    return 1


def _flush() -> None:
    with _writing_output():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextlib.contextmanager
def _writing_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"the output cannot be written: {error.strerror}") from error


def note(message: str) -> None:
    """Say something besides the answer, in one line on stderr."""
    with contextlib.suppress(OSError):  # there is nobody left to tell
        click.echo(printable(f"durus: {message}"), err=True)


# Errors


@contextlib.contextmanager
def about(*names: str) -> Iterator[None]:
    """See to it that errors in here name what they are about: a path as given, or a server."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (DurusError, OSError) as error:
        message = _describe(error)
        if not any(_is_named(name, message) for name in names):
            message = f"{names[0]}: {message}"
        raise CommandError(message, _status_of(error)) from error


def _is_named(name: str, message: str) -> bool:
    named = rf"(^|['\"(\s]){re.escape(name)}($|[:'\",;)\s])"
    return os.path.abspath(name) in message or re.search(named, message) is not None


def with_options(message: str) -> str:
    """What a function says, with options of commands in the place of its arguments."""
    message = message.replace("repair=True", "'durus client --repair'")
    message = re.sub(r'allow=\["([^"]*)"\]', r"--allow \1", message)
    return re.sub(r"\b(full|python2|readonly|renumber)=True", r"--\1", message)


def _describe(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, DurusError) and error.strerror:
        names = [os.fsdecode(n) for n in (error.filename, error.filename2) if n is not None]
        return ": ".join([*names, error.strerror])
    return with_options(str(error)) or type(error).__name__


def _status_of(error: Exception) -> ExitStatus:
    return ExitStatus.DAMAGED if isinstance(error, CorruptionError) else ExitStatus.FAILED


def _describe_usage(error: click.ClickException) -> str:
    message = re.sub(r"\s*\n\s*", " ", error.format_message()).rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = "durus" if context is None else context.command_path
    return f"{message} ('{command} --help' explains)"


# Running


def run(command: click.Command, arguments: Sequence[str], name: str = "durus") -> int:
    """Run a command with these arguments; the exit status of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # whatever the encoding is
    try:
        status = _invoke(command, arguments, name)
        _flush()
    except BrokenPipeError:
        status = ExitStatus.OUTPUT_CLOSED
    except SystemExit as ended:  # exit() in a console, or argparse
        status = _status_of_exit(ended)
    except CommandError as error:
        note(str(error))
        status = error.status
    except click.ClickException as error:
        note(_describe_usage(error))
        status = ExitStatus.FAILED
    except (DurusError, OSError) as error:
        note(_describe(error))
        status = _status_of(error)
    finally:
        _drop_output()
    return status


def _invoke(command: click.Command, arguments: Sequence[str], name: str) -> int:
    try:
        with command.make_context(name, list(arguments)) as context:
            return int(command.invoke(context) or ExitStatus.OK)
    except click.exceptions.Exit as asked:  # by --help and --version
        return asked.exit_code


def _drop_output() -> None:
    """If stdout takes no more, drop what it still holds: else Python complains when it exits."""
    try:
        _flush()
    except (BrokenPipeError, CommandError):
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
