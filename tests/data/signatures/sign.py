"""Signs a body with Python's `cryptography` at every supported key size and interesting salt.

Prints one JSON object a line: the public key as PEM, the salt length, the signature as the header
spells it. The test in tests/bridge/signatures.rs runs it with the body's path as the only argument.
"""

import base64
import json
import sys

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

body = open(sys.argv[1], "rb").read()

for bits in (2048, 3072, 4096):
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    public = key.public_key()
    # Both spellings of a PEM public key.
    forms = {
        0: serialization.PublicFormat.SubjectPublicKeyInfo,
        20: serialization.PublicFormat.PKCS1,
    }
    longest = padding.calculate_max_pss_salt_length(key, hashes.SHA256())
    for salt in (0, 20, 32, longest):
        signature = key.sign(
            body, padding.PSS(padding.MGF1(hashes.SHA256()), salt), hashes.SHA256()
        )
        form = forms.get(salt, serialization.PublicFormat.SubjectPublicKeyInfo)
        pem = public.public_bytes(serialization.Encoding.PEM, form).decode()
        text = base64.urlsafe_b64encode(signature).decode()
        if salt != 32:
            text = text.rstrip("=")
        record = {"bits": bits, "salt": salt, "pem": pem, "signature": "rsassa-pss-sha256=" + text}
        print(json.dumps(record))
