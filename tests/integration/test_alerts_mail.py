"""E-mail over TLS, against an SMTP server with a certificate of its own."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import pytest
from pydantic import SecretStr

from orchestrator.alerts.factory import make_notifier
from orchestrator.alerts.port import NotDeliveredError, TroubledChannel
from orchestrator.settings import Settings
from tests.alert_data import notice
from tests.alert_receivers import MailServer
from tests.certificates import make_certificate

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
PASSWORD = "p@ss/word"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    return context


def settings(scheme: str, port: int, *, password: str = PASSWORD) -> Settings:
    user = f"babysit%40example.org:{password.replace('@', '%40').replace('/', '%2F')}@"
    return Settings(
        alerts="email",
        smtp_url=SecretStr(f"{scheme}://{user if password else ''}127.0.0.1:{port}"),
        email_from="babysit@example.org",
        email_to="anna@example.org",
    )


@pytest.mark.parametrize(("scheme", "starttls"), [("smtp", True), ("smtps", False)])
async def test_a_mail_and_its_password_travel_encrypted(
    scheme: str,
    starttls: bool,
    context: ssl.SSLContext,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with MailServer(context, starttls=starttls, password=PASSWORD) as server:
        await make_notifier(settings(scheme, server.port)).notify(notice(text="no node is left"))
        (mail,) = server.mails
        assert "no node is left" in mail
        clear = [line.split()[0].upper() for line in server.in_clear]
        assert clear == (["EHLO", "STARTTLS"] if starttls else [])


@pytest.mark.parametrize(("scheme", "starttls"), [("smtp", True), ("smtps", False)])
async def test_a_server_that_nobody_vouches_for_gets_neither_mail_nor_password(
    scheme: str, starttls: bool, context: ssl.SSLContext
) -> None:
    async with MailServer(context, starttls=starttls, password=PASSWORD) as server:
        channel = make_notifier(settings(scheme, server.port))
        with pytest.raises(NotDeliveredError, match="SSL_CERT_FILE"):
            await channel.notify(notice())
        assert isinstance(channel, TroubledChannel)
        assert "SSL_CERT_FILE" in channel.trouble["email"]
        assert server.mails == []
        assert not any("AUTH" in line for line in server.in_clear)


async def test_a_password_is_never_sent_unencrypted() -> None:
    async with MailServer(password=PASSWORD) as server:
        with pytest.raises(NotDeliveredError, match="smtps"):
            await make_notifier(settings("smtp", server.port)).notify(notice())
        assert [line.split()[0] for line in server.in_clear] == ["ehlo", "QUIT"]


async def test_a_wrong_password_is_said_with_the_fix_and_a_refusal_for_now_is_not(
    context: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with MailServer(context, password=PASSWORD) as server:
        channel = make_notifier(settings("smtps", server.port, password="old"))
        with pytest.raises(NotDeliveredError, match="the user and the password") as wrong:
            await channel.notify(notice())
        assert wrong.value.result == "refused"
        channel = make_notifier(settings("smtps", server.port))
        server.refuse_next = "451 try again later"
        with pytest.raises(NotDeliveredError, match="451") as later:
            await channel.notify(notice())
        assert later.value.result == "failed"
        assert isinstance(channel, TroubledChannel)
        assert channel.trouble == {}
