//! TLS in front of a server that has none: the client's bytes arrive there in the clear.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::net::{self, would_block};
use crate::pki::Identity;

/// A running front; gone when dropped.
#[derive(Debug)]
pub struct TlsFront {
    host: String,
    stop: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

/// How long one direction is listened to before the other has its turn.
const TURN: Duration = Duration::from_millis(1);

impl TlsFront {
    /// Opens `identity`'s door on `listener`; behind it is `target`. With `clients`, only who has
    /// a certificate of that authority gets in.
    #[track_caller]
    pub fn start(
        listener: TcpListener,
        target: &str,
        identity: &Identity,
        clients: Option<&std::path::Path>,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_file(authority).unwrap())
                    .unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&identity.cert).unwrap()],
                PrivateKeyDer::from_pem_file(&identity.key).unwrap(),
            )
            .unwrap();
        let config = Arc::new(config);
        let host = listener
            .local_addr()
            .expect("a listener has an address")
            .to_string();
        listener
            .set_nonblocking(true)
            .expect("a socket can be polled");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, target) = (Arc::clone(&stop), target.to_owned());
        let acceptor = std::thread::spawn(move || {
            net::accept(&listener, &stopped, |client| {
                let (config, stop, target) =
                    (Arc::clone(&config), Arc::clone(&stopped), target.clone());
                std::thread::spawn(move || {
                    // A client that does not like our certificate: its own affair.
                    let _ended = join(client, &target, config, &stop);
                });
            });
        });
        Self {
            host,
            stop,
            acceptor: Some(acceptor),
        }
    }

    /// `address:port`.
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

fn join(
    client: TcpStream,
    target: &str,
    config: Arc<ServerConfig>,
    stop: &AtomicBool,
) -> io::Result<()> {
    client.set_nodelay(true)?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut tls = StreamOwned::new(connection, client);
    tls.sock.set_read_timeout(Some(Duration::from_secs(10)))?;
    while tls.conn.is_handshaking() {
        tls.conn.complete_io(&mut tls.sock)?;
    }
    let mut server = TcpStream::connect(target)?;
    server.set_nodelay(true)?;
    server.set_read_timeout(Some(TURN))?;
    tls.sock.set_read_timeout(Some(TURN))?;
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match tls.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => server.write_all(&buffer[..n])?,
            Err(e) if would_block(&e) => {}
            Err(e) => return Err(e),
        }
        loop {
            match server.read(&mut buffer) {
                Ok(0) => {
                    tls.conn.send_close_notify();
                    return tls.flush();
                }
                Ok(n) => tls.write_all(&buffer[..n])?,
                Err(e) if would_block(&e) => break,
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// A loopback address of its own on port 443: clients speak TLS there without being told to.
#[track_caller]
pub fn listen_443() -> TcpListener {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id();
    for _ in 0..200 {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        // 127.16.0.0 and up; the process decides where it begins.
        let [low, high] = [pid & 0xff, 16 + (pid >> 8) % 200];
        let address = format!("127.{high}.{low}.{}:443", 1 + n % 250);
        if let Ok(listener) = TcpListener::bind(&address) {
            return listener;
        }
    }
    panic!("no loopback address has port 443 free");
}

/// Such an address, for a server of its own: nobody listens there right now.
#[track_caller]
pub fn free_443() -> String {
    let address = listen_443().local_addr();
    address.expect("a listener has an address").to_string()
}
