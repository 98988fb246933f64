"""Runs the command line: `python -m jsq` equals `jsq`."""

import gc


def main() -> None:
    # Off until the command is loaded: collections during imports take a fifth of the CPU time and free
    # nothing.
    gc.disable()
    from jsq.cli import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
