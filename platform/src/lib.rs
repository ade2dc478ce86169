//! What this host can run, and how well each offered platform fits.
//!
//! Pure and synchronous: the only input is a directory of facts (and, for the running system, a
//! few questions to the kernel), the output is values. This text is normative; the code follows it.
//!
//! # Grammar
//!
//! ```text
//! platform = [ os "/" ] architecture [ "/" variant ] | os
//! os       = name [ "(" [ version ] *( "+" feature ) ")" ]
//! name     = 1*( letter | digit | "_" | "." | "-" )        architecture and variant are names
//! ```
//!
//! In `version` and `feature` any other byte is percent-encoded (`%2B` is a plus). Case does not
//! matter in names. A missing `os` is linux, in input and in labels, on whatever system this
//! program runs. An `os` alone stands for this program's own architecture. `amd64/v3` and
//! `arm/v6` are architecture and variant, because `amd64` and `arm` are no systems.
//!
//! One form is printed everywhere: `linux/amd64`, `linux/amd64/v3`, `linux/arm64`,
//! `linux/arm/v7`, `windows(10.0.17763)/amd64`; features sorted; a missing architecture is `?`;
//! bytes outside a name, percent-encoded. What was parsed is printed so that it parses to the same.
//!
//! # Normalisation
//!
//! Labels of indexes and configs ([`Platform::from_label`]) get containerd's, and nothing else:
//!
//! | as found | in normal form |
//! |---|---|
//! | os empty; `macos` | `linux`; `darwin` |
//! | `i386` | `386`, variant dropped |
//! | `x86_64` `x86-64` `amd64` | `amd64`; variant `v1` is empty |
//! | `aarch64` `arm64` | `arm64`; variants `8` `v8` `v8.0` are empty, `9` `9.0` `v9.0` are `v9` |
//! | `armhf`, `armel` | `arm` `v7`, `arm` `v6` |
//! | `arm` | variant empty or `7` is `v7`; `5` `6` `8` are `v5` `v6` `v8` |
//! | anything else | lower case, kept |
//!
//! A label with neither system nor architecture names no platform. One without an architecture
//! can be shown and matches nothing.
//!
//! What a person types ([`Platform::parse`]) may be spelled in more ways: the names of
//! `uname -m`, of Debian and of compilers (`armv7l`, `armv7`, `i686`, `ppc64el`, `x86-64-v3`,
//! `loongarch64`), and variants such as `armv8`, `v7l` or, on amd64, `3`. The tables are in
//! `normalize.rs`.
//!
//! # Order
//!
//! [`vector`] is containerd's list for a host, best first:
//!
//! | host | list |
//! |---|---|
//! | amd64 of level N | vN down to v2, amd64, 386 |
//! | arm/vN, N from 5 to 8 | vN down to v5 |
//! | arm64 | arm64, arm v8, v7, v6, v5 |
//! | arm64/v8.N, N from 1 to 9 | v8.N down to v8.1, then as arm64 |
//! | arm64/v9, v9.1, v9.2, v9.3, v9.4 to v9.7 | v9.N down to v9, v8.5 (v8.6, v8.7, v8.8, v8.9) down to v8.1, then as arm64 |
//! | any other arm64 | nothing |
//! | darwin, freebsd | itself, then the same on linux |
//! | anything else | itself |
//!
//! An entry matches a member of the list if system, architecture and variant are equal, its
//! `os.features` are among the member's (engines up to containerd 2.2 do not compare them:
//! [`Wanted::ignoring_os_features`]; `win32k` never counts on Windows), and on Windows the builds
//! agree: below 20348 the same build; from there on, builds from the previous long-term release
//! (20348, 26100) up to the host's. Entries are ranked by the member they match, then on Windows
//! by the higher version, then by more features, then by their place in the index. Entries
//! without a platform come last: their config or their own entries decide.
//!
//! Where [`select`] leaves containerd's rules:
//!
//! - An attestation is no candidate, even if it is labelled with a real platform or with none.
//! - Without a platform, only images and indexes are candidates; containerd looks at the first
//!   such entry whatever it is, and at no other. [`Selection::reader_takes`] names the entry that
//!   containerd's reader would look at.
//! - A system that no container engine runs on has no fallbacks: `zephyr/arm/v7` is itself only.
//!
//! What a single file needs, and whether a host has it, is told by [`executable`], with its own table.
//!
//! # Evidence
//!
//! Three truths are kept apart: what the kernel is ([`Host::kernel`]), what the userland was
//! built for ([`Host::userland`]), and what runs ([`Host::runs`]). Facts that were not observed
//! are null, and of a recorded host nothing of the running process counts.
//!
//! | fact | by, first that tells |
//! |---|---|
//! | kernel | `uname -m`, unless the CPU description is another architecture's (an emulator); the form of the CPU description |
//! | userland | this program's own build or the recorded package architecture; its width; `AT_PLATFORM`; else assumed as the kernel |
//! | variant of 32-bit Arm | `v8` under a 64-bit kernel; `(v6l)` in the processor's name; `uname -m`; `AT_PLATFORM`; the part number of a sixth-generation core; the number under `CPU architecture`; else an error |
//! | 32-bit mode of arm64 | `personality(PER_LINUX32)` refused: no. `uname` under it: begins with `arm` or not. `CONFIG_COMPAT` off, or no features under it: no. Accepted, a 32-bit userland, or the kernel's list of capable CPUs: yes. Else null. Core part numbers are a hint |
//! | x86 level | every flag of the level and of those below, on every processor |
//! | 386 on amd64 | `CONFIG_IA32_EMULATION`, the boot parameter; else assumed |
//! | page size | `AT_PAGESZ` |
//! | emulation | enabled handlers whose masked magic takes a synthetic header of the architecture; flag F, or containers cannot use it |
//!
//! A 32-bit userland on a 64-bit kernel runs 32-bit platforms only ([`Host::kernel_also_execs`]
//! has the rest): its engine's seccomp profile kills the others. A userland that the cores cannot
//! run is itself emulated; its `runs` are then what it can start, and [`Host::emulated`] is set.

#![forbid(unsafe_code)]

mod binfmt;
mod cpu;
mod detect;
mod error;
pub mod executable;
mod facts;
mod host;
pub mod launch;
mod normalize;
mod order;
mod platform;
mod select;
pub mod starts;

pub use detect::detect;
pub use error::{DetectError, FactsError, ParsePlatformError};
pub use facts::Facts;
pub use host::{Evidence, Host, How, Runs};
pub use order::{Removed, Selects, selects_for_engine, selects_without_engine, vector};
pub use platform::{Label, Platform};
pub use select::{
    EngineConflict, EntryVerdict, Missing, Offer, OfferKind, Selection, Verdict, Wanted,
    explain_missing, select,
};
