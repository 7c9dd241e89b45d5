import marimo

app = marimo.App(app_title="A page")


@app.cell
def _():
    import marimo as mo

    name = mo.ui.text(label="Name", value="nobody")
    return mo, name


@app.cell
def _(mo, name):
    mo.vstack([name, mo.md(f"Hello, {name.value}")])
    return


if __name__ == "__main__":
    app.run()
