"""Notices by e-mail, over SMTP.

Mails about one problem are a thread in mail programs. The id of a mail (`Message-ID`) is that of
its notice, so that a mail that is sent twice is shown once by most of them; it is not guaranteed
that it is not sent twice. Updates of incidents are not mailed.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from urllib.parse import SplitResult, unquote, urlsplit

from orchestrator.alerts.port import NotDeliveredError
from orchestrator.core.messages.instructions import Notify
from orchestrator.errors import InvalidError
from orchestrator.settings import Settings

_SECONDS = 30.0
_SUBJECT = 150
_LATER, _NEVER = 400, 500
"""SMTP's refusals: from 400 for now, from 500 for good (RFC 5321, 4.2.1)."""
_REFUSED: tuple[tuple[type[Exception], str], ...] = (
    (
        ssl.SSLCertVerificationError,
        "the certificate of the mail server is not trusted: set SSL_CERT_FILE to its authority",
    ),
    (
        smtplib.SMTPNotSupportedError,
        "passwords are sent encrypted alone: let BABYSIT_SMTP_URL be smtps://…:465",
    ),
    (smtplib.SMTPAuthenticationError, "correct the user and the password in BABYSIT_SMTP_URL"),
    (smtplib.SMTPRecipientsRefused, "correct BABYSIT_EMAIL_TO"),
    (smtplib.SMTPSenderRefused, "correct BABYSIT_EMAIL_FROM"),
)
"""Errors that a person must mend, and how. Others pass."""


def from_settings(settings: Settings) -> MailChannel:
    """The channel for `email` in `BABYSIT_ALERTS`.

    Raises:
        InvalidError: A setting is missing, or the URL is not one of SMTP.
    """
    if not (settings.smtp_url and settings.email_from and settings.email_to):
        raise InvalidError(
            "the alert channel email needs BABYSIT_SMTP_URL, BABYSIT_EMAIL_FROM and"
            " BABYSIT_EMAIL_TO"
        )
    url = urlsplit(settings.smtp_url.get_secret_value())
    if url.scheme not in {"smtp", "smtps"} or not url.hostname:
        raise InvalidError(
            "BABYSIT_SMTP_URL: expected smtp://USER:PASSWORD@HOST:587 or smtps://…:465"
        )
    return MailChannel(url, settings.email_from, settings.email_to, settings.alerts_link)


class MailChannel:
    """Mails every notice to the same people.

    Attributes:
        trouble: `email` -> why the server takes no mail, and what to do; empty: it does.
    """

    channel = "email"
    ignored_fields: Mapping[str, str] = {
        "notify.slack": "notices go by e-mail (BABYSIT_ALERTS=email)",
    }

    def __init__(self, url: SplitResult, sender: str, to: str, link: str) -> None:
        self._server, self._sender, self._to, self._link = url, sender, to, link
        self.trouble: dict[str, str] = {}

    async def notify(self, notice: Notify) -> None:
        """Mail one notice; raises NotDeliveredError unless the server took it for everybody."""
        try:
            await asyncio.to_thread(self._send, self._mail(notice))
        except (smtplib.SMTPException, OSError) as error:
            raise self._not_delivered(error) from error
        self.trouble.clear()

    def _not_delivered(self, error: Exception) -> NotDeliveredError:
        said = f"email: {error or type(error).__name__}"
        fix = next((fix for kind, fix in _REFUSED if isinstance(error, kind)), "")
        if not fix or _passes(error):
            return NotDeliveredError(said)
        self.trouble[self.channel] = f"{said}: {fix}"
        return NotDeliveredError(self.trouble[self.channel], result="refused")

    def _mail(self, notice: Notify) -> EmailMessage:
        mail = EmailMessage()
        name = f"{notice.run_name}: " if notice.run_name else ""
        kind = notice.incident_kind.replace("_", " ")
        mail["Subject"] = _line(f"[babysit] {name}{kind} ({notice.severity})")[:_SUBJECT]
        mail["From"], mail["To"] = self._sender, notice.mail_to or self._to
        mail["Message-ID"] = _message_id(notice.id)
        mail["References"] = _message_id(notice.dedup_key)
        lines = [notice.text]
        if notice.run and self._link:
            lines += ["", self._link.replace("{run}", notice.run)]
        if notice.incident:
            lines += ["", f"babysit incidents show {notice.incident}"]
        mail.set_content("\n".join(lines))
        return mail

    def _send(self, mail: EmailMessage) -> None:
        """Send one mail over a connection of its own. Blocks."""
        url, context = self._server, ssl.create_default_context()
        host = str(url.hostname)
        if url.scheme == "smtps":
            connection: smtplib.SMTP = smtplib.SMTP_SSL(
                host, url.port or 465, timeout=_SECONDS, context=context
            )
        else:
            connection = smtplib.SMTP(host, url.port or 587, timeout=_SECONDS)
        with connection:
            connection.ehlo_or_helo_if_needed()
            if url.scheme == "smtp" and (url.username or connection.has_extn("starttls")):
                connection.starttls(context=context)  # a password never goes unencrypted
            if url.username:
                connection.login(unquote(url.username), unquote(url.password or ""))
            refused = connection.send_message(mail)
        if refused:
            raise smtplib.SMTPRecipientsRefused(refused)


def _passes(error: Exception) -> bool:
    """True for a refusal that is one for now: SMTP's codes 4xx."""
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
    else:
        codes = [error.smtp_code] if isinstance(error, smtplib.SMTPResponseException) else []
    return any(_LATER <= code < _NEVER for code in codes)


def _line(text: str) -> str:
    """Text that fits a header: one line."""
    return " ".join(text.split())


def _message_id(id_: str) -> str:
    word = "".join(c if c.isascii() and (c.isalnum() or c in ".-_") else "." for c in id_)
    return f"<{word}@babysit>"
