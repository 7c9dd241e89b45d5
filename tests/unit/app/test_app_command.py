"""What is started: the public port that a shell put in too early is replaced, and nothing else."""

import pytest

from proxy.app.command import SHELL, parse_command

SAME = None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("uvicorn main:app --port 10000", "uvicorn main:app --port 4000"),
        ("uvicorn main:app --port=10000", "uvicorn main:app --port=4000"),
        ("uvicorn main:app -p 10000", "uvicorn main:app -p 4000"),
        ("flask run -p10000", "flask run -p4000"),
        ("gunicorn app -b 0.0.0.0:10000", "gunicorn app -b 0.0.0.0:4000"),
        ("gunicorn app -b0.0.0.0:10000", "gunicorn app -b0.0.0.0:4000"),
        ("gunicorn app -b :10000", "gunicorn app -b :4000"),
        ("gunicorn app --bind=[::]:10000", "gunicorn app --bind=[::]:4000"),
        ("gunicorn app --bind 0.0.0.0:10000 -b [::1]:10000", "gunicorn app --bind 0.0.0.0:4000 -b [::1]:4000"),
        ("manage.py runserver 0.0.0.0:10000", "manage.py runserver 0.0.0.0:4000"),
        ("manage.py runserver localhost:10000", "manage.py runserver localhost:4000"),
        ("uvicorn main:app --port 8000", SAME),
        ("worker --limit 10000", SAME),
        ("worker --rate=10000", SAME),
        ("worker 10000", SAME),
        ("gunicorn app -b unix:/tmp/10000", SAME),
        ("app --database postgres://host:10000/x", SAME),
        ("app --port 100001", SAME),
        ("app --portal 10000", SAME),
        ("10000 --port 9", SAME),
    ],
)
@pytest.mark.parametrize("shape", ["words", "line"])
def test_only_the_public_port_after_a_port_option_or_as_host_and_port_is_replaced(words, expected, shape):
    expected = expected or words
    if shape == "words":
        command = parse_command(words.split(" "), 10000, 4000)
        assert " ".join(command.argv) == expected
    elif " " in words:
        command = parse_command([words], 10000, 4000)
        assert command.argv == (SHELL, "-c", f"exec {expected}")
    assert bool(command.replaced_words) == (expected != words)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("uvicorn main:app --port $PORT", "exec uvicorn main:app --port $PORT"),
        ("cd app && uvicorn main:app --port 10000", "cd app && exec uvicorn main:app --port 4000"),
        ("FOO=1 uvicorn main:app", "FOO=1 exec uvicorn main:app"),
        ("exec uvicorn main:app", "exec uvicorn main:app"),
        ("python -c 'print(1); print(2)'", "exec python -c 'print(1); print(2)'"),
        ("uvicorn main:app --port='10000' -p\"10000\"", "exec uvicorn main:app --port='4000' -p\"4000\""),
        ("  gunicorn app  -b  '0.0.0.0:10000'  ", "exec gunicorn app  -b  '0.0.0.0:4000'"),
    ],
)
def test_a_shell_line_stays_as_it_is_and_its_last_command_takes_the_shells_place(line, text):
    assert parse_command([line], 10000, 4000).argv == (SHELL, "-c", text)


def test_without_a_public_port_nothing_is_touched():
    assert parse_command(["worker", "--port", "10000"], None, 4000).argv == ("worker", "--port", "10000")


def test_one_word_without_spaces_is_a_program_not_a_line():
    assert parse_command(["./start"], 10000, 4000).argv == ("./start",)
