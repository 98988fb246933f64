"""The app that compose.yaml runs until APP names a folder with another."""

from jsq import App

app = App()


@app.task
def add(a: int, b: int) -> int:
    return a + b
