"""Completion scripts for shells, made from the parser: commands, options, choices; file names elsewhere."""

from __future__ import annotations

import argparse
import shlex
from typing import NamedTuple

SHELLS = ("bash", "zsh", "fish")


class _Option(NamedTuple):
    names: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]


class _Command(NamedTuple):
    name: str
    help: str
    options: list[_Option]
    choices: tuple[str, ...]
    """Of its arguments without a dash."""


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that makes `shell` complete the command."""
    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return write(parser.prog, _commands(parser), _options(parser))


def _options(parser: argparse.ArgumentParser) -> list[_Option]:
    return [
        _Option(
            tuple(action.option_strings),
            _one_line(action.help),
            action.nargs != 0,
            tuple(map(str, action.choices or ())),
        )
        for action in parser._actions
        if action.option_strings and action.help is not argparse.SUPPRESS
    ]


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    (group,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: _one_line(action.help) for action in group._choices_actions}
    return [
        _Command(
            name,
            helps.get(name, ""),
            _options(sub),
            tuple(
                str(choice) for action in sub._actions if not action.option_strings for choice in action.choices or ()
            ),
        )
        for name, sub in group.choices.items()
    ]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").replace("%(prog)s", "").replace("%%", "%").split())


def _bash(program: str, commands: list[_Command], own: list[_Option]) -> str:
    function = "_" + program.replace("-", "_")
    choices = [
        f"    {shlex.quote(f'{command.name} {name}')}) words={shlex.quote(' '.join(option.choices))} ;;"
        for command in commands
        for option in command.options
        for name in option.names
        if option.choices
    ]
    cases = []
    for command in commands:
        names = " ".join(name for option in command.options for name in option.names)
        cases.append(
            f"    {command.name}) options={shlex.quote(names)} words={shlex.quote(' '.join(command.choices))} ;;"
        )
    first = " ".join([*(command.name for command in commands), *(name for option in own for name in option.names)])
    return "\n".join(
        [
            f'# Completion of {program} in bash. In ~/.bashrc: eval "$({program} completion bash)"',
            f"{function}() {{",
            "  local current=${COMP_WORDS[COMP_CWORD]} options= words=",
            "  if [[ $COMP_CWORD -eq 1 ]]; then",
            f'    COMPREPLY=($(compgen -W {shlex.quote(first)} -- "$current"))',
            "    return",
            "  fi",
            "  case ${COMP_WORDS[1]} in",
            *cases,
            "  esac",
            '  case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in',
            *(choices or ["    *) ;;"]),
            "  esac",
            "  [[ $current == -* ]] && words=$options",
            '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
            "}",
            f"complete -o default -F {function} {program}",
            "",
        ]
    )


def _zsh(program: str, commands: list[_Command], own: list[_Option]) -> str:
    def quoted(text: str) -> str:
        return (
            text.replace("\\", "\\\\").replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
        )

    def specs(options: list[_Option]) -> list[str]:
        lines = []
        for option in options:
            value = f":value:({' '.join(option.choices)})" if option.choices else ":value:_files"
            for name in option.names:
                lines.append(f"'{name}[{quoted(option.help)}]{value if option.takes_value else ''}'")
        return lines

    function = "_" + program.replace("-", "_")
    described = [f"'{command.name}:{quoted(command.help)}'" for command in commands]
    lines = [
        f"#compdef {program}",
        f'# Completion of {program} in zsh. In ~/.zshrc, behind compinit: eval "$({program} completion zsh)"',
        f"{function}() {{",
        "  local -a commands",
        f"  commands=({' '.join(described)})",
        "  if (( CURRENT == 2 )); then",
        f"    _describe command commands; _arguments {' '.join(specs(own))}",
        "    return",
        "  fi",
        "  local name=$words[2]",
        "  shift words; (( CURRENT-- ))",
        "  case $name in",
    ]
    for command in commands:
        rest = f"'*:value:({' '.join(command.choices)})'" if command.choices else "'*:file:_files'"
        lines.append(f"    {command.name}) _arguments {' '.join([*specs(command.options), rest])} ;;")
    return "\n".join([*lines, "  esac", "}", f"compdef {function} {program}", ""])


def _fish(program: str, commands: list[_Command], own: list[_Option]) -> str:
    def option_line(option: _Option, condition: str) -> str:
        parts = [f"complete -c {program} -n {shlex.quote(condition)}"]
        parts += [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
        if option.takes_value:
            parts.append("-r")
        if option.choices:
            parts.append(f"-f -a {shlex.quote(' '.join(option.choices))}")
        return " ".join([*parts, "-d", shlex.quote(option.help)])

    first = "__fish_use_subcommand"
    lines = [f"# Completion of {program} in fish. In ~/.config/fish/config.fish: {program} completion fish | source"]
    lines += [option_line(option, first) for option in own]
    for command in commands:
        here = f"__fish_seen_subcommand_from {command.name}"
        lines.append(f"complete -c {program} -n {first} -f -a {command.name} -d {shlex.quote(command.help)}")
        lines += [option_line(option, here) for option in command.options]
        if command.choices:
            lines.append(f"complete -c {program} -n {shlex.quote(here)} -f -a {shlex.quote(' '.join(command.choices))}")
    return "\n".join([*lines, ""])
