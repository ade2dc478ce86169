//! The command line: flags and verbs, nothing decided yet.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Exit codes, shown at the end of `--help` and in the man page.
const AFTER_HELP: &str = "\
Exit codes:
  0 done                 20 unauthorized          30 no_space
  1 internal             21 not_found             31 store_damaged
  2 usage                22 rate_limited          40 containerd_unavailable
  3 platform_missing     23 unavailable           41 agent_unavailable
 10 not_runnable         24 invalid_content      124 timeout
 11 mislabelled          25 unsupported          130 cancelled
 12 smoke_failed

Examples:
  edgepull detect                         what this host is and what it can run
  edgepull check nginx:1.27               does the reference offer this host an image?
  edgepull explain nginx:1.27             every entry of the index, and why (not)
  edgepull pull --pin nginx:1.27          pre-pull it into containerd, unpacked and pinned
  edgepull smoke nginx:1.27 --alive 5s    run it for real; is it still alive after 5 s?
  edgepull pull --store oci:./img nginx   the same without containerd and without root";

/// The right container image, already on the edge device.
#[derive(Debug, Parser)]
#[command(name = "edgepull", version, about, disable_help_subcommand = true, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Settings that hold for every call [default: /etc/edgepull/config.toml, if it exists]
    #[arg(long, global = true, env = "EDGEPULL_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// containerd's socket [default: the engine that runs here]
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_ADDRESS",
        value_name = "SOCKET"
    )]
    pub(crate) address: Option<PathBuf>,

    /// containerd namespace [default: the engine's: `k8s.io`, `moby` or `default`]
    #[arg(
        short,
        long,
        global = true,
        env = "CONTAINERD_NAMESPACE",
        value_name = "NS"
    )]
    pub(crate) namespace: Option<String>,

    /// Snapshotter [default: the namespace's, else `overlayfs`]
    #[arg(
        long,
        global = true,
        env = "CONTAINERD_SNAPSHOTTER",
        value_name = "NAME"
    )]
    pub(crate) snapshotter: Option<String>,

    /// Tree of hosts.toml files: mirrors, CAs and client certificates for each registry
    /// (several with `:` between) [default: the engine's, e.g. /etc/containerd/certs.d]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) hosts_dir: Option<PathBuf>,

    /// Talk http instead of https to the registries of this call
    #[arg(long, global = true)]
    pub(crate) plain_http: bool,

    /// Registry credentials in docker's config.json format
    #[arg(long, global = true, env = "REGISTRY_AUTH_FILE", value_name = "FILE")]
    pub(crate) authfile: Option<PathBuf>,

    /// Credentials for the registries of this call; without PASS the password is empty
    #[arg(long, global = true, value_name = "USER[:PASS]")]
    pub(crate) creds: Option<String>,

    /// Judge this recorded host instead of the running one
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) sysroot: Option<PathBuf>,

    /// What to print on stdout
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,

    /// Only errors on stderr
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// More on stderr: -v for requests, -vv for everything (`EDGEPULL_LOG` wins)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Progress {
    /// Bars on a terminal, plain lines elsewhere
    #[default]
    Auto,
    Plain,
    Json,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Variant {
    /// The best this host runs, even where containerd would look up another entry
    Best,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// The truth about this host: platform, what it can run, and the evidence
    #[command(
        after_help = "Example:\n  edgepull detect --record ./my-host    write a recorded host for a bug report"
    )]
    Detect {
        /// Also write this host's facts into DIR (for `--sysroot`)
        #[arg(long, value_name = "DIR")]
        record: Option<PathBuf>,
    },

    /// Every entry that REF offers, and why each is or is not for this host
    Inspect(Look),

    /// `inspect` for people: the same, with the host's order of preference
    Explain(Look),

    /// Does REF offer the wanted platforms? Exit code 3 if not
    #[command(
        after_help = "Example:\n  edgepull check app:1.4 --platform linux/arm64 --platform linux/arm/v7"
    )]
    Check {
        /// Registry references, `oci:DIR[:TAG|@DIGEST]` or `oci-archive:FILE`
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
        #[command(flatten)]
        platform: PlatformArg,
    },

    /// Resolve, fetch, verify, unpack, sync and record
    Pull(Pull),

    /// Can what REF starts run here? Proof by the bytes of its files; exit code 10 or 11 if not
    Verify(Verify),

    /// Run images for real, and say what comes of it: for CI
    Smoke(Smoke),

    /// Keep declared images on this host: the daemon
    #[command(after_help = "\
Images are declared in images.d beside the configuration: `*.txt` with one reference a line, or
`*.toml` (edgepull-images(5)). It is usually started by systemd: systemctl enable --now edgepull

Examples:
  edgepull agent --check-config    are config.toml and images.d right? Nothing is done
  edgepull agent --once            one pass, e.g. from cron or in an image build; worst result as exit code")]
    Agent(Agent),

    /// The images that edgepull put here
    Images {
        /// Every image record of the namespace, whoever made it
        #[arg(long)]
        all: bool,
    },

    /// Remove images that edgepull put here
    Rm {
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
        /// Remove records that edgepull did not create as well
        #[arg(long)]
        force: bool,
    },

    /// Let go of images that nothing declares any more
    #[command(
        after_help = "Only what the daemon pulled is removed, and only if no container uses it; in `k8s.io`\nit is unpinned, and removing it is left to kubelet. Images pulled by hand stay.\n\n`--release` is for when edgepull leaves the host: every pin that it set, also by hand with\n`pull --pin`, every hold on an earlier target and every lease is taken away, in all namespaces\nof all engines that answer (or of those that --address and --namespace name). What is declared\ndoes not count, and no image is removed. The daemon must not run."
    )]
    Prune {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        /// Take all pins and leases of edgepull away instead, and remove nothing
        #[arg(long)]
        release: bool,
    },

    /// Look deep into images, and heal what a power cut or a failing disk damaged
    Repair(Repair),

    /// Write images into an OCI archive, for hosts without a network
    #[command(
        after_help = "Example:\n  edgepull export nginx:1.27 --platform linux/arm64 --to nginx-arm64.tar"
    )]
    Export {
        /// Image references, or `oci:DIR[:TAG|@DIGEST]`; what containerd has is not fetched again
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
        #[command(flatten)]
        platform: PlatformArg,
        /// The archive to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// Look the reference up at its registry even if containerd has an image of that name
        #[arg(long)]
        fresh: bool,
        #[arg(long, value_enum, default_value_t)]
        progress: Progress,
    },

    /// Put an archive's images into containerd, with the same checks as `pull`
    Import {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        platform: PlatformArg,
        /// Do not unpack layers into snapshots
        #[arg(long)]
        no_unpack: bool,
        /// Protect from kubelet's image garbage collection
        #[arg(long)]
        pin: bool,
        #[arg(long, value_enum, default_value_t)]
        progress: Progress,
    },

    /// How the daemon's images stand: ready, being pulled, waited for, missing, failed
    #[command(after_help = "\
Examples:
  edgepull status                      every declared image
  edgepull status --ready nginx:1.27   exit code 0 only if it is here")]
    Status {
        /// One declared image [default: all]
        #[arg(value_name = "REF")]
        reference: Option<String>,
        /// Exit code 0 only if all of it is ready, else that of the worst failure (124 for
        /// what has not failed, but is not here yet)
        #[arg(long)]
        ready: bool,
        #[command(flatten)]
        daemon: DaemonArg,
    },

    /// Have the daemon compare its images with what is declared and with the registries now
    #[command(after_help = "\
Examples:
  edgepull sync && edgepull wait --timeout 10m
  edgepull sync --no-wait nginx:1.27")]
    Sync {
        /// One declared image [default: all]
        #[arg(value_name = "REF")]
        reference: Option<String>,
        /// Only ask for it
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        daemon: DaemonArg,
    },

    /// Wait until every declared image is ready; exit code 3 if only platforms are missing
    #[command(after_help = "\
Example:
  edgepull wait --timeout 10m && systemctl start my-app")]
    Wait {
        /// Give up after this long, with exit code 124: 90s, 10m, 2h [default: never]
        #[arg(long, value_name = "D", value_parser = time)]
        timeout: Option<std::time::Duration>,
        #[command(flatten)]
        daemon: DaemonArg,
    },

    /// Print a completion script
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },

    /// Print the manual page
    Man,

    /// Print the version
    Version,
}

impl Verb {
    /// How the verb shows its progress, if it does.
    pub(crate) fn progress(&self) -> Option<Progress> {
        match self {
            Self::Pull(pull) => Some(pull.progress),
            Self::Smoke(smoke) => Some(smoke.progress),
            Self::Repair(repair) => Some(repair.progress),
            Self::Export { progress, .. } | Self::Import { progress, .. } => Some(*progress),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Every blob is hashed, and every file of an unpacked layer compared with the layer's own tar.
What is damaged is fetched or unpacked again; nothing that is intact is downloaded.

Examples:
  edgepull repair                      every image that edgepull put here or pinned
  edgepull repair --check nginx:1.27   only look; exit code 31 if something is damaged")]
pub(crate) struct Repair {
    /// Image references [default: every image that edgepull put here or pinned]
    #[arg(value_name = "REF")]
    pub(crate) references: Vec<String>,
    /// Only look
    #[arg(long)]
    pub(crate) check: bool,
    #[arg(long, value_enum, default_value_t)]
    pub(crate) progress: Progress,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The entrypoint is looked up in the image as a runtime does, and followed through scripts and their
interpreters to the program's loader. Nothing is run, and no registry is asked: the image is in
containerd already, or in a layout or archive. `smoke` runs it.

Verdicts: native, compat32, emulated, refused (exit code 10, or 11 where the label is wrong), unknown.

Examples:
  edgepull verify nginx:1.27
  edgepull verify oci:./layout:v2 --platform linux/arm/v7 --sysroot ./my-pi
  edgepull verify app:1.4 -- /usr/bin/healthcheck")]
pub(crate) struct Verify {
    /// Image in containerd, `oci:DIR[:TAG|@DIGEST]` or `oci-archive:FILE`
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    #[command(flatten)]
    pub(crate) platform: PlatformArg,
    /// Judge this command instead of the image's own
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Look {
    /// Registry reference, `oci:DIR[:TAG|@DIGEST]` or `oci-archive:FILE`
    #[arg(value_name = "REF")]
    pub(crate) reference: String,
    /// Judge for a plain host of this platform, in containerd's order
    #[arg(long, value_name = "P")]
    pub(crate) platform: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DaemonArg {
    /// The daemon's control socket
    #[arg(long, env = "EDGEPULL_SOCKET", default_value = crate::daemon::SOCKET, value_name = "PATH")]
    pub(crate) socket: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PlatformArg {
    /// `linux/arm64`, `arm/v7`, `P,fallback` (containerd's order from P on), `host` or `all`
    #[arg(long = "platform", value_name = "P")]
    pub(crate) platforms: Vec<String>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  edgepull pull nginx:1.27                            into containerd, unpacked
  edgepull pull --pin -n k8s.io registry.k8s.io/pause:3.10
  edgepull pull --platform linux/arm64 --store oci-archive:app.tar app:1.4
  edgepull pull --limit-rate 500k nginx:1.27          leave the rest of the link to others
  edgepull pull --platform zephyr/armv7 --artifact-dir ./out fita/service:1.0")]
pub(crate) struct Pull {
    /// Image references
    #[arg(required = true, value_name = "REF")]
    pub(crate) references: Vec<String>,
    #[command(flatten)]
    pub(crate) platform: PlatformArg,
    /// Every image entry of the index (`--platform all`)
    #[arg(long, conflicts_with = "platforms")]
    pub(crate) all_platforms: bool,
    /// `containerd`, `oci:DIR` or `oci-archive:FILE`
    #[arg(long, default_value = "containerd", value_name = "S")]
    pub(crate) store: String,
    /// Look further than the store's reader does; the image record then points at the manifest
    #[arg(long, value_enum)]
    pub(crate) variant: Option<Variant>,
    /// Content and image record only, no snapshots
    #[arg(long)]
    pub(crate) no_unpack: bool,
    /// Protect from kubelet's image garbage collection
    #[arg(long)]
    pub(crate) pin: bool,
    /// Bytes a second for all layers of this call together: 500k, 2M, 1.5MiB (powers of 1024)
    #[arg(long, value_name = "R", value_parser = rate)]
    pub(crate) limit_rate: Option<u64>,
    #[arg(long, value_enum, default_value_t)]
    pub(crate) progress: Progress,
    /// Keep an artifact's files here, and a record of them; one directory an artifact, no engine needed
    #[arg(long, value_name = "DIR")]
    pub(crate) artifact_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "\
The image is chosen as `pull` does it; what is missing of it is fetched and goes again, and no image
record is made. The container has no network, no privileges and a read-only root with a tmpfs on
/tmp, /run and the image's volumes. A platform that this host only emulates is run by its emulator.

Exit code 0 only if all passed; else that of the worst: 10 not_runnable, 12 smoke_failed, 124 timeout.
A signal is exit code 128 and its number.

Examples:
  edgepull smoke app:1.4 --platform linux/amd64 --platform linux/arm64 --junit smoke.xml
  edgepull smoke nginx:1.27 --alive 5s          a service passes if it still runs after 5 s
  edgepull smoke app:1.4 -- /app --version      another command, instead of the entrypoint, too
  edgepull smoke oci:./img --timeout 10s")]
pub(crate) struct Smoke {
    /// Registry references, `oci:DIR[:TAG|@DIGEST]` or `oci-archive:FILE`
    #[arg(required = true, value_name = "REF")]
    pub(crate) references: Vec<String>,
    #[command(flatten)]
    pub(crate) platform: PlatformArg,
    /// How long the program may run before it is killed and has failed
    #[arg(long, default_value = "60s", value_name = "D", value_parser = time)]
    pub(crate) timeout: std::time::Duration,
    /// For services: it passes if it still runs after this long; one that ends earlier is judged by
    /// its exit code
    #[arg(long, conflicts_with = "timeout", value_name = "D", value_parser = time)]
    pub(crate) alive: Option<std::time::Duration>,
    /// containerd's name of the runtime
    #[arg(long, default_value = crate::smoke::RUNTIME, value_name = "R")]
    pub(crate) runtime: String,
    /// Memory that the container may take: 512M, 2G (powers of 1024)
    #[arg(long, default_value = "512M", value_name = "SIZE", value_parser = memory)]
    pub(crate) memory: u64,
    /// Also write the results as XML in `JUnit`'s form
    #[arg(long, value_name = "FILE")]
    pub(crate) junit: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t)]
    pub(crate) progress: Progress,
    /// Run this instead of the image's entrypoint and command
    #[arg(last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Agent {
    /// One pass over everything that is declared, whatever its time, and the end
    #[arg(long)]
    pub(crate) once: bool,
    /// Read the configuration, say what is declared and what is wrong, and do nothing
    #[arg(long, conflicts_with = "once")]
    pub(crate) check_config: bool,
    /// A process that the daemon starts for itself
    #[arg(long, hide = true)]
    pub(crate) worker: bool,
}

fn time(text: &str) -> Result<std::time::Duration, String> {
    /// What is longer is cut where it is read.
    const LONGEST: std::time::Duration = std::time::Duration::from_secs(86400);

    crate::table::duration(text)
        .filter(|time| !time.is_zero() && *time < LONGEST)
        .ok_or_else(|| "a time reads 90s, 10m or 2h, and is below 24h".to_owned())
}

fn memory(text: &str) -> Result<u64, String> {
    /// No runtime starts a container with less.
    const LEAST: u64 = 8 << 20;

    rate(text)
        .ok()
        .filter(|bytes| *bytes >= LEAST && i64::try_from(*bytes).is_ok())
        .ok_or_else(|| "a size reads 512M or 2G, and is at least 8M".to_owned())
}

fn rate(text: &str) -> Result<u64, String> {
    crate::registry::parse_rate(text).map_err(|error| {
        let mut text = error.causes().join(": ");
        if let Some(hint) = error.hint_text() {
            text = format!("{text}; {hint}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
