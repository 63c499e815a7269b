"""What makes a shell complete the words of the command line.

A script is made from the parser: it knows commands, options, choices, and where a
file belongs. Names of models and datasets are not completed: no network at a TAB.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple

SHELLS = ("bash", "zsh", "fish")


class Option(NamedTuple):
    """An option of a command.

    Attributes:
        names: As ``-o`` and ``--output``.
        help: For people; may be empty.
        takes_value: Whether a word follows it.
        choices: Of that word; empty if it may be anything.
        is_path: Whether that word is a path.
    """

    names: Tuple[str, ...]
    help: str
    takes_value: bool
    choices: Tuple[str, ...]
    is_path: bool


class Command(NamedTuple):
    """A command, or a group of commands.

    Attributes:
        words: What is typed to reach it: ``dataset pull``; empty for the program.
        options: All that it has.
        commands: Name and help of each below it.
        choices: Of its arguments.
        takes_path: Whether one of its arguments is a path.
    """

    words: str
    options: List[Option]
    commands: List[Tuple[str, str]]
    choices: Tuple[str, ...]
    takes_path: bool


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return what a shell evaluates to complete this program's words.

    Args:
        parser: With all commands.
        shell: One of ``SHELLS``.
    """
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return "\n".join(write(parser.prog, list(walk(parser)))) + "\n"


def walk(parser: argparse.ArgumentParser, words: str = "") -> Iterator[Command]:
    """Yield the program, then each command and group below it."""
    options, choices, takes_path = [], [], False
    groups = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            groups.append(action)
        elif action.option_strings:
            options.append(_option(action))
        else:
            choices += [str(each) for each in action.choices or ()]
            takes_path = takes_path or action.type is Path
    commands = [
        (each.dest, each.help or "")
        for group in groups
        for each in group._choices_actions  # noqa: SLF001 - has the help
    ]
    yield Command(words, options, commands, tuple(choices), takes_path)
    for group in groups:
        for name, child in group.choices.items():
            yield from walk(child, f"{words} {name}".strip())


def _option(action: argparse.Action) -> Option:
    text = action.help % {**vars(action), "prog": ""} if action.help else ""
    return Option(
        tuple(action.option_strings),
        text,
        takes_value=action.nargs != 0,
        choices=tuple(str(each) for each in action.choices or ()),
        is_path=action.type is Path,
    )


def _reached(commands: Sequence[Command], separator: str) -> str:
    """Return a pattern of what is typed to reach any command."""
    return separator.join(_quoted(each.words) for each in commands if each.words)


def _words(command: Command) -> List[Tuple[str, str]]:
    """Return the commands and choices that may come next, each with its help."""
    return [*command.commands, *((each, "") for each in command.choices)]


def _options(command: Command) -> List[Tuple[str, str]]:
    return [(name, each.help) for each in command.options for name in each.names]


def _values(
    commands: Sequence[Command],
) -> Iterator[Tuple[str, Tuple[str, ...], bool]]:
    """Yield what may follow options that take a value: choices, and whether a path.

    Before these, a pattern of all such options, each after its command.
    """
    patterns: Dict[Tuple[Tuple[str, ...], bool], List[str]] = {}
    for command in commands:
        for option in command.options:
            if option.takes_value:
                patterns.setdefault((option.choices, option.is_path), []).extend(
                    _quoted(f"{command.words} {name}") for name in option.names
                )
    for (choices, is_path), names in patterns.items():
        yield "|".join(names), choices, is_path


def _bash(program: str, commands: Sequence[Command]) -> Iterator[str]:
    function = _function(program)
    yield f"""\
{function}() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    local reached= offered= files= word index
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        case "${{reached:+$reached }}${{COMP_WORDS[index]}}" in
            {_reached(commands, "|")})
                reached="${{reached:+$reached }}${{COMP_WORDS[index]}}" ;;
        esac
    done
    case "$reached" in"""
    for command in commands:
        words = (word for word, _ in (*_words(command), *_options(command)))
        offered = _quoted(" ".join(words))
        files = " files=1" if command.takes_path else ""
        yield f"        {_quoted(command.words)}) offered={offered}{files} ;;"
    yield """\
    esac
    case "$reached $previous" in"""
    for names, choices, is_path in _values(commands):
        offered = _quoted(" ".join(choices))
        yield f"        {names}) offered={offered} files={'1' if is_path else ''} ;;"
    yield f"""\
    esac
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(
        compgen -W "$offered" -- "$current"
        [[ -z $files ]] || compgen -f -- "$current"
    )
    [[ -z $files ]] || compopt -o filenames 2>/dev/null
    return 0
}}
complete -F {function} {program}"""


def _zsh(program: str, commands: Sequence[Command]) -> Iterator[str]:
    function = _function(program)
    yield f"""\
#compdef {program}
{function}() {{
    local reached= previous="${{words[CURRENT-1]}}" word files=
    local -a offered options
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        case "${{reached:+$reached }}$word" in
            ({_reached(commands, "|")}) reached="${{reached:+$reached }}$word" ;;
        esac
    done
    case "$reached $previous" in"""
    for names, choices, is_path in _values(commands):
        offer = f"compadd -- {' '.join(map(_quoted, choices))}; " if choices else ""
        offer += "_files; " if is_path else ""
        yield f"        ({names}) {offer}return ;;"
    yield """\
    esac
    case "$reached" in"""
    for command in commands:
        files = " files=1" if command.takes_path else ""
        yield f"        ({_quoted(command.words)}){files}"
        yield f"            offered=({_described(_words(command))})"
        yield f"            options=({_described(_options(command))}) ;;"
    yield f"""\
    esac
    _describe {program} offered
    _describe -o option options
    [[ -z $files ]] || _files
}}
if [[ "${{funcstack[1]}}" == {function} ]]; then
    {function} "$@"
else
    compdef {function} {program}
fi"""


def _described(words: Sequence[Tuple[str, str]]) -> str:
    return " ".join(_quoted(f"{word}:{text}" if text else word) for word, text in words)


def _fish(program: str, commands: Sequence[Command]) -> Iterator[str]:
    at = f"_{_function(program)}_at"
    yield f"""\
function {at}
    set -l words (commandline -opc)
    set -e words[1]
    set -l reached
    for word in $words
        set -l longer $reached $word
        switch "$longer"
            case {_reached(commands, " ")}
                set reached $longer
        end
    end
    test "$reached" = "$argv[1]"
end
complete -c {program} -f"""
    for command in commands:
        here = (
            f"complete -c {program} -n {_fish_quoted(f'{at} {_quoted(command.words)}')}"
        )
        for word, text in command.commands:
            yield f"{here} -a {_quoted(word)}{_fish_help(text)}"
        for word in command.choices:
            yield f"{here} -a {_quoted(word)}"
        if command.takes_path:
            yield f"{here} -F"
        for option in command.options:
            yield f"{here}{_fish_option(option)}"


def _fish_option(option: Option) -> str:
    line = "".join(
        f" -l {name[2:]}" if name.startswith("--") else f" -s {name[1:]}"
        for name in option.names
    )
    if option.takes_value:
        line += " -r -F" if option.is_path else " -x"
    if option.choices:
        line += f" -a {_fish_quoted(' '.join(option.choices))}"
    return line + _fish_help(option.help)


def _fish_help(text: str) -> str:
    return f" -d {_fish_quoted(text)}" if text else ""


def _function(program: str) -> str:
    return "_" + program.replace("-", "_")


def _quoted(text: str) -> str:
    """Return a word as bash and zsh read it literally; fish, if it has no quote."""
    return "'" + text.replace("'", "'\\''") + "'"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
