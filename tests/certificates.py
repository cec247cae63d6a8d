"""Real certificates for tests, made by the openssl command: a CA of our own, and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CertificateAuthority", "Pair"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, PEM files."""

    cert: Path
    key: Path


class CertificateAuthority:
    """Signs certificates; `cert` is what others trust it by."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.cert, self._key = folder / "ca.pem", folder / "ca.key"
        self._run("req", "-x509", *_new(self._key), "-days", "2", "-subj", f"/CN={name}", "-out", self.cert)

    def sign(self, name: str, alternative: str = "", start: str = "", end: str = "") -> Pair:
        """A certificate with a common name and alternative names (`DNS:a,IP:b`), from `start` to `end` (YYYYMMDDHHMMSSZ)."""
        stem = self._folder / f"{name or 'nobody'}-{len(list(self._folder.iterdir()))}"
        pair, request = Pair(stem.with_suffix(".pem"), stem.with_suffix(".key")), stem.with_suffix(".csr")
        self._run("req", *_new(pair.key), "-subj", f"/CN={name}" if name else "/O=nobody", "-out", request)
        index, serial, config = (self._folder / each for each in ("index.txt", "serial", f"{stem.name}.cnf"))
        index.touch()
        if not serial.exists():
            serial.write_text("01\n")
        config.write_text(
            f"[ca]\ndefault_ca=own\n[own]\ndatabase={index}\nserial={serial}\nnew_certs_dir={self._folder}\n"
            "default_md=sha256\npolicy=any\nunique_subject=no\n[any]\ncommonName=optional\norganizationName=optional\n"
            "[names]\nbasicConstraints=CA:FALSE\n" + (f"subjectAltName={alternative}\n" if alternative else "")
        )
        dates = ["-startdate", start or "20200101000000Z", "-enddate", end or "20991231000000Z"]
        signed = ["-config", config, "-cert", self.cert, "-keyfile", self._key, "-extensions", "names"]
        self._run("ca", "-batch", "-notext", *signed, *dates, "-in", request, "-out", pair.cert)
        return pair

    def _run(self, *words: str | Path) -> None:
        done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def _new(key: Path) -> list[str | Path]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key]
