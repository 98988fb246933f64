"""`python -m jsq` is `jsq`."""

import gc


def main() -> None:
    gc.disable()  # until the command is loaded: collections during imports take 20 % of the CPU and free nothing
    from jsq.cli import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
