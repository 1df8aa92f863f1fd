//! Encrypted connections, and certificates instead of passwords.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use prelude_bridge_postgres::{Secret, TlsMode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate and its key, as NAME.crt and NAME.key, for whoever owns the directory.
fn issue(
    authority: &Authority,
    directory: &Path,
    name: &str,
    host: Option<&str>,
) -> (PathBuf, PathBuf) {
    let mut params =
        CertificateParams::new(host.map(str::to_owned).into_iter().collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let paths = [("crt", certificate.pem()), ("key", key.serialize_pem())].map(|(kind, pem)| {
        let path = directory.join(format!("{name}.{kind}"));
        fs::write(&path, pem).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    });
    let _ = Command::new("chown")
        .arg("--reference")
        .arg(directory)
        .args(&paths)
        .status();
    let [certificate, key] = paths;
    (certificate, key)
}

fn write(directory: &Path, name: &str, authority: &Authority) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, authority.pem()).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs tools"]
async fn a_server_is_believed_by_its_certificate_and_a_bridge_by_password_or_certificate() {
    let (ours, others) = (authority("ours"), authority("others"));
    let mut server = Server::start();
    let home = server.directory().to_owned();
    let trusted = write(&home, "authority.crt", &ours);
    let wrong = write(&home, "others.crt", &others);
    let secured = |authority: &Path, certificate: Option<&(PathBuf, PathBuf)>| Options {
        tls: TlsMode::Required {
            authority: Some(authority.to_owned()),
            certificate: certificate.cloned(),
        },
        ..options(&server)
    };
    let (plain, by_trusted, by_wrong) = (
        options(&server),
        secured(&trusted, None),
        secured(&wrong, None),
    );
    let writer = issue(&ours, &home, "writer", None);
    let stranger = issue(&others, &home, "stranger", None);
    let (with_writer, with_stranger) = (
        secured(&trusted, Some(&writer)),
        secured(&trusted, Some(&stranger)),
    );

    let said = refused(by_trusted.clone()).await;
    assert!(
        matches!(&said, OpenError::Unusable(why) if why.contains("ssl = on")),
        "{said}"
    );
    issue(&ours, &home, "server", Some("127.0.0.1"));
    server.configure(&format!(
        "ssl = on\nssl_cert_file = '{0}/server.crt'\nssl_key_file = '{0}/server.key'\nssl_ca_file = '{0}/authority.crt'",
        home.display()
    ));
    server.authenticate(
        "hostssl all writer 127.0.0.1/32 cert\nhostssl all secret 127.0.0.1/32 scram-sha-256\nhostnossl all secret,writer 127.0.0.1/32 reject",
    );
    server.restart();
    for role in ["writer", "secret PASSWORD 'word'"] {
        server.sql(&format!(
            "CREATE ROLE {} LOGIN SUPERUSER {}",
            role.split(' ').next().unwrap(),
            role.split_once(' ').map_or("", |(_, rest)| rest)
        ));
    }
    append_all(&open(by_trusted.clone()).await.unwrap().sequencer, 1..=2).await;
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND application_name = 'prelude-bridge'";
    let held = open(by_trusted.clone()).await.unwrap();
    assert_eq!(server.ask(encrypted), "3");
    drop(held);

    let said = refused(by_wrong).await;
    assert!(
        matches!(&said, OpenError::Unusable(why) if why.contains("UnknownIssuer")),
        "{said}"
    );
    let named = Options {
        hosts: vec![("localhost".to_owned(), server.port())],
        ..by_trusted.clone()
    };
    let said = refused(named).await;
    assert!(
        matches!(&said, OpenError::Unusable(why) if why.contains("localhost")),
        "{said}"
    );

    // The password is proved together with the certificate (SCRAM-SHA-256-PLUS).
    let secret = |options: &Options, password: &str| Options {
        user: "secret".to_owned(),
        password: Some(Secret::new(password)),
        ..options.clone()
    };
    append_all(
        &open(secret(&by_trusted, "word")).await.unwrap().sequencer,
        3..=4,
    )
    .await;
    assert!(matches!(
        refused(secret(&by_trusted, "other")).await,
        OpenError::Unusable(_)
    ));
    let said = refused(secret(&plain, "word")).await;
    assert!(
        matches!(&said, OpenError::Unusable(why) if why.contains("pg_hba.conf")),
        "{said}"
    );

    let writer = |options: &Options| Options {
        user: "writer".to_owned(),
        ..options.clone()
    };
    append_all(&open(writer(&with_writer)).await.unwrap().sequencer, 5..=6).await;
    for other in [&by_trusted, &with_stranger] {
        let said = refused(writer(other)).await;
        assert!(matches!(&said, OpenError::Unusable(_)), "{said}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let directory = std::env::temp_dir().join("prelude-bridge-no-such-directory");
    let tls = |authority: Option<PathBuf>, certificate| Options {
        tls: TlsMode::Required {
            authority,
            certificate,
        },
        ..local(1)
    };
    let missing = directory.join("missing.crt");
    let said = refused(tls(Some(missing.clone()), None)).await;
    assert!(
        matches!(&said, OpenError::Options(why) if why.contains("missing.crt")),
        "{said}"
    );
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let said = refused(tls(Some(here.clone()), None)).await;
    assert!(
        matches!(&said, OpenError::Options(why) if why.contains("no PEM section")),
        "{said}"
    );
    let said = refused(tls(None, Some((here, missing)))).await;
    assert!(matches!(&said, OpenError::Options(_)), "{said}");
}
