//! Certificates that somebody else made: the `openssl` command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use jiff::{SignedDuration, Timestamp};
use tempfile::TempDir;

/// From and to, for what these tests outlive never.
const ALWAYS: [&str; 2] = ["20200101000000Z", "20450101000000Z"];

/// An issuer, and the directory that everything it makes is in.
pub(crate) struct Authority {
    directory: TempDir,
}

/// The files of a certificate.
pub(crate) struct Issued {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-noenc",
            "-days",
            "2",
            "-subj",
            "/CN=test CA",
            "-keyout",
            &authority.path("ca.key"),
            "-out",
            &authority.path("ca.crt"),
        ]);
        let home = authority.directory.path().display();
        let configuration = format!(
            "[ca]\ndefault_ca=it\n[it]\ndatabase={home}/index\nnew_certs_dir={home}\n\
             certificate={home}/ca.crt\nprivate_key={home}/ca.key\ndefault_md=sha256\n\
             rand_serial=yes\nunique_subject=no\npolicy=any\n[any]\ncommonName=supplied\n"
        );
        fs::write(authority.path("ca.cnf"), configuration).unwrap();
        fs::write(authority.path("index"), "").unwrap();
        authority
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// For a server of this machine.
    pub(crate) fn server(&self, name: &str) -> Issued {
        let names = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        let extensions = format!("{names}\nextendedKeyUsage=serverAuth");
        self.issue(name, &["rsa:2048"], &extensions, ALWAYS)
    }

    /// For a server of this machine, but its time is over.
    pub(crate) fn expired_server(&self, name: &str) -> Issued {
        let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1";
        let past = ["20200101000000Z", "20200201000000Z"];
        self.issue(name, &["rsa:2048"], extensions, past)
    }

    /// The issuer's own certificate and key, as one who knows no better gives them to a server.
    pub(crate) fn itself(&self) -> Issued {
        Issued {
            certificate: self.certificate(),
            key: self.directory.path().join("ca.key"),
        }
    }

    /// For a client with this URI.
    pub(crate) fn client(&self, name: &str) -> Issued {
        self.client_at(name, ALWAYS[0], ALWAYS[1])
    }

    /// The same, but its time is over.
    pub(crate) fn expired_client(&self, name: &str) -> Issued {
        self.client_at(name, "20200101000000Z", "20200201000000Z")
    }

    /// The same, whose time is over after so many seconds.
    pub(crate) fn brief_client(&self, name: &str, seconds: i64) -> Issued {
        let end = Timestamp::now() + SignedDuration::from_secs(seconds);
        self.client_at(name, ALWAYS[0], &end.strftime("%Y%m%d%H%M%SZ").to_string())
    }

    /// For a client with this common name and this subject alternative name, if any.
    pub(crate) fn client_called(&self, name: &str, common: &str, other: Option<&str>) -> Issued {
        let usage = "extendedKeyUsage=clientAuth";
        let extensions = match other {
            Some(other) => format!("subjectAltName={other}\n{usage}"),
            None => usage.to_owned(),
        };
        let algorithm = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        self.issue_to(name, common, &algorithm, &extensions, ALWAYS)
    }

    fn client_at(&self, name: &str, from: &str, to: &str) -> Issued {
        let uri = format!("subjectAltName=URI:spiffe://example.com/{name}");
        let extensions = format!("{uri}\nextendedKeyUsage=clientAuth");
        let algorithm = ["ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        self.issue(name, &algorithm, &extensions, [from, to])
    }

    fn issue(&self, name: &str, algorithm: &[&str], extensions: &str, valid: [&str; 2]) -> Issued {
        self.issue_to(name, name, algorithm, extensions, valid)
    }

    fn issue_to(
        &self,
        name: &str,
        common: &str,
        algorithm: &[&str],
        extensions: &str,
        [from, to]: [&str; 2],
    ) -> Issued {
        let file = |end: &str| self.path(&format!("{name}.{end}"));
        let (key, request, certificate) = (file("key"), file("csr"), file("crt"));
        let extension_file = file("ext");
        fs::write(&extension_file, extensions).unwrap();
        let subject = format!("/CN={}", common.replace('/', "\\/"));
        let new = ["req", "-new", "-noenc", "-subj", &subject, "-newkey"];
        openssl(&[&new, algorithm, &["-keyout", &key, "-out", &request]].concat());
        let configuration = self.path("ca.cnf");
        let ca = ["ca", "-batch", "-notext", "-config", &configuration];
        let valid = ["-startdate", from, "-enddate", to];
        let files = [
            "-extfile",
            &extension_file,
            "-in",
            &request,
            "-out",
            &certificate,
        ];
        openssl(&[&ca[..], &valid, &files].concat());
        Issued {
            certificate: certificate.into(),
            key: key.into(),
        }
    }

    fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }
}

impl Issued {
    /// Puts both files in the place of others, one after the other.
    pub(crate) fn replace(&self, other: &Self) {
        replace(&self.certificate, &other.certificate);
        replace(&self.key, &other.key);
    }
}

/// As a tool that renews certificates does: beside, and then renamed.
pub(crate) fn replace(from: &Path, to: &Path) {
    let beside = to.with_extension("new");
    fs::copy(from, &beside).unwrap();
    fs::rename(beside, to).unwrap();
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {said}");
}
