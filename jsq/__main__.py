"""`python -m jsq` is `jsq`."""


def main() -> None:
    from jsq.cli import run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
