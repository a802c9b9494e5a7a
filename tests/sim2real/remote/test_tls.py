from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from visuomotor.data.errors import ConfigError, UserError
from visuomotor.sim2real.remote.client import ClientConfig
from visuomotor.sim2real.remote.config import ServerConfig
from visuomotor.sim2real.remote.server import PolicyServer

OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two certificates for 127.0.0.1, each signed by itself: (certificate, key)."""
    if OPENSSL is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")
    out = []
    for name in ("mine", "other"):
        paths = (folder / f"{name}.pem", folder / f"{name}.key")
        command = [OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
        subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
        out.append(tuple(map(str, paths)))
    return out


def test_only_the_trusted_certificate_is_talked_to(source, start, dial, ask, keys):
    (cert, key), (other, _) = keys
    server = start(source, tls_cert=cert, tls_key=key)
    url = f"wss://127.0.0.1:{server.port}"
    assert dial(url, tls_ca=cert).plan(ask()) is not None
    for trusted in (other, None):
        with pytest.raises(UserError, match="certificate verify failed"):
            dial(url, tls_ca=trusted, connect_s=2.0)
    with pytest.raises(UserError, match="no policy server"):
        dial(server.url, connect_s=0.5)  # without TLS
    assert source.batches == [1]


def test_files_that_are_no_keys(keys, tmp_path, source):
    (cert, _), (_, other) = keys
    (tmp_path / "junk.pem").write_text("junk")
    for pair in ((cert, other), (str(tmp_path / "junk.pem"), other), ("none.pem", "none.key")):
        with pytest.raises(ConfigError, match="tls_cert="):
            PolicyServer(source, ServerConfig(tls_cert=pair[0], tls_key=pair[1]))


def test_addresses_that_are_none():
    for kwargs in ({"url": "http://x"}, {"url": "ws://x", "tls_ca": "x"}, {"jpeg": 0}):
        with pytest.raises(ConfigError):
            ClientConfig(**kwargs)


def test_the_robots_side_imports_without_torch():
    code = "import sys; sys.modules['torch'] = None; import visuomotor.sim2real.remote.client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
