"""`python -m jsq` is `jsq`."""


def main() -> None:
    from jsq.cli import run

    run()


if __name__ == "__main__":
    main()
