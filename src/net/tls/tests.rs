//! Handshakes over real sockets, with certificates made for each test.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{
    TlsConnector, client,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use super::{reload::Look, *};
use crate::net::slots::Standing;

/// An issuer of certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// For the port.
    fn server(&self) -> Pair {
        self.issue(|params| params.subject_alt_names = vec![dns("localhost")])
    }

    /// For a client with this common name and no other.
    fn client(&self, name: &str) -> Pair {
        self.issue(|params| common_name(params, name))
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn common_name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CommonName, name);
}

fn certificate(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
}

/// The files of a port.
struct Files {
    directory: TempDir,
    authority: Authority,
    options: Options,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let options = Options {
            certificate: directory.path().join("tls.crt"),
            key: directory.path().join("tls.key"),
            client_ca: None,
            client_certificates: ClientCertificates::Required,
            protocols: HTTP2_AND_HTTP1,
            handshake_timeout: Duration::from_secs(5),
            handshakes: handshakes::Limits {
                at_once: 1_000,
                per_second: 1_000,
                per_address_per_second: 1_000,
            },
        };
        let files = Self {
            directory,
            authority,
            options,
        };
        files.write(&files.authority.server());
        files
    }

    fn asking_for_certificates(mut self) -> Self {
        let path = self.directory.path().join("client-ca.crt");
        fs::write(&path, &self.authority.pem).unwrap();
        self.options.client_ca = Some(path);
        self
    }

    fn write(&self, pair: &Pair) {
        fs::write(&self.options.certificate, &pair.certificate).unwrap();
        fs::write(&self.options.key, &pair.key).unwrap();
    }

    fn open(&self) -> (Port, Watch) {
        let metrics = Arc::new(Metrics::new());
        let opened = Acceptor::open("test", self.options.clone(), Arc::clone(&metrics));
        let (acceptor, watch) = opened.unwrap();
        (Port { acceptor, metrics }, watch)
    }

    fn fault(&self) -> String {
        let opened = Acceptor::open("test", self.options.clone(), Metrics::new().into());
        opened.unwrap_err().to_string()
    }

    /// A client that trusts the authority.
    fn connector(&self, shown: Option<&Pair>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                let chain = vec![certificate(pair)];
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config).into()
    }
}

struct Port {
    acceptor: Acceptor,
    metrics: Arc<Metrics>,
}

type Accepted = Option<(TlsStream<TcpStream>, Option<ClientCertificate>)>;

impl Port {
    /// What the port makes of a connection that `speak` is at the other end of.
    async fn accept<F: Future>(&self, speak: impl FnOnce(TcpStream) -> F) -> (Accepted, F::Output) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outgoing = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (incoming, peer) = listener.accept().await.unwrap();
        let newcomer = Newcomer {
            peer,
            standing: Standing::default(),
            is_exempt: false,
            is_known: false,
        };
        tokio::join!(
            self.acceptor.accept(incoming, &newcomer),
            speak(outgoing.unwrap())
        )
    }

    async fn shake(
        &self,
        connector: &TlsConnector,
    ) -> (Accepted, io::Result<client::TlsStream<TcpStream>>) {
        let name = ServerName::try_from("localhost").unwrap();
        self.accept(|stream| connector.connect(name, stream)).await
    }

    fn failures(&self, reason: &str) -> bool {
        let line = format!(r#"handshake_failures_total{{listener="test",reason="{reason}"}} 1"#);
        self.metrics.render().contains(&line)
    }
}

/// The certificate that a client was shown.
fn shown(stream: &client::TlsStream<TcpStream>) -> CertificateDer<'static> {
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    chain[0].clone().into_owned()
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_protocol_is_agreed_on() {
    let files = Files::new();
    let (port, _watch) = files.open();
    let (accepted, connected) = port.shake(&files.connector(None)).await;
    let ((mut server, identity), mut client) = (accepted.unwrap(), connected.unwrap());
    assert_eq!(identity, None);
    assert_eq!(server.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    client.write_all(b"ping").await.unwrap();
    let mut read = [0; 4];
    server.read_exact(&mut read).await.unwrap();
    server.write_all(&read).await.unwrap();
    client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
}

#[tokio::test]
async fn a_client_is_who_its_certificate_says() {
    let files = Files::new().asking_for_certificates();
    let (port, _watch) = files.open();
    let pair = files.authority.client("billing");
    let (accepted, _connected) = port.shake(&files.connector(Some(&pair))).await;
    let certificate = accepted.unwrap().1.unwrap();
    assert_eq!(
        certificate.identity,
        Some(Identity::new(NameKind::CommonName, "billing"))
    );
    assert!(certificate.expires_at > Timestamp::now());
}

#[tokio::test]
async fn who_shows_no_certificate_is_refused_unless_it_is_optional() {
    let mut files = Files::new().asking_for_certificates();
    let (port, _watch) = files.open();
    let (accepted, _connected) = port.shake(&files.connector(None)).await;
    assert!(accepted.is_none() && port.failures("client_certificate"));

    files.options.client_certificates = ClientCertificates::Optional;
    let (port, _watch) = files.open();
    let (accepted, _connected) = port.shake(&files.connector(None)).await;
    assert_eq!(accepted.unwrap().1, None);
}

#[tokio::test]
async fn certificates_of_strangers_and_expired_ones_are_refused_even_where_none_is_needed() {
    let mut files = Files::new().asking_for_certificates();
    files.options.client_certificates = ClientCertificates::Optional;
    let expired = files.authority.issue(|params| {
        common_name(params, "billing");
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    });
    for pair in [Authority::new().client("billing"), expired] {
        let (port, _watch) = files.open();
        let (accepted, _connected) = port.shake(&files.connector(Some(&pair))).await;
        assert!(accepted.is_none() && port.failures("client_certificate"));
    }
}

#[tokio::test]
async fn half_a_handshake_is_given_up() {
    let mut files = Files::new();
    files.options.handshake_timeout = Duration::from_millis(50);
    let (port, _watch) = files.open();
    let (accepted, mut stream) = port
        .accept(|mut stream| async {
            // The beginning of a ClientHello.
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
            stream
        })
        .await;
    assert!(accepted.is_none() && port.failures("timeout"));
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn what_is_no_tls_is_counted_apart_from_who_gave_up() {
    let files = Files::new();
    let (port, _watch) = files.open();
    let (accepted, _stream) = port
        .accept(|mut stream| async {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            stream
        })
        .await;
    assert!(accepted.is_none() && port.failures("not_tls"));
    let (accepted, ()) = port.accept(|stream| async { drop(stream) }).await;
    assert!(accepted.is_none() && port.failures("aborted"));
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_certificate_is_counted_as_having_given_up() {
    let (files, others) = (Files::new(), Files::new());
    let (port, _watch) = files.open();
    let (accepted, connected) = port.shake(&others.connector(None)).await;
    assert!(accepted.is_none() && connected.is_err());
    assert!(port.failures("aborted"));
}

#[tokio::test]
async fn new_connections_get_the_new_certificate_and_old_ones_go_on() {
    let files = Files::new();
    let (port, mut watch) = files.open();
    let (old_server, old_client) = port.shake(&files.connector(None)).await;
    let (mut old_server, mut old_client) = (old_server.unwrap().0, old_client.unwrap());
    assert_eq!(watch.look(), Look::Unchanged);

    let pair = files.authority.server();
    files.write(&pair);
    assert_eq!(watch.look(), Look::Changed);
    assert_eq!(watch.look(), Look::Replaced);
    assert_eq!(watch.look(), Look::Unchanged);
    let (_, client) = port.shake(&files.connector(None)).await;
    assert_eq!(shown(&client.unwrap()), certificate(&pair));

    old_server.write_all(b"still here").await.unwrap();
    let mut read = [0; 10];
    old_client.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still here");
}

#[tokio::test]
async fn a_pair_that_does_not_match_waits_for_its_other_half() {
    let files = Files::new();
    let (port, mut watch) = files.open();
    let first = certificate(&Pair {
        certificate: fs::read_to_string(&files.options.certificate).unwrap(),
        key: String::new(),
    });
    let pair = files.authority.server();
    fs::write(&files.options.certificate, &pair.certificate).unwrap();
    assert_eq!(watch.look(), Look::Faulty);
    let (_, client) = port.shake(&files.connector(None)).await;
    assert_eq!(shown(&client.unwrap()), first);

    fs::write(&files.options.key, &pair.key).unwrap();
    assert_eq!(watch.look(), Look::Changed);
    assert_eq!(watch.look(), Look::Replaced);
    let (_, client) = port.shake(&files.connector(None)).await;
    assert_eq!(shown(&client.unwrap()), certificate(&pair));
}

#[tokio::test]
async fn files_that_vanish_or_break_change_nothing_until_they_are_mended() {
    let files = Files::new();
    let (port, mut watch) = files.open();
    let good = fs::read(&files.options.key).unwrap();
    fs::remove_file(&files.options.key).unwrap();
    assert_eq!((watch.look(), watch.look()), (Look::Faulty, Look::Faulty));
    fs::write(&files.options.key, "nonsense").unwrap();
    assert_eq!(watch.look(), Look::Faulty);
    let (accepted, _connected) = port.shake(&files.connector(None)).await;
    assert!(accepted.is_some());
    fs::write(&files.options.key, good).unwrap();
    assert_eq!(watch.look(), Look::Unchanged);
}

#[tokio::test]
async fn links_that_are_turned_to_another_directory_are_followed() {
    let files = Files::new();
    let root = files.directory.path();
    let revision = |name: &str, pair: &Pair| {
        let directory = root.join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("tls.crt"), &pair.certificate).unwrap();
        fs::write(directory.join("tls.key"), &pair.key).unwrap();
    };
    // As Kubernetes mounts a secret: tls.crt -> ..data/tls.crt, ..data -> ..1
    revision("..1", &files.authority.server());
    std::os::unix::fs::symlink("..1", root.join("..data")).unwrap();
    for name in ["tls.crt", "tls.key"] {
        fs::remove_file(root.join(name)).unwrap();
        std::os::unix::fs::symlink(Path::new("..data").join(name), root.join(name)).unwrap();
    }
    let (port, mut watch) = files.open();
    let pair = files.authority.server();
    revision("..2", &pair);
    std::os::unix::fs::symlink("..2", root.join("..new")).unwrap();
    fs::rename(root.join("..new"), root.join("..data")).unwrap();
    assert_eq!(watch.look(), Look::Changed);
    assert_eq!(watch.look(), Look::Replaced);
    let (_, client) = port.shake(&files.connector(None)).await;
    assert_eq!(shown(&client.unwrap()), certificate(&pair));
}

#[tokio::test]
async fn another_issuer_of_clients_counts_from_the_next_connection_on() {
    let files = Files::new().asking_for_certificates();
    let (port, mut watch) = files.open();
    let successor = Authority::new();
    let pair = successor.client("billing");
    let (accepted, _connected) = port.shake(&files.connector(Some(&pair))).await;
    assert!(accepted.is_none());
    let path = files.options.client_ca.clone().unwrap();
    fs::write(path, &successor.pem).unwrap();
    assert_eq!(watch.look(), Look::Changed);
    assert_eq!(watch.look(), Look::Replaced);
    let (accepted, _connected) = port.shake(&files.connector(Some(&pair))).await;
    assert!(accepted.is_some());
}

#[tokio::test]
async fn files_that_are_being_written_are_not_used_until_they_stay_as_they_are() {
    let files = Files::new().asking_for_certificates();
    let (port, mut watch) = files.open();
    let (one, other) = (Authority::new(), Authority::new());
    let path = files.options.client_ca.clone().unwrap();
    let first = fs::read_to_string(&path).unwrap();
    // Each piece of the new list that ends with a certificate is a valid list.
    let whole = format!("{}{}{first}", one.pem, other.pem);
    for written in [one.pem.clone(), format!("{}{}", one.pem, other.pem)] {
        fs::write(&path, written).unwrap();
        assert_eq!(watch.look(), Look::Changed);
    }
    // What it was for a moment before does not count either.
    fs::write(&path, &first).unwrap();
    assert_eq!(watch.look(), Look::Unchanged);
    fs::write(&path, &whole).unwrap();
    assert_eq!(watch.look(), Look::Changed);
    fs::remove_file(&path).unwrap();
    assert_eq!(watch.look(), Look::Faulty);
    fs::write(&path, &whole).unwrap();
    assert_eq!(watch.look(), Look::Changed);
    let pair = one.client("billing");
    let (accepted, _connected) = port.shake(&files.connector(Some(&pair))).await;
    assert!(accepted.is_none());
    assert_eq!(watch.look(), Look::Replaced);
    for authority in [&one, &other, &files.authority] {
        let pair = authority.client("billing");
        let (accepted, _connected) = port.shake(&files.connector(Some(&pair))).await;
        assert!(accepted.is_some());
    }
}

#[test]
fn every_fault_names_the_file_and_what_to_do() {
    let write = |path: &PathBuf, text: &str| fs::write(path, text).unwrap();
    let told = |files: &Files, path: &Path, words: &[&str]| {
        let said = files.fault();
        assert!(said.starts_with("TLS of the test port: "), "{said}");
        assert!(said.contains(&path.display().to_string()), "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
        assert!(!said.contains("c2VjcmV0"), "{said}");
    };
    let files = Files::new();
    let Options {
        certificate, key, ..
    } = &files.options;
    fs::remove_file(certificate).unwrap();
    told(&files, certificate, &["cannot be read", "check the path"]);

    files.write(&files.authority.server());
    write(certificate, "hello");
    told(
        &files,
        certificate,
        &["CERTIFICATE", "none in it", "openssl x509"],
    );
    write(certificate, "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n");
    told(&files, certificate, &["cut off"]);
    write(
        certificate,
        "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n",
    );
    told(&files, certificate, &["no X.509 certificate"]);

    files.write(&files.authority.server());
    write(
        key,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    told(&files, key, &["is encrypted", "openssl pkey"]);
    write(
        key,
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
    );
    told(&files, key, &["cannot be used"]);

    write(key, &files.authority.server().key);
    told(&files, key, &["does not belong", "issued for"]);

    let files = Files::new().asking_for_certificates();
    let client_ca = files.options.client_ca.clone().unwrap();
    write(&client_ca, "");
    told(&files, &client_ca, &["client CA", "none in it"]);
}

#[test]
fn a_file_without_end_is_not_read_to_its_end() {
    let mut files = Files::new();
    files.options.certificate = "/dev/zero".into();
    assert!(files.fault().contains("larger than"));
}

#[test]
fn a_certificate_is_known_by_its_names_and_dates() {
    let files = Files::new();
    files.write(&files.authority.issue(|params| {
        params.subject_alt_names = vec![
            dns("bridge.example"),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 2, 1);
    }));
    let leaf = examine(&files.options).unwrap();
    assert_eq!(leaf.names, ["bridge.example", "127.0.0.1"]);
    let at = |text: &str| leaf.complaint(text.parse().unwrap());
    assert_eq!(at("2020-01-15T00:00:00Z"), None);
    assert!(
        at("2019-12-31T23:59:59Z")
            .unwrap()
            .contains("not valid before 2020-01-01")
    );
    assert!(
        at("2020-02-01T00:00:01Z")
            .unwrap()
            .contains("expired at 2020-02-01")
    );
    // It is served all the same: clients say more about it than we could.
    let (_port, watch) = files.open();
    assert_eq!(watch.leaf(), &leaf);
}

#[test]
fn alternative_names_come_before_the_common_name_and_in_their_order() {
    let authority = Authority::new();
    let of = |names: Vec<SanType>| {
        let pair = authority.issue(|params| {
            common_name(params, "common");
            params.subject_alt_names = names;
        });
        Identity::of(&certificate(&pair)).map(|identity| identity.as_str().to_owned())
    };
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let email = || SanType::Rfc822Name("a@example.com".try_into().unwrap());
    let address = || SanType::IpAddress("2001:db8::1".parse().unwrap());
    let all = vec![
        address(),
        email(),
        dns("a.example"),
        uri("spiffe://a/b"),
        uri("spiffe://c"),
    ];
    assert_eq!(of(all).as_deref(), Some("uri:spiffe://a/b"));
    let some = vec![address(), email(), dns("a.example"), dns("b.example")];
    assert_eq!(of(some).as_deref(), Some("dns:a.example"));
    assert_eq!(
        of(vec![address(), email()]).as_deref(),
        Some("email:a@example.com")
    );
    assert_eq!(of(vec![address()]).as_deref(), Some("ip:2001:db8::1"));
    assert_eq!(of(vec![]).as_deref(), Some("cn:common"));
}

#[test]
fn a_certificate_counts_until_its_end_and_an_unreadable_one_not_at_all() {
    let authority = Authority::new();
    let until = |year| {
        let pair = authority.issue(|params| {
            params.not_after = rcgen::date_time_ymd(year, 2, 1);
        });
        ClientCertificate::of(&certificate(&pair)).expires_at
    };
    assert_eq!(until(2031).to_string(), "2031-02-01T00:00:00Z");
    assert_eq!(until(2060).to_string(), "2060-02-01T00:00:00Z");
    let unreadable = ClientCertificate::of(&CertificateDer::from(vec![0x30, 0]));
    assert_eq!(unreadable.expires_at, Timestamp::MIN);
}

#[test]
fn a_name_that_is_none_makes_nobody() {
    let authority = Authority::new();
    for name in ["", "two\nlines", "\u{1b}[2J", &"x".repeat(1025)] {
        let pair = authority.issue(|params| common_name(params, name));
        assert_eq!(Identity::of(&certificate(&pair)), None, "{name:?}");
    }
    let unnamed = authority.issue(|params| params.distinguished_name = Default::default());
    assert_eq!(Identity::of(&certificate(&unnamed)), None);
    assert_eq!(Identity::of(&CertificateDer::from(vec![0x30, 0])), None);
}

/// A client may say what it would like, and its handshake waits for its turn, or is refused for want of
/// one, before anything is signed for it.
#[tokio::test]
async fn handshakes_wait_for_their_turn_and_are_refused_without_one() {
    let delayed = |port: &Port| {
        let line = r#"tls_handshakes_delayed_total{listener="test"} 1"#;
        port.metrics.render().contains(line)
    };
    for (per_second, is_refused) in [(20, false), (1, true)] {
        let mut files = Files::new();
        files.options.handshake_timeout = Duration::from_secs(1);
        files.options.handshakes = handshakes::Limits {
            at_once: 1,
            per_second,
            per_address_per_second: per_second,
        };
        let (port, _watch) = files.open();
        let connector = files.connector(None);
        assert!(port.shake(&connector).await.0.is_some());
        let (second, _) = port.shake(&connector).await;
        assert_eq!(second.is_none(), is_refused);
        assert_eq!(port.failures("rate_limited"), is_refused);
        assert_eq!(delayed(&port), !is_refused);
    }
}
