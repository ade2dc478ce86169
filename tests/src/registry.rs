//! A private docker-registry (distribution), as Debian builds it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use crate::faulty::Request;
use crate::http::{self, Body};
use crate::pki::Identity;
use crate::process;
use crate::tools::{Lab, RunDir};

/// User of a registry with basic authentication.
pub const USER: &str = "edge";
/// Its password.
pub const PASSWORD: &str = "pull-me";
/// `htpasswd -nbB edge pull-me`, at the lowest cost.
const HTPASSWD: &str = "edge:$2y$05$QacX6NZW6YY/JnNjVJeeyuiNx4U.eVBOej0ucbZiGipFWQX46WeVy\n";

/// The service that tokens are for.
pub const SERVICE: &str = "lab-registry";
/// Who gives them.
pub const ISSUER: &str = "lab-tokens";

/// What a registry wants to see before it serves.
#[derive(Debug, Clone)]
pub enum Door<'a> {
    /// Nothing.
    Open,
    /// [`USER`] and [`PASSWORD`] (basic).
    Password,
    /// A token of the server at `realm`, signed by `signer`.
    Tokens {
        /// The token server's address.
        realm: &'a str,
        /// The authority that signs the tokens.
        signer: &'a Path,
    },
    /// TLS on an address of the caller's; with `clients`, only for certificates of that authority.
    Tls {
        /// `address:port`.
        address: &'a str,
        /// Its certificate.
        identity: &'a Identity,
        /// Whose clients are let in.
        clients: Option<&'a Path>,
    },
}

/// A running registry; stopped and removed when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    host: String,
    auth: Option<String>,
    data: PathBuf,
    dir: RunDir,
}

impl Registry {
    /// One that anybody may use.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&Door::Open, None)
    }

    /// One that asks for [`USER`] and [`PASSWORD`] (basic).
    #[track_caller]
    pub fn start_with_password() -> Self {
        Self::with(&Door::Password, None)
    }

    /// Another registry over the same storage, with a door of its own. It must not outlive this
    /// one.
    #[track_caller]
    pub fn beside(&self, door: &Door<'_>) -> Self {
        Self::with(door, Some(&self.data))
    }

    #[track_caller]
    fn with(door: &Door<'_>, data: Option<&Path>) -> Self {
        // Another process may take the port between our look and the registry's: then again.
        for _ in 0..5 {
            if let Some(registry) = Self::attempt(door, data) {
                return registry;
            }
        }
        panic!("the registry does not come up");
    }

    fn attempt(door: &Door<'_>, data: Option<&Path>) -> Option<Self> {
        let lab = Lab::get();
        let dir = lab.run_dir("reg");
        let host = match door {
            Door::Tls { address, .. } => (*address).to_owned(),
            _ => format!("127.0.0.1:{}", free_port()),
        };
        let at = dir.path().display();
        let data = data.map_or_else(|| dir.path().join("data"), Path::to_path_buf);
        let mut config = format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: false\nstorage:\n  delete:\n    enabled: true\n  \
             filesystem:\n    rootdirectory: {}\n  maintenance:\n    uploadpurging:\n      enabled: false\n\
             http:\n  addr: {host}\n",
            data.display()
        );
        let more = match door {
            Door::Open => String::new(),
            Door::Password => {
                fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
                format!("auth:\n  htpasswd:\n    realm: lab\n    path: {at}/htpasswd\n")
            }
            Door::Tokens { realm, signer } => format!(
                "auth:\n  token:\n    realm: {realm}\n    service: {SERVICE}\n    issuer: {ISSUER}\n    rootcertbundle: {}\n",
                signer.display()
            ),
            Door::Tls {
                identity, clients, ..
            } => {
                let mut tls = format!(
                    "  tls:\n    certificate: {}\n    key: {}\n",
                    identity.cert.display(),
                    identity.key.display()
                );
                if let Some(clients) = clients {
                    let _infallible =
                        write!(tls, "    clientcas:\n      - {}\n", clients.display());
                }
                tls
            }
        };
        config.push_str(&more);
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut child = process::tied(lab.tool("docker-registry/usr/bin/docker-registry"))
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start docker-registry: {e}"));
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while std::time::Instant::now() < end {
            if !matches!(child.try_wait(), Ok(None)) {
                let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
                process::note(&format!("docker-registry ended: {log}"));
                return None;
            }
            let answers = if matches!(door, Door::Tls { .. }) {
                TcpStream::connect(&host).is_ok()
            } else {
                http::request(&host, "GET", "/v2/", &[], &Body::Empty)
                    .is_ok_and(|r| matches!(r.status, 200 | 401))
            };
            if answers {
                let password = matches!(door, Door::Password);
                return Some(Self {
                    child,
                    host,
                    auth: password.then(|| http::basic(USER, PASSWORD)),
                    data,
                    dir,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _killed = child.kill();
        let _status = child.wait();
        None
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The `Authorization` to send, if it wants one.
    pub fn authorization(&self) -> Option<&str> {
        self.auth.as_deref()
    }

    /// A full reference.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host)
    }

    /// The requests of its access log, without the headers that it does not write down. A body's
    /// bytes are those it handed to the kernel.
    pub fn requests(&self) -> Vec<Request> {
        self.log().lines().filter_map(logged).collect()
    }

    /// What the registry itself wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// A line of the combined log format: `… "GET /v2/… HTTP/1.1" 200 1234 …`.
fn logged(line: &str) -> Option<Request> {
    let (_, rest) = line.split_once("] \"")?;
    let (first, rest) = rest.split_once("\" ")?;
    if !first.contains(" HTTP/") {
        return None;
    }
    let mut numbers = rest.split(' ');
    let mut request = crate::faulty::parse(first, Vec::new());
    request.status = numbers.next()?.parse().ok()?;
    request.sent = numbers.next()?.parse().ok()?;
    Some(request)
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A port on which nobody listens right now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("loopback has free ports")
        .port()
}
