from __future__ import annotations

import pytest

from tunelab.credentials import hide

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
KEY = "AKIAIOSFODNN7EXAMPLE"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF123"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://{KEY}:{SECRET}@bucket/prefix cannot be read",
        f"s3://user:{SECRET}@bucket",
        f"https://{SECRET.replace('/', '')}@github.com/x",
        f"ftp://me:{SECRET}@host:21/x",
        f"s3://bucket/x?password={SECRET}",
        f"GET https://host/bucket?X-Amz-Credential={KEY}%2F2026&X-Amz-Signature={SECRET}&X-Amz-Security-Token={SECRET}",
        f"abfs://c@account.dfs.core.windows.net/x?sv=2026&sig={SECRET}",
        f"DefaultEndpointsProtocol=https;AccountName=me;AccountKey={SECRET};EndpointSuffix=x",
        f"S3FileSystem(key='{KEY}', secret='{SECRET}', endpoint_url='http://x')",
        f"{{'secret': '{SECRET}', 'token': None}}",
        f'{{"aws_secret_access_key": "{SECRET}"}}',
        f"aws_secret_access_key = {SECRET}",
        f"AWS_SECRET_ACCESS_KEY={SECRET} tunelab search",
        f"Authorization: Bearer {SECRET}",
        f"headers: {{'Authorization': b'AWS4-HMAC-SHA256 Credential={KEY}/2026, Signature={SECRET}'}}",
        f"bearer {SECRET}",
        f"<Error><AWSAccessKeyId>{SECRET}</AWSAccessKeyId><SignatureProvided>{SECRET}</SignatureProvided></Error>",
        f"the key {KEY} does not exist",
        f"password%3D{SECRET}",
        f"the token {TOKEN} has expired".replace(TOKEN, f"eyJ{SECRET[:4]}xxxx.{SECRET[:9]}.x").replace("/", "_"),
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----\nno such key",
        f"--password={SECRET}",
        f"passphrase = '{SECRET} {SECRET}'",
        f"connection_string='{SECRET}'",
        f"token: {SECRET}",
        f"X-Auth-Token: {SECRET}",
        f"login failed (password:{SECRET})",
        f"user: me\npassword: {SECRET}\nhost: h",
        f"api_tokens={SECRET}",
        f"the token: {SECRET} is refused",
        f"max_token={SECRET}",
    ],
)
def test_no_form_of_a_credential_is_told(text: str) -> None:
    told = hide(text)
    assert "***" in told
    for secret in (SECRET, SECRET.replace("/", ""), KEY, SECRET[:9]):
        assert secret not in told


def test_values_of_secret_variables_are_hidden_in_whatever_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct horse")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "correct horse battery")
    monkeypatch.setenv("OTHER_TOKEN_PATH", "/somewhere/else")
    monkeypatch.setenv("SHORT_SECRET", "on")
    assert hide("it said <correct horse battery> on /somewhere/else") == "it said <***> on /somewhere/else"
    assert hide("(correct horse)") == "(***)"


@pytest.mark.parametrize(
    "text",
    [
        "trial 7 of runs/arch-20261121-2330: completed",
        "lr 0.1, optimizer sgd, design=basic block, keyed by number",
        "s3://bucket/prefix/arch-20261121-2330 is being written by process 12 on host",
        "abfs://container@account.dfs.core.windows.net/path",
        "sftp://me@host/path",
        "the token could not be written: No space left on device",
        "basic convolutional blocks",
        "at 07:30 (8h): `tunelab resume runs/x` goes on",
        "me@example.org",
        "MAX_TOKENS=4096",
        "max_tokens: 4096, tokens_per_second=12.5, maxTokens = 3",
        "{'max_tokens': 4096, \"n_tokens\": '7'}",
        "the cluster wants its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, which holds it",
        "tokenizer=bert-base, tokenizer: bert-base",
        "~/.ray/auth_token: Permission denied",
        "/home/me/secret.yaml: No such file or directory",
    ],
)
def test_what_holds_no_credential_is_told_as_it_is(text: str) -> None:
    assert hide(text) == text


def test_a_number_of_tokens_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_TOKENS", "128000")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled")
    monkeypatch.setenv("PIN_TOKEN", "654321")
    assert hide("128000 images, disabled, 654321") == "128000 images, disabled, ***"


def test_a_password_of_digits_is_one() -> None:
    assert hide("password=123456, token: 123456") == "password=***, token: ***"


@pytest.mark.parametrize("length", [300, 5000])
def test_a_secret_that_is_too_long_for_a_file_name_is_hidden(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setenv("MY_TOKEN", "x1" * (length // 2))
    assert hide(f"refused: {'x1' * (length // 2)}.") == "refused: ***."
