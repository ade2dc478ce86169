//! The lab: real containerd daemons, a real registry, a faulty registry, and images made by code.
//!
//! Everything here is private to one test: own sockets, own roots, loopback only, and nothing is
//! left behind when the value is dropped. Nothing is ever skipped: a missing prerequisite fails
//! the test with the command that brings it (`tests/setup`).
//!
//! ```text
//! tests/setup                                  what the lab needs (idempotent; `make test` runs it)
//! cargo build -p edgepull                      the program under test (or name one: EDGEPULL_BIN)
//! cargo test -p edgepull-tests                 all of it, as root
//! cargo test -p edgepull-tests --test lab      the lab alone: needs no edgepull
//! cargo test -p edgepull-tests --test wild     the table of what registries do; EDGEPULL_WILD=word
//!                                              runs the rows whose names have that word
//! ```
//!
//! - [`tools`]: where things are; run directories; what a killed earlier run left is swept.
//! - [`process`]: run a command, keep its output; end processes by id.
//! - [`containerd`]: a private daemon of each supported version, with its `ctr`.
//! - [`docker`]: a private dockerd over a private containerd (containerd image store).
//! - [`registry`]: Debian's docker-registry on a free port; [`http`] is the client that pushes.
//! - [`faulty`]: a registry that misbehaves by script and writes down every request.
//! - [`fault_proxy`]: cuts, resets and stalls connections to a real server, and reads along.
//! - [`pki`], [`tls_front`], [`token_server`], [`forward_proxy`]: private authorities, TLS before any
//!   server, signed tokens for the real registry, a site's proxy.
//! - [`shaped`]: a link with rate, delay and loss between two network namespaces.
//! - [`image`]: deterministic OCI layouts of every shape the scenarios need.
//! - [`scene`]: a registry with an image and a daemon, ready to pull; [`on_each_containerd`].
//! - [`sysbox`]: a machine in namespaces, with systemd, that can lose its power.
//! - [`device`]: such a machine with the package installed.
//! - [`tree`]: what a snapshot is made of, to the attribute.
//! - [`shims`]: containers that wait, by whichever runtime shim, and what their shims weigh.
//! - [`target`]: the files of `dist/`, each on the CPU that it is meant for.
//! - [`dock`]: a daemon with the shim under test, called by the Task API itself.
//! - [`cri`]: the same daemon with pods, spoken to as kubelet does.
//! - [`edgepull`]: the program under test: run it, parse its report, weigh it; [`agent`] as a
//!   daemon.
//! - [`weight`]: memory, processor time and wake-ups of a process.
#![allow(
    clippy::unwrap_used,
    reason = "this crate is a test: a panic with a position is the failure report"
)]

pub mod agent;
pub mod containerd;
pub mod cri;
pub mod device;
pub mod disk;
pub mod dock;
pub mod docker;
pub mod edgepull;
pub mod emulated;
pub mod fault_proxy;
pub mod faulty;
pub mod forward_proxy;
pub mod http;
pub mod image;
mod net;
pub mod pki;
pub mod process;
pub mod registry;
pub mod scene;
pub mod shaped;
pub mod shims;
pub mod smoking;
pub mod sysbox;
pub mod target;
pub mod tls_front;
pub mod token_server;
pub mod tools;
pub mod tree;
pub mod weight;
