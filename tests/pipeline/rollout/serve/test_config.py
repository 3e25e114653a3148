"""Who may talk to a policy server."""

import pytest
from pydantic import SecretStr

from pipeline.errors import ConfigError
from pipeline.rollout.serve.config import (
    TOKEN_VARIABLE,
    ServeConfig,
    check_exposure,
    is_authorized,
    read_token,
)

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_token(host):
    check_exposure(host, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "robot.example", ""])
def test_other_machines_need_a_token(host):
    with pytest.raises(ConfigError, match="expected a token"):
        check_exposure(host, None)
    check_exposure(host, SecretStr(TOKEN))


def test_a_token_comes_from_a_file_or_else_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None).get_secret_value() == TOKEN
    path = tmp_path / "token"
    path.write_text("another-token-of-a-file\n")
    assert read_token(path).get_secret_value() == "another-token-of-a-file"


@pytest.mark.parametrize("content", [b"", b"short\n", b"with spaces in it 12345", b"\xff" * 20])
def test_tokens_that_guard_nothing_are_refused(tmp_path, monkeypatch, content):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"{path}: expected a token of 16 or more") as told:
        read_token(path)
    assert "short" not in str(told.value)
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
        read_token(None)


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ([f"Api-Key {TOKEN}"], True),
        ([], False),
        ([""], False),
        ([TOKEN], False),
        ([f"Api-Key {TOKEN}x"], False),
        ([f"Api-Key {TOKEN}", f"Api-Key {TOKEN}"], False),
        (["Api-Key \udcff"], False),  # a byte that is no ASCII, as the library hands it on
    ],
)
def test_one_header_with_the_token_passes(headers, passes):
    assert is_authorized(headers, SecretStr(TOKEN)) is passes
    assert is_authorized(headers, None)


def test_a_configuration_does_not_show_its_token(tmp_path):
    config = ServeConfig(run=tmp_path, token=SecretStr(TOKEN))
    assert TOKEN not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"
