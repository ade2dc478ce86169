//! A token server whose tokens a real registry takes: JSON web tokens, signed with ES256.

use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use crate::faulty::{Request, parse};
use crate::http::{base64, basic, find, read_head};
use crate::net;
use crate::pki::Identity;
use crate::registry::{ISSUER, SERVICE};

#[derive(Debug)]
struct Shared {
    certificate: String,
    key: EcdsaKeyPair,
    user: Option<(String, String)>,
    log: Mutex<Vec<Request>>,
    stop: AtomicBool,
}

/// The running server; gone when dropped.
#[derive(Debug)]
pub struct TokenServer {
    shared: Arc<Shared>,
    realm: String,
    acceptor: Option<JoinHandle<()>>,
}

impl TokenServer {
    /// Signs as `signer`; for that user only, if one is named.
    #[track_caller]
    pub fn start(signer: &Identity, user: Option<(&str, &str)>) -> Self {
        let certificate = CertificateDer::from_pem_file(&signer.cert).unwrap();
        let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::from_pem_file(&signer.key).unwrap() else {
            panic!("{} is no PKCS #8 key", signer.key.display());
        };
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            key.secret_pkcs8_der(),
            &SystemRandom::new(),
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("a listener has an address");
        listener
            .set_nonblocking(true)
            .expect("a socket can be polled");
        let shared = Arc::new(Shared {
            certificate: base64(&certificate),
            key,
            user: user.map(|(user, password)| (user.to_owned(), password.to_owned())),
            log: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let served = Arc::clone(&shared);
        let acceptor = std::thread::spawn(move || {
            net::accept(&listener, &served.stop, |client| {
                let shared = Arc::clone(&served);
                std::thread::spawn(move || {
                    let _ended = answer(&shared, client);
                });
            });
        });
        Self {
            shared,
            realm: format!("http://{address}/token"),
            acceptor: Some(acceptor),
        }
    }

    /// Its address.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        let log = self.shared.log.lock();
        log.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ended = acceptor.join();
        }
    }
}

fn answer(shared: &Shared, mut client: TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (first, headers) = read_head(&mut BufReader::new(client.try_clone()?))?;
    let mut request = parse(&first, headers);
    let welcome = shared.user.as_ref().is_none_or(|(user, password)| {
        find(&request.headers, "authorization") == Some(basic(user, password).as_str())
    });
    let (status, body) = if welcome {
        let scope = request.query.split('&').find_map(|pair| {
            let scope = pair.strip_prefix("scope=")?;
            Some(scope.replace("%3A", ":").replace("%2F", "/"))
        });
        let token = jwt(shared, scope.as_deref().unwrap_or_default());
        (200, json!({"token": token, "expires_in": 300}).to_string())
    } else {
        (401, "{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}".to_owned())
    };
    request.status = status;
    request.sent = body.len() as u64;
    shared
        .log
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(request);
    write!(
        client,
        "HTTP/1.1 {status} Lab\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// For a scope such as `repository:lab/app:pull`.
fn jwt(shared: &Shared, scope: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut words = scope.splitn(3, ':');
    let (kind, name) = (words.next(), words.next());
    let access: Vec<_> = match (kind, name) {
        (Some(kind), Some(name)) => vec![json!({"type": kind, "name": name, "actions": ["pull"]})],
        _ => Vec::new(),
    };
    let head = json!({"typ": "JWT", "alg": "ES256", "x5c": [shared.certificate]});
    let claims = json!({
        "iss": ISSUER, "sub": "lab", "aud": SERVICE, "exp": now + 300, "nbf": now - 60,
        "iat": now, "jti": format!("{now}"), "access": access,
    });
    let signed = format!(
        "{}.{}",
        base64url(head.to_string().as_bytes()),
        base64url(claims.to_string().as_bytes())
    );
    let signature = shared
        .key
        .sign(&SystemRandom::new(), signed.as_bytes())
        .expect("an ECDSA key signs");
    format!("{signed}.{}", base64url(signature.as_ref()))
}

fn base64url(bytes: &[u8]) -> String {
    base64(bytes)
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_")
}
