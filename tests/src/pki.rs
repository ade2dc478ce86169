//! A private certificate authority, made anew for each use: server and client certificates that
//! are good, past, not yet valid or for another name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::process;
use crate::tools::{Lab, RunDir};

/// From when to when a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// 2020 to 2049.
    Now,
    /// 2020 to 2021.
    Past,
    /// From 2045 on: what a device without a clock makes of every certificate.
    Future,
}

/// A certificate and its key, PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key (PKCS #8).
    pub key: PathBuf,
}

/// An authority.
#[derive(Debug)]
pub struct Authority {
    dir: RunDir,
    /// How many it has issued. Its files are written by one caller at a time.
    issued: Mutex<u32>,
}

const CONFIG: &str = "\
[ca]
default_ca = lab
[lab]
database = DIR/index.txt
serial = DIR/serial
new_certs_dir = DIR
certificate = DIR/ca.pem
private_key = DIR/ca.key
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
[req]
distinguished_name = dn
prompt = no
[dn]
commonName = lab
[v3_ca]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,digitalSignature
subjectKeyIdentifier = hash
";

impl Authority {
    /// A new one; nobody else trusts it.
    #[track_caller]
    pub fn new() -> Self {
        // Another name each: a verifier looks authorities up by name.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let dir = Lab::get().run_dir("pki");
        let at = dir.path().display().to_string();
        fs::write(dir.path().join("ca.cnf"), CONFIG.replace("DIR", &at)).unwrap();
        fs::write(dir.path().join("index.txt"), "").unwrap();
        fs::write(dir.path().join("serial"), "01\n").unwrap();
        let authority = Self {
            dir,
            issued: Mutex::default(),
        };
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let subject = format!("/CN=edgepull lab authority {n}");
        authority.key("ca.key");
        authority.openssl(&[
            "req",
            "-x509",
            "-new",
            "-key",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "3650",
            "-subj",
            &subject,
            "-config",
            "ca.cnf",
            "-extensions",
            "v3_ca",
        ]);
        authority
    }

    #[track_caller]
    fn openssl(&self, args: &[&str]) {
        let mut command = Command::new(Lab::get().installed("openssl"));
        process::run(command.args(args).current_dir(self.dir.path())).ok();
    }

    #[track_caller]
    fn key(&self, name: &str) {
        self.openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            name,
        ]);
    }

    /// Its own certificate: what a client has to trust.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The authority's certificate and key: a token server signs with them.
    pub fn identity(&self) -> Identity {
        Identity {
            cert: self.certificate(),
            key: self.dir.path().join("ca.key"),
        }
    }

    /// A certificate for a server or a client (`DNS:…`, `IP:…`), in files that no other
    /// one has.
    #[track_caller]
    pub fn issue(&self, name: &str, alternatives: &[&str], validity: Validity) -> Identity {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        *issued += 1;
        let file = |suffix: &str| format!("{name}-{issued}.{suffix}");
        let (key, request, cert) = (file("key"), file("csr"), file("pem"));
        self.key(&key);
        let subject = format!("/CN={name}");
        let alternatives = format!("subjectAltName={}", alternatives.join(","));
        self.openssl(&[
            "req",
            "-new",
            "-key",
            &key,
            "-out",
            &request,
            "-subj",
            &subject,
            "-config",
            "ca.cnf",
            "-addext",
            &alternatives,
            "-addext",
            "extendedKeyUsage=serverAuth,clientAuth",
        ]);
        let (start, end) = match validity {
            Validity::Now => ("20200101000000Z", "20491231235959Z"),
            Validity::Past => ("20200101000000Z", "20210101000000Z"),
            Validity::Future => ("20450101000000Z", "20491231235959Z"),
        };
        self.openssl(&[
            "ca",
            "-batch",
            "-notext",
            "-config",
            "ca.cnf",
            "-startdate",
            start,
            "-enddate",
            end,
            "-in",
            &request,
            "-out",
            &cert,
        ]);
        let at = |file: &str| self.dir.path().join(file);
        Identity {
            cert: at(&cert),
            key: at(&key),
        }
    }

    /// Where it keeps its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
