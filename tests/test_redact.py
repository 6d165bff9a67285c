"""Nothing of a secret is left, and what is none stays as it is."""

from __future__ import annotations

import io
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bagpiper.cli import main as cli
from bagpiper.console import say, told
from bagpiper.redact import masked_keys, redact, redact_arguments, redact_tree

UNRESERVED = string.ascii_letters + string.digits + "-._~"
ESCAPES = [f"%{number:02X}" for number in range(256)]
_part = st.sampled_from([*UNRESERVED, *"!$&'()*+,;=", *ESCAPES])
userinfo = st.lists(_part, min_size=1, max_size=12).map("".join)
"""What RFC 3986 allows for a user or a password; passwords may have colons too."""
password = st.lists(_part | st.just(":"), min_size=1, max_size=12).map("".join)
value = st.lists(st.sampled_from([*UNRESERVED, *"!$'()*+,;:@/?", *ESCAPES]), min_size=1, max_size=12).map("".join)
"""What may stand in a query behind ``name=``."""
scheme = st.sampled_from(["http", "https", "sqlite", "postgresql+psycopg2", "mysql+pymysql", "s3", "x-y.z"])


@given(scheme, userinfo, password)
def test_nothing_of_a_login_in_a_url_is_left(scheme: str, user: str, password: str) -> None:
    assert redact(f"{scheme}://{user}:{password}@host:80/db?a=b#c") == f"{scheme}://***@host:80/db?a=b#c"


@given(scheme, userinfo)
def test_a_token_in_place_of_a_user_is_one_too(scheme: str, token: str) -> None:
    assert redact(f"at {scheme}://{token}@host, no") == f"at {scheme}://***@host, no"


@given(userinfo, password)
def test_a_login_where_no_host_is(user: str, password: str) -> None:
    assert redact(f"sqlite:///{user}:{password}@x.db") == "sqlite:///***@x.db"


@given(userinfo, st.text(string.ascii_letters + string.digits + "!$/?#%@:;,'", min_size=1))
def test_a_password_that_was_pasted_as_it_is(user: str, password: str) -> None:
    """SQLAlchemy takes those with ``/``, ``?`` and ``#``; one with ``://`` in it looks like another address."""
    if "://" not in f":{password}":
        assert redact(f"postgresql://{user}:{password}@host/db") in (
            "postgresql://***@host/db",
            "postgresql://***/host/db",
        )


@given(st.sampled_from(["token", "password", "api_key", "X-Amz-Signature", "PWD", "sig", "odbc_connect"]), value)
def test_a_secret_in_a_query(name: str, value: str) -> None:
    assert redact(f"http://host/?a=1&{name}={value}&b=2") == f"http://host/?a=1&{name}=***&b=2"


@given(st.text())
def test_it_is_enough_to_mask_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(st.lists(st.tuples(userinfo, password), min_size=2, max_size=3), st.sampled_from([" ", ",", ";", "\n", "|"]))
def test_several_urls_in_one_text(logins: list[tuple[str, str]], between: str) -> None:
    urls = between.join(f"http://{user}:{secret}@host" for user, secret in logins)
    assert redact(urls) == between.join(["http://***@host"] * len(logins))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http:/me:pw@host", "http:/***@host"),
        ("http://me:pw@[::1]:5000/x", "http://***@[::1]:5000/x"),
        ("http://me:p@ss@host/x", "http://***@host/x"),
        ("http://me:p@s/s@host/x", "http://***/host/x"),
        ("http://host:80/@team", "http://***/team"),
        ("(see http://me:pw@host/a)", "(see http://***@host/a)"),
        ('{"uri": "http://me:pw@host"}', '{"uri": "http://***@host"}'),
        ("api_key=abc other", "api_key=*** other"),
        ("MLFLOW_TRACKING_PASSWORD=x", "MLFLOW_TRACKING_PASSWORD=***"),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ('{"password": "a b"}', '{"password": ***'),
    ],
)
def test_what_is_masked(text: str, masked: str) -> None:
    assert redact(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "http://127.0.0.1:5000/#/experiments/1/runs/ab/artifacts?workflowType=machine_learning",
        "sqlite:////home/me@work/run/mlflow.db",
        "http://host/a@b?mail=c@d",
        "mlflow ui --backend-store-uri 'sqlite+pysqlite:////w/me%3Apw%40x/mlflow.db'",
        "an override is written key=value, e.g. trainer.max_steps=10",
        "data.token_budget=64 text_key=caption tokens=5",
        "train.jsonl:3: bad; a bell at 5:30 @ noon",
        "API request failed: HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded with url: /api",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_a_command_line() -> None:
    given = ["train", "data.token_budget=64", "hf_token=a b", "plugins.api_key=1", "tracking.uri=http://me:pw@host/x"]
    masked = ["train", "data.token_budget=64", "hf_token=***", "plugins.api_key=***", "tracking.uri=http://***@host/x"]
    assert redact_arguments(given) == masked


def test_a_tree_keeps_what_it_must_load_again() -> None:
    tree = {
        "uri": "http://me:pw@host",
        "plugin": {"api_key": "abc", "password": None, "pad_token": "<pad>", "token_budget": 64, "secret": ""},
        "captions": ["a voice says: password=swordfish", "http://a:b@c"],
    }
    assert redact_tree(tree) == {
        "uri": "http://***@host",
        "plugin": {"api_key": "***", "password": None, "pad_token": "<pad>", "token_budget": 64, "secret": ""},
        "captions": ["a voice says: password=swordfish", "http://***@c"],
    }


def test_lines_and_errors_that_are_shown_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    output = io.StringIO()
    console = Console(file=output, width=200)
    say(console, "at http://me:hunter2@host")
    with told(console, "sending") as tell:
        tell("to http://me:hunter2@host")
    with pytest.raises(SystemExit):
        cli._refuse("no http://me:hunter2@host")
    error = capsys.readouterr().err
    assert "hunter2" not in output.getvalue() + error
    assert output.getvalue().count("http://***@host") == 2 and error == "error: no http://***@host\n"


def test_masked_keys_are_known_again() -> None:
    tree = {"a": {"uri": "http://me:pw@h", "api_key": "x"}, "b": ["http://h/?token=x"], "c": "*** loud ***", "d": 1}
    assert masked_keys(redact_tree(tree)) == ["a.uri", "a.api_key", "b"]
    assert masked_keys(tree) == []
