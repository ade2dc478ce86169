//! The client against a scripted server.

mod auth;
mod blobs;
mod counts;
mod failures;
mod manifests;
mod mirrors;
mod resume;
mod secrets;
mod tls;

use std::time::Duration;

use super::{
    Client, Credentials, Policy, Repo, Settings,
    test_server::{Received, Reply, TestServer},
};
use crate::oci::{Descriptor, Digest, MediaType, Reference};

/// An OCI manifest without layers.
const MANIFEST: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;

fn quick() -> Settings {
    Settings {
        read_timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(5),
        system_proxy: false,
        retry: Policy {
            base: Duration::from_millis(2),
            ..Policy::default()
        },
        ..Settings::default()
    }
}

/// For servers that fall silent; only there, because a busy machine is silent, too.
fn impatient() -> Settings {
    Settings {
        read_timeout: Duration::from_millis(400),
        stall_timeout: Duration::from_millis(400),
        ..quick()
    }
}

fn with(credentials: Credentials) -> Settings {
    Settings {
        credentials,
        ..quick()
    }
}

fn client(settings: Settings) -> Client {
    Client::new(settings)
}

/// `lib/app` at the server; `suffix` is `:tag` or `@digest`.
fn repo(client: &Client, server: &TestServer, suffix: &str) -> Repo {
    let text = format!("{}/lib/app{suffix}", server.authority());
    client.repository(&Reference::parse(&text).expect("a reference"))
}

fn layer(content: &[u8]) -> Descriptor {
    Descriptor::new(
        MediaType::parse("application/vnd.oci.image.layer.v1.tar"),
        Digest::of(content),
        content.len() as u64,
    )
}

fn manifest() -> Reply {
    Reply::new(200)
        .with("content-type", MediaType::OCI_MANIFEST)
        .with("docker-content-digest", Digest::of(MANIFEST.as_bytes()))
        .body(MANIFEST)
}

fn is_token(request: &Received) -> bool {
    request.path.starts_with("/token")
}
