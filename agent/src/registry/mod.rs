//! Manifests and blobs from OCI registries.
//!
//! A [`Client`] is made once for a call or a daemon; [`Client::repository`] binds it
//! to one repository, and that is a [`crate::source::Source`]. One request takes this
//! way: `repo` (what is wanted, and what an answer means) → `auth` (who asks) →
//! `transport` (retries, redirects, counting). A blob is a stream of `resume`, which asks
//! for the rest when an answer breaks off. Everything that arrives is bounded
//! before it is held, and verified before it is believed.

mod aes;
mod announced;
mod asking;
mod auth;
mod blob;
mod body;
mod challenge;
mod client;
mod clients;
mod counts;
mod credentials;
mod demands;
mod docker_config;
mod endpoint;
mod failure;
mod health;
mod helper;
mod hosts;
mod notices;
mod pace;
mod proxy;
mod quota;
mod range;
mod repo;
mod resume;
mod retry;
mod said;
mod tls;
mod token;
mod transport;

#[cfg(test)]
mod test_server;
#[cfg(test)]
mod tests;

pub use client::{Client, Settings};
pub use counts::{Counts, Origin};
pub use credentials::{Credentials, Environment};
pub use endpoint::{Capabilities, Endpoint};
pub use pace::parse_rate;
pub use proxy::{Via, Ways};
pub use quota::Quota;
pub use repo::Repo;
pub use retry::Policy;

/// The parsers of foreign bytes, for fuzzing; not an interface.
#[doc(hidden)]
pub mod fuzzing {
    /// Reads the value of a `WWW-Authenticate` header.
    pub fn www_authenticate(text: &str) {
        drop(super::challenge::parse([text]));
    }

    /// Reads the answer of a token server.
    pub fn token_response(bytes: &[u8]) {
        drop(super::token::parse(bytes));
    }

    /// Reads a docker `config.json` and looks a repository up in it.
    pub fn docker_config(bytes: &[u8]) {
        if let Ok(config) = super::docker_config::DockerConfig::parse(bytes) {
            drop(config.entry("docker.io", "library/nginx"));
            drop(config.helper("docker.io"));
        }
    }

    /// Reads the value of a `Content-Range` header.
    pub fn content_range(text: &str) {
        let _ = super::range::ContentRange::parse(text);
    }

    /// Reads a `hosts.toml`.
    pub fn hosts_toml(text: &str) {
        drop(super::hosts::parse(text));
    }

    /// Reads the headers about rate limits, one value a line.
    pub fn rate_limit(text: &str) {
        super::quota::fuzz(text);
    }

    /// Reads a transfer rate.
    pub fn limit_rate(text: &str) {
        drop(super::parse_rate(text));
    }

    /// Reads the body of a failed request.
    pub fn error_body(bytes: &[u8]) {
        drop(super::said::Said::parse(bytes));
    }
}
