"""The command line: one sub-command a job, each a thin call of one public function."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from vlsae.cli import adapt, compare, interop, sae, splice

COMMANDS = {**sae.COMMANDS, **splice.COMMANDS, **adapt.COMMANDS, **compare.COMMANDS, **interop.COMMANDS}


def _parser() -> argparse.ArgumentParser:
    from vlsae import __version__

    parser = argparse.ArgumentParser(prog="vlsae", description="See, compare and edit the concepts inside CLIP models.")
    parser.add_argument("--version", action="version", version=f"vlsae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, summary: str, out: Path, group=commands) -> argparse.ArgumentParser:
        command = group.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument("--out", type=Path, default=out, help="where results go")
        command.add_argument("--seed", type=int, default=0, help="of everything random")
        command.add_argument("--json", action="store_true", help="print the result as JSON, without progress bars")
        command.add_argument("--threads", type=int, default=0, help="processor threads; 0: let torch choose")
        return command

    sae.add_commands(add)
    compare.add_commands(add)
    splice.add_commands(add, commands)
    adapt.add_commands(add)
    interop.add_commands(add)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0, or 2 after one sentence about what was wrong."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for noisy in ("open_clip", "huggingface_hub", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    try:
        result = COMMANDS[options.command](options)
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"vlsae {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vlsae {options.command}: interrupted; run the same command again to continue.", file=sys.stderr)
        return 130
    code = result.pop("exit_code", 0)
    if options.json and result:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name}: {value}")
    return code


if __name__ == "__main__":
    sys.exit(main())
